"""The joint layer of queries, keys and values -> one layer for each of them.

    as written    y = layout(x W + b)    q, k, v = y[I_1], y[I_2], y[I_3]          Split, Gather or Slice along one axis of y
    rewritten     q = layout_1(x W[:, S_1] + b[S_1]) ...    S_i: the block of output channels from which I_i takes its values

The layout, Reshape and Transpose with the bias or another constant anywhere between, keeps its nodes; the divided axis gets
shorter. S_i follows from it: back through a Transpose the axis moves, back through a Reshape it is the first factor of a
longer one,

    (.., n * b, ..) -> (.., n, b, ..)    S = [start * b, stop * b)    for I = [start, stop)

Every part is exact, column by column. Measured on TensorRT-RTX 1.7: it divides a joint MatMul or Gemm itself where every part
is a block of channels and is an operand of a product of two activations, as it stands or times a constant; for this it
dequantizes the joint weight, and multiplies in float. Separate layers it multiplies in INT8, as one. Whatever else is
divided stays INT8, in fewer kernels than separate layers take: parts that interleave, head by head, or go through a norm, a
rotation, an activation or, after another layout, a Reshape; parts of a convolution; gates. Those are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import attribute, infer_types
from calib.qdq_placement import channel_axis
from edge.onnx_import.graph_rewriting import Array, GraphRewriting, int_constants
from edge.onnx_import.rewritten import Rewritten

KIND = "joint_linear"
_TAKING = ("Split", "Gather", "Slice")
_LAYOUT = ("Transpose", "Reshape")
_PASSING = (*_TAKING, "Transpose", "Squeeze", "Unsqueeze")
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")
_MOST_ROUNDS = 3
"""A part may be divided again: queries from keys and values, then keys from values."""
_BATCH = 2
"""Stands for a free axis while shapes are followed."""

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


@dataclass(frozen=True)
class _Part:
    """A tensor that takes [start, stop) along the divided axis; with `removes_axis` it takes one, and the axis is gone."""

    tensor: str
    start: int
    stop: int
    removes_axis: bool = False

    def times(self, factor: int) -> "_Part":
        """The same part of an axis that is longer by a factor."""
        return _Part(self.tensor, self.start * factor, self.stop * factor)


@dataclass(frozen=True)
class _Step:
    """A node between the layer and its readers: the divided axis of its output, and how much longer that of its input is."""

    node: onnx.NodeProto
    axis: int
    factor: int


def split_joint_linears(model: onnx.ModelProto) -> list[Rewritten]:
    """Give every operand of attention that a joint MatMul or Gemm computes a layer of its own, in place."""
    places = list[Rewritten]()
    for _ in range(_MOST_ROUNDS):
        divided = _split_once(model)
        places += divided
        if not divided:
            break
    return places


def _split_once(model: onnx.ModelProto) -> list[Rewritten]:
    graph, places = GraphRewriting(model), list[Rewritten]()
    if not any(node.op_type in _TAKING for node in graph.forward()):
        return places
    shapes: Shapes = {}
    for name, known in infer_types(model, _BATCH).items():
        sizes = [size for size in known.shape or () if size]
        if sizes and len(sizes) == len(known.shape or ()):
            shapes[name] = tuple(sizes)
    for node in graph.forward():
        constants = [graph.is_constant(name) for name in node.input]
        if node.op_type in ("MatMul", "Gemm") and constants[0] is False and all(constants[1:]):
            into = _split(graph, shapes, node)
            places += [Rewritten(KIND, graph.name(node), into)] if into else []
    graph.finish()
    return places


def _split(graph: GraphRewriting, shapes: Shapes, layer: onnx.NodeProto) -> str:
    """Divide a layer among its readers; the name of the first part, "" where it is left."""
    tensor, layout = str(layer.output[0]), list[onnx.NodeProto]()
    while (reader := graph.reader(tensor)) is not None and _moves(graph, shapes, reader, tensor):
        layout.append(reader)
        tensor = reader.output[0]
    readers = graph.readers(tensor) if tensor in shapes else []
    taken = [_taken(graph, shapes, reader, tensor) for reader in readers]
    axes, parts = {axis for axis, _ in taken}, [part for _, some in taken for part in some]
    if len(axes) != 1 or len(parts) < 2 or not all(some for _, some in taken):
        return ""
    ranges = sorted((part.start, part.stop) for part in parts)
    if any(first[1] > second[0] for first, second in pairwise(ranges)) or any(start >= stop for start, stop in ranges):
        return ""
    passing = ("Reshape", *_PASSING) if not any(node.op_type in _LAYOUT for node in layout) else _PASSING
    if not all(_is_operand(graph, part.tensor, passing) for part in parts):
        return ""
    steps = _steps(graph, shapes, layout, axes.pop())
    if steps is None or steps[0] != len(shapes.get(layer.output[0], ())) - 1:
        return ""
    names: list[str] = []
    for reader, (_, some) in zip(readers, taken, strict=True):
        nodes: list[onnx.NodeProto] = []
        for part in some:
            made = _part(graph, shapes, (layer, steps[1]), part, f"part_{len(names)}")
            nodes = [*made, *nodes]  # the reader's first output comes last
            names.append(made[0].name)
        graph.replace(reader, nodes)
    return names[0]


def _moves(graph: GraphRewriting, shapes: Shapes, node: onnx.NodeProto, tensor: str) -> bool:
    """Whether a node moves the values of a tensor, or computes each of them with a constant."""
    if node.op_type in _LAYOUT:
        return node.input[0] == tensor and all(map(graph.is_constant, node.input[1:]))
    computes = node.op_type in _WITH_CONSTANT and any(map(graph.is_constant, node.input))
    return computes and shapes.get(node.output[0]) == shapes.get(tensor)


def _is_operand(graph: GraphRewriting, tensor: str, passing: Sequence[str]) -> bool:
    """Whether all that reads a tensor, through these operators or with a constant, are products of two activations."""
    readers = graph.readers(tensor)
    for node in readers:
        constants = any(map(graph.is_constant, node.input))
        if node.op_type == "MatMul" and not constants:
            continue
        passes = node.op_type in passing or (node.op_type in _WITH_CONSTANT and constants)
        if not passes or not all(_is_operand(graph, output, passing) for output in node.output):
            return False
    return bool(readers)


def _taken(graph: GraphRewriting, shapes: Shapes, node: onnx.NodeProto, tensor: str) -> tuple[int, list[_Part]]:
    """The axis along which a node takes a part or parts of a tensor, and these; no parts for another node."""
    if node.op_type not in _TAKING or node.input[0] != tensor:
        return 0, []
    if node.op_type == "Slice":
        return _sliced(graph, shapes[tensor], node)
    axis = int(attribute(node, "axis", 0)) % len(shapes[tensor])
    if node.op_type == "Gather":
        wanted = graph.array(node.input[1])
        if wanted is None or wanted.size != 1 or wanted.ndim > 1:
            return 0, []
        start = int(wanted.reshape(-1)[0]) % shapes[tensor][axis]
        return axis, [_Part(node.output[0], start, start + 1, removes_axis=wanted.ndim == 0)]
    if any(name not in shapes for name in node.output):
        return 0, []
    ends = np.cumsum([shapes[name][axis] for name in node.output])
    return axis, [_Part(name, int(end) - shapes[name][axis], int(end)) for name, end in zip(node.output, ends, strict=True)]


def _sliced(graph: GraphRewriting, shape: Shape, node: onnx.NodeProto) -> tuple[int, list[_Part]]:
    starts, ends, axes, strides = (int_constants(graph, node, "", at) for at in range(1, 5))
    if not starts or not ends or axes is None or len(axes) != 1 or strides not in ([], [1]):
        return 0, []
    axis = axes[0] % len(shape)
    start, stop, _ = slice(starts[0], ends[0]).indices(shape[axis])
    return axis, [_Part(node.output[0], start, stop)]


def _steps(
    graph: GraphRewriting, shapes: Shapes, layout: Sequence[onnx.NodeProto], axis: int
) -> tuple[int, list[_Step]] | None:
    """Follow a divided axis back through the layout: the axis of the layer's output, and the way; None where it is lost."""
    steps: list[_Step] = []
    for node in reversed(layout):
        at, factor, rank = axis, 1, len(shapes[node.output[0]])
        if node.op_type == "Transpose":
            at = int(attribute(node, "perm", list(range(rank))[::-1])[axis])
        elif node.op_type == "Reshape":
            origin = _origin(shapes.get(node.input[0], ()), shapes[node.output[0]], axis)
            target = graph.array(node.input[1])
            if origin is None or target is None:
                return None
            at, factor = origin
            if at != axis and at < len(target) and target[at] == 0:  # copies the size of the axis that gets shorter
                return None
        steps.insert(0, _Step(node, axis, factor))
        axis = at
    return axis, steps


def _origin(before: Shape, after: Shape, axis: int) -> tuple[int, int] | None:
    """The axis of a Reshape's input of which `axis` of its output is the first factor, and the product of the others."""
    for at, length in enumerate(before):
        if prod(before[:at]) == prod(after[:axis]) and length % after[axis] == 0:
            return at, length // after[axis]
    return None


def _part(
    graph: GraphRewriting, shapes: Shapes, way: tuple[onnx.NodeProto, Sequence[_Step]], part: _Part, role: str
) -> list[onnx.NodeProto]:
    """The nodes that compute one part, from the layer to the tensor of that name."""
    layer, steps = way
    inputs = [str(layer.input[0])]
    channels = part.times(prod(step.factor for step in steps))
    for at, name in list(enumerate(layer.input))[1:]:
        values = graph.array(name)
        assert values is not None
        axis = channel_axis(layer, at, values.ndim) if at == 1 else -1
        inputs.append(graph.add_constant(_take(values, channels, axis), layer, f"{role}_{at}"))
    nodes = [graph.copy_node(layer, inputs, role)]
    for number, step in enumerate(steps):
        here = part.times(prod(later.factor for later in steps[number + 1 :]))
        inputs = [name if graph.is_constant(name) else nodes[-1].output[0] for name in step.node.input]
        for at, values in enumerate(map(graph.array, step.node.input)):
            if values is not None and step.node.op_type == "Reshape":
                sizes = [here.stop - here.start if i == step.axis and size > 0 else size for i, size in enumerate(values)]
                inputs[at] = graph.add_constant(np.array(sizes, np.int64), step.node, f"{role}_{at}")
            elif values is not None:
                axis = step.axis - len(shapes[step.node.output[0]])
                inputs[at] = graph.add_constant(_take(values, here, axis), step.node, f"{role}_{at}")
        nodes.append(graph.copy_node(step.node, inputs, role))
    if part.removes_axis:
        axes = graph.add_constant(np.array([steps[-1].axis if steps else -1]), layer, f"{role}_axes")
        nodes.append(graph.make_node("Squeeze", [nodes[-1].output[0], axes], layer))
    nodes[-1].output[0] = part.tensor
    return nodes


def _take(values: Array, part: _Part, axis: int) -> NDArray[np.generic]:
    """A part of an axis; all values where they have not that axis (counted from the last) or one value for all of it."""
    if -values.ndim <= axis < values.ndim and values.shape[axis] > 1:
        return np.take(values, np.arange(part.start, part.stop), axis)
    return values
