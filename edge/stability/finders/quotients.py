"""Divisions by the root of a sum or mean of squares, in every order of their factors and every spelling.

gain * a / n     Div(a, n), Div(gain * a, n), Mul(a, 1 / n), Mul(gain * a, 1 / n), Mul(a, gain / n); gain: constants
1 / n            Reciprocal(n), Pow(n, -1), Div(gain, n), Pow(s, -0.5), and such times a constant
n                ReduceL2(a), Sqrt(s), Pow(s, 0.5), times a constant; Expand and Identity in between are skipped
s                ReduceSumSquare(a), ReduceSum or ReduceMean of Mul(a, a), of Pow(a, 2) or of the same of Abs(a); times a
                 constant, as for a variance over N - 1
eps              Clip or Max (a clamp) or Add (added), with a constant, on n or on s; sqrt(n^2 + eps) as ReduceL2(Pad(n)), as
                 the import writes RMS norms
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx

from calib.graph import attribute, to_array
from edge.onnx_import.products import square_of
from edge.stability.finders.site_graph import SiteGraph
from edge.stability.site import Eps

Unit = Literal["norm", "square"]
_SUMS = ("ReduceSum", "ReduceMean", "GlobalAveragePool")


@dataclass(frozen=True)
class Root:
    """The root of a sum or mean of the squares of a tensor.

    Attributes:
        reducer: the node that sums.
        argument: the tensor whose squares are summed.
        mean: whether the sum is divided by the number of its terms, or by another constant.
        nodes: all nodes of it, those that apply an eps included.
        eps: see `Eps`.
    """

    reducer: onnx.NodeProto
    argument: str
    mean: bool = False
    nodes: tuple[onnx.NodeProto, ...] = ()
    eps: tuple[Eps, ...] = ()


@dataclass(frozen=True)
class Quotient:
    """gain * a / root, computed by `node`.

    Attributes:
        node: the division or multiplication whose output it is.
        numerator: the tensor a.
        root: the denominator.
        between: nodes of it that are neither `node` nor of the root.
        gain: largest magnitude of the constants that it is multiplied by.
    """

    node: onnx.NodeProto
    numerator: str
    root: Root
    between: tuple[onnx.NodeProto, ...] = ()
    gain: float = 1.0

    @property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        """All nodes of it."""
        return (*self.root.nodes, *self.between, self.node)


def find_quotients(graph: SiteGraph) -> Iterator[Quotient]:
    """Every division of a tensor by the root of a sum or mean of its own squares, in graph order."""
    for node in graph.forward():
        if node.op_type in ("Div", "Mul") and graph.is_activation(node.output[0]):
            own = (q for q in _candidates(graph, node) if q.numerator == graph.plain(q.root.argument))
            quotient = next(own, None)
            if quotient is not None:
                yield quotient


def _candidates(graph: SiteGraph, node: onnx.NodeProto) -> Iterator[Quotient]:
    if node.op_type == "Div":
        root = root_of_squares(graph, node.input[1])
        if root is not None:
            yield from _numerators(graph, Quotient(node, node.input[0], root))
        return
    for numerator, factor in (node.input, reversed(node.input)):
        inverse = _inverse(graph, factor)
        if inverse is not None:
            root, between, gain = inverse
            yield from _numerators(graph, Quotient(node, numerator, root, between, gain))


def _numerators(graph: SiteGraph, quotient: Quotient) -> Iterator[Quotient]:
    """The quotient as it is, then with the constants of its numerator taken out."""
    numerator = graph.plain(quotient.numerator)
    yield replace(quotient, numerator=numerator)
    while (scaled := _scaled(graph, numerator)) is not None:
        node, inner, gain = scaled
        numerator = graph.plain(inner)
        quotient = replace(quotient, numerator=numerator, between=(node, *quotient.between), gain=quotient.gain * gain)
        yield quotient


def _scaled(graph: SiteGraph, tensor: str) -> tuple[onnx.NodeProto, str, float] | None:
    """(node, t, largest |c|) of a tensor computed as t * c or t / c with a constant c."""
    node = graph.computed_by(tensor, "Mul", "Div")
    if node is None:
        return None
    operands = [(node.input[0], node.input[1])] + ([(node.input[1], node.input[0])] if node.op_type == "Mul" else [])
    for inner, constant in operands:
        values = graph.array(constant)
        if values is not None and values.size and np.all(np.isfinite(values)):
            magnitude = np.abs(values.astype(np.float64))
            if node.op_type == "Mul":
                return node, inner, float(magnitude.max())
            return (node, inner, float(1 / magnitude.min())) if magnitude.min() > 0 else None
    return None


def _inverse(graph: SiteGraph, tensor: str) -> tuple[Root, tuple[onnx.NodeProto, ...], float] | None:
    """Root, nodes and largest |gain| of gain / root."""
    tensor = graph.plain(tensor)
    node = graph.computed_by(tensor, "Reciprocal", "Pow", "Div", "Mul")
    if node is None:
        return None
    if node.op_type == "Reciprocal" or (node.op_type == "Pow" and graph.scalar(node.input[1]) == -1.0):
        root = root_of_squares(graph, node.input[0])
        return None if root is None else (root, (node,), 1.0)
    if node.op_type == "Pow":
        root = _root(graph, node) if graph.scalar(node.input[1]) == -0.5 else None
        return None if root is None else (root, (), 1.0)
    gain = graph.array(node.input[0]) if node.op_type == "Div" else None
    if gain is not None and gain.size:
        root = root_of_squares(graph, node.input[1])
        return None if root is None else (root, (node,), float(np.abs(gain).max()))
    scaled = _scaled(graph, tensor)
    inner = _inverse(graph, scaled[1]) if scaled is not None else None
    return None if scaled is None or inner is None else (inner[0], (*inner[1], scaled[0]), inner[2] * scaled[2])


def root_of_squares(graph: SiteGraph, tensor: str) -> Root | None:
    """The root of a sum of squares that a tensor holds, an eps included; None for anything else."""
    tensor, nodes, eps = guards(graph, tensor, "norm")
    scaled = _scaled(graph, tensor)
    node = graph.computed_by(tensor if scaled is None else scaled[1], "ReduceL2", "Sqrt", "Pow")
    if node is None or (node.op_type == "Pow" and graph.scalar(node.input[1]) != 0.5):
        return None
    if node.op_type == "ReduceL2":
        root = _padded_root(graph, node) or Root(node, node.input[0], nodes=(node,))
    elif (rooted := _root(graph, node)) is not None:
        root = rooted
    else:
        return None
    between = nodes if scaled is None else [*nodes, scaled[0]]
    return replace(root, mean=root.mean or scaled is not None, nodes=(*between, *root.nodes), eps=(*eps, *root.eps))


def _padded_root(graph: SiteGraph, node: onnx.NodeProto) -> Root | None:
    """The root that a constant was put beside, in a ReduceL2 of the two: ||(n, e)|| = sqrt(n^2 + e^2)."""
    pad = graph.computed_by(node.input[0], "Pad")
    shape, axes = graph.shape(node.input[0]), graph.reduced_axes(node)
    value = graph.scalar(pad.input[2]) if pad is not None and len(pad.input) > 2 and pad.input[2] else None
    if pad is None or shape is None or value is None or axes is None or [shape[axis] for axis in axes] != [2]:
        return None
    root = root_of_squares(graph, pad.input[0])
    if root is None:
        return None
    eps = Eps("added", "norm", value, graph.name(pad), str(pad.input[2]))
    return replace(root, nodes=(node, pad, *root.nodes), eps=(eps, *root.eps))


def _root(graph: SiteGraph, node: onnx.NodeProto) -> Root | None:
    """The sum of squares whose root `node` takes, as a root."""
    root = sum_of_squares(graph, node.input[0])
    return None if root is None else replace(root, nodes=(node, *root.nodes))


def sum_of_squares(graph: SiteGraph, tensor: str) -> Root | None:
    """The sum or mean of squares that a tensor holds, an eps and a constant factor included; not yet a root."""
    tensor, nodes, eps = guards(graph, tensor, "square")
    scaled = _scaled(graph, tensor)
    if scaled is not None:
        inner, more, added = guards(graph, scaled[1], "square")
        tensor, nodes, eps = inner, [*nodes, scaled[0], *more], [*eps, *added]
    reducer = graph.computed_by(tensor, *_SUMS, "ReduceSumSquare")
    if reducer is None:
        return None
    argument = str(reducer.input[0])
    chain = [*nodes, reducer]
    if reducer.op_type != "ReduceSumSquare":
        square = graph.computed_by(argument, "Mul", "Pow")
        squared = square_of(graph, argument)
        if square is None or squared is None:
            return None
        chain.append(square)
        argument = squared
    magnitude = graph.computed_by(argument, "Abs")
    if magnitude is not None:
        chain.append(magnitude)
        argument = str(magnitude.input[0])
    mean = scaled is not None or reducer.op_type in ("ReduceMean", "GlobalAveragePool")
    if mean:
        eps = [replace(item, acts_on="mean") for item in eps]
    return Root(reducer, argument, mean, tuple(chain), tuple(eps))


def guards(graph: SiteGraph, tensor: str, acts_on: Unit) -> tuple[str, list[onnx.NodeProto], list[Eps]]:
    """Walk up through Identity, Expand and the nodes that apply an eps: the tensor before them, the nodes, the eps."""
    nodes: list[onnx.NodeProto] = []
    found: list[Eps] = []
    while (node := graph.computed_by(tensor, "Clip", "Max", "Add", "Identity", "Expand")) is not None:
        source = str(node.input[0])
        if node.op_type in ("Clip", "Max", "Add"):
            guard = _eps(graph, node, acts_on)
            if guard is None:
                break
            source, eps = guard
            found.append(eps)
        nodes.append(node)
        tensor = source
    return tensor, nodes, found


def _eps(graph: SiteGraph, node: onnx.NodeProto, acts_on: Unit) -> tuple[str, Eps] | None:
    """The guarded tensor and the eps of a Clip, Max or Add with one constant; None for anything else."""
    name = graph.name(node)
    if node.op_type == "Clip" and len(node.input) == 1:  # opset < 11: the bounds are attributes
        low = attribute(node, "min", None)
        return None if low is None else (node.input[0], Eps("clamp", acts_on, float(low), name, ""))
    constants = [t for t in node.input if graph.is_constant(t)]
    others = [t for t in node.input if t and not graph.is_constant(t)]
    if node.op_type == "Clip":
        constants = [node.input[1]] if graph.is_constant(node.input[1]) else []
    if len(constants) != 1 or len(others) != 1:
        return None
    values = to_array(graph.index.constants[constants[0]])
    if values.size != 1:
        return None
    kind: Literal["clamp", "added"] = "added" if node.op_type == "Add" else "clamp"
    return others[0], Eps(kind, acts_on, float(values.reshape(-1)[0]), name, constants[0])
