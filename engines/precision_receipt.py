"""Precision receipt: compare the precision requested for each layer with the one the engine uses, weighted by MACs.

    int8_mac_fraction = sum of MACs of the layers whose evidence is "int8" / sum of MACs of all layers that multiply

Evidence comes from the engine (`engines.rtx_plan_text`, `engines.engine_inspector`, `engines.ort.graph`), never from the input
graph. A layer without evidence counts as not INT8 and is listed, and so is one whose MACs cannot be counted.
"""

from collections import Counter
from dataclasses import dataclass

from calib.errors import GraphError, VerdictError
from engines.layer_records import UNKNOWN, EngineEvidence, Layer, LayerEvidence

_SHOWN_FALLBACKS = 12
_NO_EVIDENCE = LayerEvidence(UNKNOWN, "the engine does not name this layer")


@dataclass(frozen=True)
class Fallback:
    """A layer that does not run in the precision of the build, or whose MACs cannot be counted, in which case its share is 0;
    `actual` is "unknown" if the engine does not report it.

    `mac_fraction` is the layer's share of the network's MACs, in [0, 1].
    """

    layer: str
    requested: str
    actual: str
    reason: str
    mac_fraction: float

    @property
    def share(self) -> str:
        """The share of the MACs in words."""
        return share_text(self.mac_fraction)


@dataclass(frozen=True)
class Receipt:
    """Shares of the network's MACs by precision: `int8_mac_fraction` runs in INT8.

    Attributes:
        requested: precision -> share requested by the graph.
        actual: precision -> share in the engine.
        fallbacks: every layer whose actual precision is not that of the build, and those that cannot be counted, most MACs
            first.
        kernels: as in EngineEvidence, likewise `reformats`.
    """

    int8_mac_fraction: float
    requested: dict[str, float]
    actual: dict[str, float]
    fallbacks: tuple[Fallback, ...]
    kernels: int | None = None
    reformats: int | None = None


def share_text(fraction: float) -> str:
    """A layer's share of the MACs, or that it is not counted."""
    return f"{fraction:.2%}" if fraction else "not counted"


def make_receipt(layers: tuple[Layer, ...], evidence: EngineEvidence, precision: str) -> Receipt:
    """Compare an engine's evidence with its graph's requests. Raises GraphError for a graph of which nothing can be counted."""
    total = sum(layer.macs for layer in layers)
    if not layers:
        raise GraphError("the graph has no Conv, MatMul or Gemm, nor another layer that multiplies", allowed="a network")
    if not total:
        problems = "; ".join(f"{layer.name}: {layer.problem}" for layer in layers[:_SHOWN_FALLBACKS])
        raise GraphError("the multiply-accumulates of none of the graph's layers can be counted", found=problems)
    actual, fallbacks = [], []
    for layer in layers:
        found = evidence.layers.get(layer.name, _NO_EVIDENCE)
        # INT8 arithmetic on uint8 codes does not count as INT8: its results are wrong.
        used = "uint8" if (layer.requested, found.actual) == ("uint8", "int8") else found.actual
        actual.append(used)
        if used != precision or not layer.macs:
            request = "" if layer.requested == precision else f"the graph requests {layer.requested}"
            cause = layer.problem if precision == "int8" else request
            reason = f"{cause}; {found.source}" if cause else found.source
            fallbacks.append(Fallback(layer.name, layer.requested, used, reason, layer.macs / total))
    shares = _shares(layers, actual)
    return Receipt(
        int8_mac_fraction=shares.get("int8", 0.0),
        requested=_shares(layers, [layer.requested for layer in layers]),
        actual=shares,
        fallbacks=tuple(sorted(fallbacks, key=lambda f: (-f.mac_fraction, f.layer))),
        kernels=evidence.kernels,
        reformats=evidence.reformats,
    )


def check_receipt(receipt: Receipt, floor: float) -> None:
    """Raise VerdictError, listing the fallbacks with most MACs, if less than `floor` of the MACs runs in INT8."""
    if receipt.int8_mac_fraction >= floor:
        return
    rows = [f"{f.layer}: {f.requested} -> {f.actual}, {f.mac_fraction:.1%} of MACs, {f.reason}" for f in receipt.fallbacks]
    rest = [f"... and {len(rows) - _SHOWN_FALLBACKS} more"] if len(rows) > _SHOWN_FALLBACKS else []
    raise VerdictError(
        "the INT8 share of the engine is below its floor",
        found="\n    ".join([f"{receipt.int8_mac_fraction:.4f} of the MACs", *rows[:_SHOWN_FALLBACKS], *rest]),
        allowed=f">= {floor:g}",
        next_command="fix the listed layers, or set a lower --int8-floor",
    )


def _shares(layers: tuple[Layer, ...], precisions: list[str]) -> dict[str, float]:
    macs = Counter[str]()
    for layer, precision in zip(layers, precisions, strict=True):
        macs[precision] += layer.macs
    return {precision: part / macs.total() for precision, part in sorted(macs.items())}
