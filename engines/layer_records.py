"""What a graph asks of the layers that multiply, and what an engine says of them: plain records, stdlib only.

`engines.layer_requests` reads the first from an ONNX file; `engines.rtx_plan_text`, `engines.engine_inspector` and
`engines.ort.graph` read the second from an engine. A device that builds from a bundle finds the first in the bundle and needs
no onnx.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """A node that multiplies.

    Attributes:
        name: unique node name.
        op_type: Conv, Gemm or MatMul.
        macs: multiply-accumulates for one image.
        requested: precision that the graph asks for; "uint8" where it asks for what TensorRT cannot do.
        problem: why it may not become INT8, or wrongly, empty if nothing speaks against it.
    """

    name: str
    op_type: str
    macs: int
    requested: str
    problem: str


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape (-1 for a symbolic batch) and numpy dtype name of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class GraphFacts:
    """All that building an engine needs to know of a graph besides its bytes.

    Attributes:
        layers: every Conv, MatMul and Gemm, in graph order.
        traceable: names of those layers that can be found again in an engine: no other node has the same name.
        input: the image.
        output: the logits.
    """

    layers: tuple[Layer, ...]
    traceable: tuple[str, ...]
    input: TensorInfo
    output: TensorInfo


@dataclass(frozen=True)
class LayerEvidence:
    """What an engine says of one layer.

    Attributes:
        actual: "int8", "fp16", "fp32", "bf16", or "unknown" where the engine does not tell.
        source: where this was read, one phrase.
    """

    actual: str
    source: str


@dataclass(frozen=True)
class EngineEvidence:
    """What an engine says of itself.

    Attributes:
        layers: node name -> what it says of that node; a node that is left out counts as not INT8.
        kernels: how many steps one inference takes; None where the engine does not tell.
        reformats: how many of them only change the layout or type of a tensor; None likewise.
    """

    layers: dict[str, LayerEvidence] = field(default_factory=dict)
    kernels: int | None = None
    reformats: int | None = None


WIDTHS = ("int8", "fp8", "fp16", "bf16", "fp32")
UNKNOWN = "unknown"


def common_type(types: Sequence[str]) -> str:
    """The one type of several operands, the widest where they differ, since a product is computed in that; else "unknown"."""
    if not types or any(t not in WIDTHS for t in types):
        return UNKNOWN
    return max(types, key=WIDTHS.index)


def merge_evidence(products: Iterable[tuple[str, str, str]]) -> dict[str, LayerEvidence]:
    """Node -> what the steps that may compute its product say together, from (node, type, source) of every such step."""
    steps: dict[str, list[tuple[str, str]]] = {}
    for node, actual, source in products:
        steps.setdefault(node, []).append((actual, source))
    evidence = {}
    for node, parts in steps.items():
        types, sources = zip(*parts, strict=True)
        evidence[node] = LayerEvidence(common_type(types), "; ".join(dict.fromkeys(sources)))
    return evidence
