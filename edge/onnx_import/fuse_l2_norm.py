"""Division by an L2 norm, however it is written -> Div(a, norm), with the norm by ReduceL2, which TensorRT computes in FP32.

    s        ReduceSumSquare(a), ReduceSum or ReduceMean of Mul(a, a) or of Pow(a, 2), times constants c
    norm     ReduceL2(a), Sqrt(s), Pow(s, 0.5); its inverse by Reciprocal, by 1 / norm or Pow(s, -0.5)
    eps      a lower clamp (Clip, Max), or added, on the norm or on s

    sqrt(c * s) = ||a|| * sqrt(c)                   root of a mean, of a variance over N - 1
    sqrt(max(s, e)) = max(sqrt(s), sqrt(e))         the clamp moves to the norm
    sqrt(s + e)                                     has no equal with ReduceL2: stays Sqrt(Add(ReduceSum(Mul(a, a)), e))
    sqrt(s_a * s_b) = ||a|| * ||b||                 cosine_similarity
    gain * a / n = (a / n) * gain                   the gain of an XNorm moves after the division

The result is what the project's own export writes, ReduceL2 -> Clip -> Div -> Mul(gain), so that what is made for its XNorms
serves those of others. An eps keeps its kind: a norm without one stays without. LpNormalization is one node already.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from edge.onnx_import.graph_rewriting import Array, GraphRewriting
from edge.onnx_import.products import (
    Reduction,
    clamp_of,
    plus_constant,
    product_of,
    reduction_of,
    root_of,
    squares_of,
)
from edge.onnx_import.rewritten import Rewritten

KIND = "l2_norm"


@dataclass(frozen=True)
class _Guard:
    """An eps on a norm (or on a sum of squares): max(t, value), or t + value."""

    kind: Literal["clamp", "added"]
    value: float


def fuse_l2_norms(model: onnx.ModelProto) -> list[Rewritten]:
    """Replace every L2 norm, and every division by one, that is written in another form, in place."""
    graph, norms = GraphRewriting(model), list[Rewritten]()
    for node in graph.backward():
        if (nodes := _norm_nodes(graph, node)) is not None:
            norms.append(Rewritten(KIND, graph.name(node), graph.replace(node, nodes)))
    graph.finish()
    graph, quotients, done = GraphRewriting(model), list[Rewritten](), set[str]()
    for node in graph.forward():
        if node.op_type in ("Div", "Mul") and not done & set(product_of(graph, node.output[0], done).factors):
            place = _quotient(graph, node, done)
            quotients += [place] if place else []
    graph.finish()
    remaining = {node.name for node in model.graph.node}
    return [*(place for place in norms[::-1] if place.into in remaining), *quotients]  # without norms that a quotient took in


def _norm_nodes(graph: GraphRewriting, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The nodes that compute a square root of sums of squares by ReduceL2, where that is exact."""
    root = root_of(graph, node.output[0])
    if root is None:
        return None
    clamp = clamp_of(graph, root[0])
    low = clamp.low if clamp is not None and clamp.high == math.inf else 0.0 if clamp is None else None
    tensor = clamp.argument if clamp is not None else root[0]
    sums = [squares_of(graph, name) for name in _factors_of_sums(graph, tensor)]
    if low is None or low < 0 or not sums or any(s is None for s in sums):
        return _plain_root(graph, node) if root[1] < 0 or node.op_type == "Pow" else None
    known = [s for s in sums if s is not None]
    nodes = [_reduce(graph, node, "ReduceL2", s.reduction, s.reduction.argument) for s in known]
    if len(nodes) == 2:
        nodes.append(graph.make_node("Mul", [nodes[0].output[0], nodes[1].output[0]], node))
    if (factor := math.prod(s.factor for s in known)) != 1.0:
        scale = graph.add_constant(np.array(factor**0.5), node, "scale")
        nodes.append(graph.make_node("Mul", [nodes[-1].output[0], scale], node))
    if low > 0:
        nodes.append(_clip(graph, node, nodes[-1].output[0], math.sqrt(low)))
    return [*nodes, graph.make_node("Reciprocal", [nodes[-1].output[0]], node)] if root[1] < 0 else nodes


def _plain_root(graph: GraphRewriting, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Sqrt, and Reciprocal for a negative exponent, in place of Pow, where an eps is added to a sum of squares."""
    added = plus_constant(graph, node.input[0])
    if added is None or _sum_of_squares(graph, added[0]) is None:
        return None
    root = graph.make_node("Sqrt", [node.input[0]], node)
    negative = graph.scalar(node.input[1]) == -0.5
    return [root, graph.make_node("Reciprocal", [root.output[0]], node)] if negative else [root]


def _factors_of_sums(graph: GraphRewriting, tensor: str) -> Sequence[str]:
    node = graph.producer(tensor, "Mul")
    return [tensor] if node is None or any(map(graph.is_constant, node.input)) else list(node.input)


def _sum_of_squares(graph: GraphRewriting, tensor: str) -> Reduction | None:
    """The reduction of a tensor a, `argument`, whose squares are summed."""
    squares = squares_of(graph, tensor)
    return squares.reduction if squares is not None and squares.factor == 1.0 else None


def _reduce(graph: GraphRewriting, near: onnx.NodeProto, op_type: str, like: Reduction, argument: str) -> onnx.NodeProto:
    axes = graph.add_constant(np.array(like.axes, np.int64), near, "axes")
    return graph.make_node(op_type, [argument, axes], near, keepdims=int(like.keeps_axes))


def _clip(graph: GraphRewriting, near: onnx.NodeProto, tensor: str, low: float) -> onnx.NodeProto:
    return graph.make_node("Clip", [tensor, graph.add_constant(np.array(low), near, "eps")], near)


def _quotient(graph: GraphRewriting, node: onnx.NodeProto, done: set[str]) -> Rewritten | None:
    """Replace gain * a / n by Mul(Div(a, n), gain) where n guards the norm of a; `done` gets the outputs of such quotients."""
    product = product_of(graph, node.output[0], done)
    for name, exponent in product.factors.items():
        norm = _guarded_norm(graph, name) if exponent in (-1.0, -0.5) else None
        if norm is None:
            continue
        reduction, argument, _, squared = norm
        product = product_of(graph, node.output[0], {*done, argument})
        if not product.is_of({argument: 1.0, name: exponent}) or squared != (exponent == -0.5) or not reduction.keeps_axes:
            continue
        done.add(node.output[0])
        if _divides_by(graph, node, argument, _plain(graph, name), squared=squared):
            return None
        return _write(graph, node, _plain(graph, name), norm, product.constant)
    return None


_Norm = tuple[Reduction, str, list[_Guard], bool]
"""The reduction, the tensor a, the guards from the inside out, and whether they act on the sum of squares, before its root."""


def _guarded_norm(graph: GraphRewriting, tensor: str) -> _Norm | None:
    inner, guards = _guards(graph, tensor)
    reduction = reduction_of(graph, inner, "ReduceL2")
    if reduction is not None:
        return reduction, reduction.argument, guards, False
    if [guard.kind for guard in guards] == ["added"] and (summed := _sum_of_squares(graph, inner)) is not None:
        return summed, summed.argument, guards, True
    return None


def _plain(graph: GraphRewriting, tensor: str) -> str:
    while (passed := graph.producer(tensor, "Expand", "Identity")) is not None:
        tensor = passed.input[0]
    return tensor


def _guards(graph: GraphRewriting, tensor: str) -> tuple[str, list[_Guard]]:
    """The tensor under the guards, and these from the inside out; Expand and Identity are passed."""
    guards: list[_Guard] = []
    while True:
        tensor = _plain(graph, tensor)
        added, clamp = plus_constant(graph, tensor), clamp_of(graph, tensor)
        if added is not None and added[1] > 0:
            tensor = added[0]
            guards.insert(0, _Guard("added", added[1]))
        elif clamp is not None and clamp.low > 0 and clamp.high == math.inf:
            tensor = clamp.argument
            guards.insert(0, _Guard("clamp", clamp.low))
        else:
            return tensor, guards


def _divides_by(graph: GraphRewriting, node: onnx.NodeProto, argument: str, norm: str, *, squared: bool) -> bool:
    """Whether a node is Div(argument, norm), or Div(argument, Sqrt(norm)), already."""
    root = graph.producer(node.input[1], "Sqrt") if squared else None
    denominator = root.input[0] if root is not None else node.input[1]
    return (
        node.op_type == "Div"
        and node.input[0] == argument
        and denominator == norm
        and _is_canonical(graph, norm, squared=squared)
    )


def _is_canonical(graph: GraphRewriting, tensor: str, *, squared: bool) -> bool:
    """Whether a norm is ReduceL2, guarded or not, or a guarded sum of squares, without Expand, Identity and Unsqueeze."""
    while (step := graph.producer(tensor, "Clip", "Max", "Add")) is not None:
        tensor = next(name for name in step.input if not graph.is_constant(name))
    return graph.producer(tensor, *(("ReduceSum", "ReduceSumSquare") if squared else ("ReduceL2",))) is not None


def _write(graph: GraphRewriting, node: onnx.NodeProto, name: str, norm: _Norm, gain: Array | None) -> Rewritten:
    reduction, argument, guards, squared = norm
    nodes: list[onnx.NodeProto] = []
    if _is_canonical(graph, name, squared=squared):
        guards = []
    elif squared:
        nodes.append(graph.make_node("Mul", [argument, argument], node))
        nodes.append(_reduce(graph, node, "ReduceSum", reduction, nodes[-1].output[0]))
    else:
        nodes.append(_reduce(graph, node, "ReduceL2", reduction, argument))
    for guard in guards:
        if guard.kind == "clamp":
            nodes.append(_clip(graph, node, nodes[-1].output[0], guard.value))
        else:
            eps = graph.add_constant(np.array(guard.value), node, "eps")
            nodes.append(graph.make_node("Add", [nodes[-1].output[0], eps], node))
    denominator = nodes[-1].output[0] if nodes else name
    if squared:
        nodes.append(graph.make_node("Sqrt", [denominator], node))
        denominator = nodes[-1].output[0]
    nodes.append(graph.make_node("Div", [argument, denominator], node))
    if gain is not None:
        nodes.append(graph.make_node("Mul", [nodes[-1].output[0], graph.add_constant(gain, node, "gain")], node))
    return Rewritten(KIND, graph.name(node), graph.replace(node, nodes))
