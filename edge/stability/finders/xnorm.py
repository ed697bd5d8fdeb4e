"""Find every XNorm in an ONNX graph, however its exporter wrote it.

    a / ||a||        the quotients of `edge.stability.finders.quotients`, times a gain or not, and LpNormalization with p = 2

A LayerNorm does not match: it divides a - mean(a), by a mean of squares. A norm that cannot be judged, or that divides
something else than its argument, is named with the reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from calib.errors import GraphError
from calib.graph import attribute
from edge.onnx_import.graph_rewriting import int_constants
from edge.stability.finders.quotients import Quotient, Root, find_quotients
from edge.stability.finders.site_graph import SiteGraph
from edge.stability.observed_ranges import Operand
from edge.stability.site import Eps
from edge.stability.unjudged_norm import UnjudgedNorm

_KV_RANKS = (3, 4)
"""Axes of a K^T V whose partial sums are measured: (B, D, D) and (B, H, D, D)."""


@dataclass(frozen=True)
class XNormSite:
    """One XNorm, by the names of its nodes and tensors.

    Attributes:
        name: the node that reduces: ReduceL2, ReduceSum, ReduceSumSquare or LpNormalization.
        operand: "kv" when a product of two activations (K^T V) is normalised, "q" for anything else.
        axis: the normalised axis, negative.
        nodes: what computes in FP32 where the site is an FP32 island: the norm's own nodes in graph order; for "kv" preceded
            by the MatMul that feeds them.
        argument: tensor a that is normalised.
        output: tensor gain * a / ||a||.
        factors: for "kv" the two tensors that are multiplied, else empty.
        eps: what keeps the division finite, none to two of them.
        gain: largest magnitude of the constants that `output` is multiplied by: 1, unless the graph multiplies before it
            divides.
    """

    name: str
    operand: Operand
    axis: int
    nodes: tuple[str, ...]
    argument: str
    output: str
    factors: tuple[str, ...] = ()
    eps: tuple[Eps, ...] = ()
    gain: float = 1.0


def find_sites(model: onnx.ModelProto, expected: int | None = None, kv_axis: int | None = None) -> tuple[XNormSite, ...]:
    """Every XNorm of a graph in graph order.

    Args:
        model: any ONNX graph, with or without Q/DQ.
        expected: the number that the network must have; another one raises InputError, because a missed site would be a
            norm that is neither checked nor repaired.
        kv_axis: the negative axis along which the network normalises K^T V; another one raises InputError.

    Norms that cannot be judged are left out, see `find_norms`.
    """
    sites, _ = find_norms(model)
    if expected is not None and len(sites) != expected:
        raise GraphError(
            "the graph does not hold the XNorms that the network has",
            found=f"{len(sites)} of {expected}: {', '.join(s.name for s in sites[:6])} ...",
            next_command="ufovit build with --force, or report the exporter's version",
        )
    wrong = [s for s in sites if kv_axis is not None and s.operand == "kv" and s.axis != kv_axis]
    if wrong:
        raise GraphError(
            "K^T V is normalised along another axis than the network's",
            where=", ".join(s.name for s in wrong[:6]),
            found=f"axis {wrong[0].axis} at {len(wrong)} XNorms",
            allowed=f"axis {kv_axis}",
            next_command="export the network again; for weights trained with the other axis, set kv_axis in the checkpoint",
        )
    return sites


def find_norms(model: onnx.ModelProto) -> tuple[tuple[XNormSite, ...], tuple[UnjudgedNorm, ...]]:
    """Every XNorm of a graph in graph order, and the L2 norms that cannot be judged; bodies of If and Loop are not entered."""
    graph = SiteGraph(model)
    found = [*_quotient_norms(graph)]
    names = {norm.name for norm in found}
    for node in graph.index.nodes.values():
        reduces = node.op_type in ("ReduceL2", "ReduceSumSquare") and graph.is_activation(node.input[0])
        if reduces and graph.name(node) not in names:
            found.append(UnjudgedNorm(graph.name(node), "its result does not divide its argument"))
    sites = tuple(norm for norm in found if isinstance(norm, XNormSite))
    return sites, tuple(norm for norm in found if isinstance(norm, UnjudgedNorm))


def _quotient_norms(graph: SiteGraph) -> Iterator[XNormSite | UnjudgedNorm]:
    """The norms that divide their argument, in the order of the nodes that divide."""
    quotients = {graph.index.producers[q.node.output[0]]: q for q in find_quotients(graph) if not q.root.mean}
    for at, node in enumerate(graph.index.nodes.values()):
        if node.op_type == "LpNormalization" and int(attribute(node, "p", 2)) == 2 and graph.is_activation(node.input[0]):
            yield _site(graph, Quotient(node, node.input[0], Root(node, node.input[0])))
        elif at in quotients:
            yield _site(graph, quotients[at])


def _site(graph: SiteGraph, quotient: Quotient) -> XNormSite | UnjudgedNorm:
    reducer = quotient.root.reducer
    name, argument, output = graph.name(reducer), quotient.numerator, str(quotient.node.output[0])
    shape, axes = graph.shape(argument), _axes(graph, reducer)
    axis = axes[0] if len(axes) == 1 else 0
    if axis >= 0 and shape is not None:
        axis -= len(shape)
    source = graph.computed_by(argument, "MatMul")
    is_kv = source is not None and all(map(graph.is_activation, source.input))
    reason = _unjudged(axes, argument, axis, shape, is_kv=is_kv)
    if reason:
        return UnjudgedNorm(name, reason)
    nodes, eps, gain = graph.in_order(quotient.nodes), quotient.root.eps, quotient.gain
    if source is None or not is_kv:
        return XNormSite(name, "q", axis, nodes, argument, output, (), eps, gain)
    factors = tuple(_unquantized(graph, tensor) for tensor in source.input)
    return XNormSite(name, "kv", axis, (graph.name(source), *nodes), argument, output, factors, eps, gain)


def _axes(graph: SiteGraph, reducer: onnx.NodeProto) -> list[int]:
    if reducer.op_type == "LpNormalization":
        return [int(attribute(reducer, "axis", -1))]
    return int_constants(graph, reducer, "axes", 1) or []


def _unquantized(graph: SiteGraph, tensor: str) -> str:
    """The float tensor that a Q/DQ pair stands for."""
    dequantize = graph.computed_by(tensor, "DequantizeLinear")
    quantize = graph.computed_by(dequantize.input[0]) if dequantize is not None else None
    return tensor if quantize is None else str(quantize.input[0])


def _unjudged(axes: list[int], argument: str, axis: int, shape: tuple[int | None, ...] | None, *, is_kv: bool) -> str:
    """Why a norm cannot be judged; empty for one that can. `axis`: negative where the rank is known."""
    if len(axes) != 1:
        return f"it reduces over axes {axes}, not over one" if axes else "it reduces over no constant axis"
    if axis >= 0:
        return f"the rank of {argument} is not known, and the axis is counted from the first"
    if shape is not None and axis <= -len(shape):
        return "it normalises over the batch"
    if is_kv and ((shape is not None and len(shape) not in _KV_RANKS) or axis not in (-1, -2)):
        return f"a product of two activations of shape {shape}, normalised along axis {axis}"
    return ""
