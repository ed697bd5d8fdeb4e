"""Records of the precision that a graph requests for each layer and that an engine uses. Standard library only.

`engines.layer_requests` reads the requests from an ONNX file; `engines.rtx_plan_text`, `engines.engine_inspector` and
`engines.ort.graph` read the evidence from an engine. A device reads the requests from its bundle, without onnx.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engines.plan_kernels import PlanStep


@dataclass(frozen=True)
class Layer:
    """A node that multiplies.

    Attributes:
        name: unique node name.
        macs: multiply-accumulates for one image; 0 where they cannot be counted.
        requested: precision that the graph requests; "uint8" for codes that TensorRT does not support.
        problem: why it may run in float, or give wrong results in INT8, or cannot be counted; "" if there is nothing.
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
    """What a build needs to know about a graph besides its bytes.

    Attributes:
        layers: every layer that multiplies, in graph order.
        traceable: names of the layers that can be identified in an engine, because no other node has the same name.
        input: the images.
        outputs: in the order of the graph, at least one.
    """

    layers: tuple[Layer, ...]
    traceable: tuple[str, ...]
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class LayerEvidence:
    """The precision of one layer in an engine, "unknown" if not reported, and what in the engine shows it, one phrase."""

    actual: str
    source: str


@dataclass(frozen=True)
class EngineEvidence:
    """Layer precisions and kernel counts read from an engine.

    Attributes:
        layers: node name -> evidence for that node; a missing node counts as not INT8.
        kernels: number of kernels of one inference; None if the engine does not report it.
        reformats: number of those that only change the layout or type of a tensor; None likewise.
        steps: of one inference in order; empty likewise.
    """

    layers: dict[str, LayerEvidence] = field(default_factory=dict)
    kernels: int | None = None
    reformats: int | None = None
    steps: tuple[PlanStep, ...] = ()


WIDTHS = ("int8", "fp8", "fp16", "bf16", "fp32")
UNKNOWN = "unknown"


def common_type(types: Sequence[str]) -> str:
    """The widest of the operand types, in which their product is computed; "unknown" if any of them is not in WIDTHS."""
    if not types or any(t not in WIDTHS for t in types):
        return UNKNOWN
    return max(types, key=WIDTHS.index)


def merge_evidence(products: Iterable[tuple[str, str, str]]) -> dict[str, LayerEvidence]:
    """Node -> evidence of all kernels that may compute its product, from the (node, type, source) of each."""
    by_node: dict[str, tuple[list[str], list[str]]] = {}
    for node, actual, source in products:
        types, sources = by_node.setdefault(node, ([], []))
        types.append(actual)
        sources.append(source)
    return {node: LayerEvidence(common_type(types), "; ".join(dict.fromkeys(s))) for node, (types, s) in by_node.items()}
