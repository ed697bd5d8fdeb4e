"""A linear layer whose output channels are divided among several readers -> one layer for each of them.

    as written    y = layout(x W + b)    q, k, v = y[I_1], y[I_2], y[I_3]          Split, Gather or Slice along one axis of y
    rewritten     q = layout_1(x W[:, S_1] + b[S_1]) ...    S_i: output channels from which I_i takes its values

The layout, Reshape and Transpose with the bias or another constant anywhere between, keeps its nodes; the divided axis gets
shorter. S_i follows from it: back through a Transpose the axis moves, back through a Reshape it is one factor of a longer axis,

    (.., a * n * b, ..) -> (.., n, ..)    S = {(i * n + j) * b + k: i < a, j in I, k < b}

Every part is exact, column by column. TensorRT-RTX divides such layers, too, but dequantizes the joint weight for it and
multiplies in float; it runs separate layers in INT8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import attribute, infer_types
from calib.qdq_placement import channel_axis
from edge.onnx_import.graph_rewriting import GraphRewriting, int_constants
from edge.onnx_import.rewritten import Rewritten

KIND = "joint_linear"
_TAKING = ("Split", "Gather", "Slice")
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")
_MOST_ROUNDS = 3
"""A part may be divided again: queries from keys and values, then keys from values."""
_BATCH = 2
"""Stands for a free axis while shapes are followed."""

Indices = NDArray[np.int64]
Shape = tuple[int, ...]
Shapes = dict[str, Shape]


@dataclass(frozen=True)
class _Part:
    """A tensor that takes `indices` along the divided axis; with `removes_axis` the one index, and the axis is gone."""

    tensor: str
    indices: Indices
    removes_axis: bool = False


@dataclass(frozen=True)
class _Step:
    """A node between layer and readers; the divided axis of its output.

    `factors` are (a, n, b) of the input's axis of which a Reshape makes it; (1, n, 1) where the axis stays as it is.
    """

    node: onnx.NodeProto
    axis: int
    factors: Shape


def split_joint_linears(model: onnx.ModelProto) -> list[Rewritten]:
    """Give every reader of some channels of a MatMul, Gemm or ungrouped Conv a layer of its own, in place."""
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
        if known.shape is not None and None not in known.shape:
            shapes[name] = tuple(size or 0 for size in known.shape)
    for node in graph.forward():
        if _is_linear(graph, node):
            into = _split(graph, shapes, node)
            places += [Rewritten(KIND, graph.name(node), into)] if into else []
    graph.finish()
    return places


def _is_linear(graph: GraphRewriting, node: onnx.NodeProto) -> bool:
    with_weight = node.op_type in ("MatMul", "Gemm", "Conv") and not graph.is_constant(node.input[0])
    return with_weight and all(map(graph.is_constant, node.input[1:])) and int(attribute(node, "group", 1)) == 1


def _split(graph: GraphRewriting, shapes: Shapes, layer: onnx.NodeProto) -> str:
    """Divide a layer among its readers; the name of the first part, "" where it is not divided."""
    tensor, layout = str(layer.output[0]), list[onnx.NodeProto]()
    while (reader := graph.reader(tensor)) is not None and _moves(graph, shapes, reader, tensor):
        layout.append(reader)
        tensor = reader.output[0]
    readers = graph.readers(tensor) if tensor in shapes else []
    taken = [_taken(graph, shapes, reader, tensor) for reader in readers]
    axes, parts = {axis for axis, _ in taken}, [part for _, some in taken for part in some]
    if len(axes) != 1 or len(parts) < 2 or not all(some for _, some in taken):
        return ""
    if any(np.intersect1d(one.indices, other.indices).size for one, other in combinations(parts, 2)):
        return ""
    steps = _steps(graph, shapes, layout, axes.pop())
    if steps is None or layer.output[0] not in shapes:
        return ""
    axis, followed = steps
    if axis != (1 if layer.op_type == "Conv" else len(shapes[layer.output[0]]) - 1):
        return ""
    names, number = list[str](), 0
    for reader, (_, some) in zip(readers, taken, strict=True):
        nodes: list[onnx.NodeProto] = []
        for part in some:
            made = _part(graph, shapes, (layer, followed), part, f"part_{number}")
            nodes, number = [*made, *nodes], number + 1  # the reader's first output comes last
            names.append(made[0].name)
        graph.replace(reader, nodes)
    return names[0]


def _moves(graph: GraphRewriting, shapes: Shapes, node: onnx.NodeProto, tensor: str) -> bool:
    """Whether a node moves the values of a tensor, or computes each of them with a constant."""
    if node.op_type in ("Transpose", "Reshape"):
        return node.input[0] == tensor and all(map(graph.is_constant, node.input[1:]))
    computes = node.op_type in _WITH_CONSTANT and any(map(graph.is_constant, node.input))
    return computes and shapes.get(node.output[0]) == shapes.get(tensor)


def _taken(graph: GraphRewriting, shapes: Shapes, node: onnx.NodeProto, tensor: str) -> tuple[int, list[_Part]]:
    """The axis along which a node takes a part or parts of a tensor, and these; no parts for another node."""
    if node.op_type not in _TAKING or node.input[0] != tensor:
        return 0, []
    shape, output = shapes[tensor], node.output[0]
    if node.op_type == "Slice":
        starts, ends, axes, strides = (int_constants(graph, node, "", at) for at in range(1, 5))
        if not starts or not ends or axes is None or strides is None or len(axes) != 1:
            return 0, []
        axis = axes[0] % len(shape)
        return axis, [_Part(output, np.arange(shape[axis])[starts[0] : ends[0] : strides[0] if strides else 1])]
    axis = int(attribute(node, "axis", 0)) % len(shape)
    whole = np.arange(shape[axis])
    if node.op_type == "Gather":
        wanted = graph.array(node.input[1])
        if wanted is None or wanted.ndim > 1:
            return 0, []
        return axis, [_Part(output, whole[wanted.reshape(-1)], removes_axis=wanted.ndim == 0)]
    if any(name not in shapes for name in node.output):
        return 0, []
    ends = np.cumsum([shapes[name][axis] for name in node.output])
    return axis, [_Part(name, some) for name, some in zip(node.output, np.split(whole, ends[:-1]), strict=True)]


def _steps(
    graph: GraphRewriting, shapes: Shapes, layout: Sequence[onnx.NodeProto], axis: int
) -> tuple[int, list[_Step]] | None:
    """Follow a divided axis back through the layout: the axis of the layer's output, and the way; None where it is lost."""
    steps: list[_Step] = []
    for node in reversed(layout):
        if node.input[0] not in shapes and node.op_type == "Reshape":
            return None
        after = shapes[node.output[0]]
        at, factors = axis, (1, after[axis], 1)
        if node.op_type == "Transpose":
            at = int(attribute(node, "perm", list(range(len(after)))[::-1])[axis])
        elif node.op_type == "Reshape":
            origin = _origin(shapes[node.input[0]], after, axis)
            target = graph.array(node.input[1])
            if origin is None or target is None:
                return None
            at, factors = origin
            if at != axis and at < len(target) and target[at] == 0:  # copies the size of the axis that gets shorter
                return None
        steps.insert(0, _Step(node, axis, factors))
        axis = at
    return axis, steps


def _origin(before: Shape, after: Shape, axis: int) -> tuple[int, Shape] | None:
    """The axis of a Reshape's input of which `axis` of its output is a factor, and the factors (a, n, b)."""
    ahead, size = prod(after[:axis]), after[axis]
    for at, length in enumerate(before):
        start = prod(before[:at])
        if ahead % start == 0:
            a = ahead // start
            b = length // (a * size)
            if a * size * b == length:
                return at, (a, size, b)
    return None


def _part(
    graph: GraphRewriting, shapes: Shapes, way: tuple[onnx.NodeProto, Sequence[_Step]], part: _Part, role: str
) -> list[onnx.NodeProto]:
    """The nodes that compute one part, from the layer to the tensor of that name."""
    layer, steps = way
    indices, along = part.indices, list[Indices]()
    for step in reversed(steps):
        along.insert(0, indices)
        a, n, b = step.factors
        indices = ((np.arange(a)[:, None, None] * n + indices[:, None]) * b + np.arange(b)).reshape(-1)
    inputs = [str(layer.input[0])]
    for at, name in list(enumerate(layer.input))[1:]:
        values = graph.array(name)
        assert values is not None
        axis = channel_axis(layer, at, values.ndim) if at == 1 else -1
        inputs.append(graph.add_constant(_take(values, indices, axis), layer, f"{role}_{at}"))
    nodes = [graph.copy_node(layer, inputs, role)]
    for step, some in zip(steps, along, strict=True):
        inputs = [nodes[-1].output[0] if not graph.is_constant(name) else name for name in step.node.input]
        for at, values in enumerate(map(graph.array, step.node.input)):
            if values is None:
                continue
            if step.node.op_type == "Reshape":
                values = np.array([len(some) if i == step.axis and size > 0 else size for i, size in enumerate(values)])
            else:
                values = _take(values, some, step.axis - len(shapes[step.node.output[0]]))
            inputs[at] = graph.add_constant(values, step.node, f"{role}_{at}")
        nodes.append(graph.copy_node(step.node, inputs, role))
    if part.removes_axis:
        axis = steps[-1].axis if steps else 0
        axes = graph.add_constant(np.array([axis]), layer, f"{role}_axes")
        nodes.append(graph.make_node("Squeeze", [nodes[-1].output[0], axes], layer))
    nodes[-1].output[0] = part.tensor
    return nodes


def _take(values: NDArray[np.generic], indices: Indices, axis: int) -> NDArray[np.generic]:
    """`values` at indices of an axis; as they are where they have not that axis (counted from the last) or one for all."""
    if -values.ndim <= axis < values.ndim and values.shape[axis] > 1:
        return np.take(values, indices, axis)
    return values
