"""The precision receipt: what was asked of every layer against what the built engine does, weighed by MACs.

    int8_mac_fraction = sum of MACs of the layers whose evidence is "int8" / sum of MACs of all Conv, MatMul, Gemm

Evidence comes from the engine's own bytes (`engines.rtx_plan_text`, `engines.ort.graph`), never from the graph that went in. A
layer without evidence counts as not INT8 and is listed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calib.errors import InputError, VerdictError
from engines.layer_records import UNKNOWN, LayerEvidence

if TYPE_CHECKING:
    from engines.layer_records import EngineEvidence, Layer

_LISTED = 12
_NOT_NAMED = LayerEvidence(UNKNOWN, "the engine names no such layer")


@dataclass(frozen=True)
class Fallback:
    """A layer that does not run in the precision of the build.

    Attributes:
        layer: node name.
        requested: what the graph asks for.
        actual: what the engine does; "unknown" where it does not tell.
        reason: why, in one sentence.
        mac_fraction: the layer's share of the network's MACs.
    """

    layer: str
    requested: str
    actual: str
    reason: str
    mac_fraction: float


@dataclass(frozen=True)
class Receipt:
    """Shares of the network's MACs by precision.

    Attributes:
        int8_mac_fraction: share that runs in INT8.
        requested: precision -> share, as the graph asks.
        actual: precision -> share, as the engine does.
        fallbacks: every layer whose actual precision is not that of the build, heaviest first.
        kernels: steps of one inference; None where the engine does not tell.
        reformats: those of them that only change a tensor's layout or type; None likewise.
    """

    int8_mac_fraction: float
    requested: dict[str, float]
    actual: dict[str, float]
    fallbacks: tuple[Fallback, ...]
    kernels: int | None = None
    reformats: int | None = None


def make_receipt(layers: tuple[Layer, ...], evidence: EngineEvidence, precision: str) -> Receipt:
    """Weigh the evidence of an engine against its graph. Raises InputError for a graph in which nothing multiplies."""
    total = sum(layer.macs for layer in layers)
    if not total:
        raise InputError("the graph holds no Conv, MatMul or Gemm", allowed="a network")
    sources = {layer.name: evidence.layers.get(layer.name, _NOT_NAMED) for layer in layers}
    actual = {layer.name: _actual(layer, sources[layer.name]) for layer in layers}
    fallbacks = [
        Fallback(
            layer.name, layer.requested, actual[layer.name], _reason(layer, sources[layer.name], precision), layer.macs / total
        )
        for layer in layers
        if actual[layer.name] != precision
    ]
    shares = _shares((actual[layer.name], layer.macs) for layer in layers)
    return Receipt(
        int8_mac_fraction=shares.get("int8", 0.0),
        requested=_shares((layer.requested, layer.macs) for layer in layers),
        actual=shares,
        fallbacks=tuple(sorted(fallbacks, key=lambda f: (-f.mac_fraction, f.layer))),
        kernels=evidence.kernels,
        reformats=evidence.reformats,
    )


def _actual(layer: Layer, evidence: LayerEvidence) -> str:
    """What an engine does of a layer. INT8 arithmetic on uint8 codes does not count as INT8: its numbers are wrong."""
    return layer.requested if (layer.requested, evidence.actual) == ("uint8", "int8") else evidence.actual


def _reason(layer: Layer, evidence: LayerEvidence, precision: str) -> str:
    request = "" if layer.requested == precision else f"the graph asks for {layer.requested}"
    cause = layer.problem if precision == "int8" else request
    return f"{cause}; {evidence.source}" if cause else evidence.source


def check_receipt(receipt: Receipt, floor: float) -> None:
    """Raise VerdictError, naming the heaviest fallbacks, when less than `floor` of the MACs runs in INT8."""
    if receipt.int8_mac_fraction >= floor:
        return
    rows = [f"{f.layer}: {f.requested} -> {f.actual}, {f.mac_fraction:.1%} of MACs, {f.reason}" for f in receipt.fallbacks]
    more = [f"... and {len(rows) - _LISTED} more"] if len(rows) > _LISTED else []
    raise VerdictError(
        "the engine runs too little in INT8",
        found="\n    ".join([f"{receipt.int8_mac_fraction:.4f} of the MACs", *rows[:_LISTED], *more]),
        allowed=f">= {floor:g}",
        next_command="repair the layers listed, or declare a lower --int8-floor",
    )


def _shares(parts: Iterable[tuple[str, int]]) -> dict[str, float]:
    sums: dict[str, int] = {}
    for name, macs in parts:
        sums[name] = sums.get(name, 0) + macs
    total = sum(sums.values())
    return {name: macs / total for name, macs in sorted(sums.items())}
