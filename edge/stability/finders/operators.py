"""Sites of one node, by its operator and by what it reads.

exponential   Exp, Pow                           the result; inside 1 / (1 + exp(-x)) its overflow changes nothing
reciprocal    Reciprocal, Div by an activation   the denominator, with the root and the eps that it comes from
sum           ReduceSum, ReduceMean, ReduceL1, GlobalAveragePool   the sum on the way; of AveragePool the result alone
product       MatMul, Gemm, Conv ...             the result; of two activations the partial sums
residual      Add of two activations             the result
other         anything else                      the result
"""

from collections.abc import Iterator
from typing import Literal

import onnx

from edge.onnx_import.graph_edit import is_operator
from edge.stability.finders.draft import Draft
from edge.stability.finders.quotients import guards
from edge.stability.finders.site_graph import SiteGraph
from edge.stability.site import Eps, Probe

_SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool", "AveragePool")
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN")


def find_exponentials(graph: SiteGraph) -> Iterator[Draft]:
    """Exp and Pow. A square is an exponential too, where no norm reads it."""
    for node in graph.forward():
        if not is_operator(node, "Exp", "Pow") or not graph.is_activation(node.output[0]):
            continue
        saturates: dict[str, Literal["below", "both"]] = {}
        if node.op_type == "Exp":
            saturates = {node.input[0]: "below", **dict.fromkeys(_inside_sigmoid(graph, node), "both")}
        yield Draft("exponential", node, node.output[0], (node,), node.input[0], saturates=saturates)


def _inside_sigmoid(graph: SiteGraph, exponential: onnx.NodeProto) -> list[str]:
    """The tensors between Exp and the division of 1 / (1 + exp(-x)); none where its result is read otherwise."""
    tensors = [str(exponential.output[0])]
    (adding, *others) = graph.nodes_reading(tensors[0]) or (None,)
    if adding is None or others or not is_operator(adding, "Add") or not any(map(graph.is_constant, adding.input)):
        return []
    tensors.append(str(adding.output[0]))
    divides = [
        is_operator(reader, "Reciprocal") or (is_operator(reader, "Div") and reader.input[1] == tensors[1])
        for reader in graph.nodes_reading(tensors[1])
    ]
    return tensors if divides and all(divides) else []


def find_reciprocals(graph: SiteGraph) -> Iterator[Draft]:
    """Divisions by an activation, with what keeps the denominator from zero."""
    for node in graph.forward():
        if not graph.is_activation(node.output[0]):
            continue
        power = graph.scalar(node.input[1]) if node.op_type == "Pow" else None
        if is_operator(node, "Reciprocal") or (power is not None and power < 0):
            denominator = str(node.input[0])
        elif is_operator(node, "Div") and graph.is_activation(node.input[1]):
            denominator = str(node.input[1])
        else:
            continue
        nodes, eps, divides = _denominator(graph, denominator)
        yield Draft("reciprocal", node, node.output[0], (*nodes, node), denominator, (), eps, (), divides)


def _denominator(graph: SiteGraph, tensor: str) -> tuple[tuple[onnx.NodeProto, ...], tuple[Eps, ...], frozenset[str]]:
    """The nodes that guard or root a denominator, their eps, and the tensors among them that must not vanish."""
    inner, nodes, eps = guards(graph, tensor, "norm")
    divides = {tensor}
    root = graph.computed_by(inner, "Sqrt")
    if root is not None:
        nodes.append(root)
        inner, more, added = guards(graph, root.input[0], "square")
        nodes, eps, divides = [*nodes, *more], [*eps, *added], {tensor, str(root.input[0])}
    return tuple(nodes), tuple(eps), frozenset(divides)


def find_sums(graph: SiteGraph) -> Iterator[Draft]:
    """Reductions that add, over known axes."""
    for node in graph.forward():
        if not is_operator(node, *_SUMS) or not graph.is_activation(node.output[0]):
            continue
        axes = None if node.op_type == "AveragePool" else graph.reduced_axes(node)
        inner = () if axes is None else (Probe("sum", (node.input[0],), axes, stored=False),)
        yield Draft("sum", node, node.output[0], (node,), node.input[0], axes or (), (), inner)


def find_products(graph: SiteGraph) -> Iterator[Draft]:
    """Products; constant weights are summed in FP32 by every target, products of two activations not by every one."""
    for node in graph.forward():
        if is_operator(node, *_PRODUCTS) and graph.is_activation(node.output[0]):
            two = node.op_type == "MatMul" and all(map(graph.is_activation, node.input))
            inner = (Probe("partial sum", tuple(node.input), stored=False),) if two else ()
            yield Draft("product", node, node.output[0], (node,), node.input[0], inner=inner)


def find_residuals(graph: SiteGraph) -> Iterator[Draft]:
    """Sums of two activations."""
    for node in graph.forward():
        if is_operator(node, "Add", "Sub", "Sum") and sum(map(graph.is_activation, node.input)) > 1:
            yield Draft("residual", node, node.output[0], (node,), node.input[0])


def find_others(graph: SiteGraph) -> Iterator[Draft]:
    """Every node that computes something."""
    for node in graph.index.nodes.values():
        if graph.is_constant(node.output[0]):
            continue
        output = next((str(name) for name in node.output if name), "")
        yield Draft("other", node, output, (node,), node.input[0] if node.input else "")
