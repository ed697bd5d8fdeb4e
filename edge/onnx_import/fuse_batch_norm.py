"""BatchNormalization that an exporter left after a linear layer -> into its weight and bias.

    W <- s W,   b <- beta + s (b - mean),   s = gamma / sqrt(var + eps)          along the output channels

Exact: nothing lies between the two but a Reshape that leaves the channels alone, so that padding plays no part. Products are
taken in float64 and rounded once. The layer must be read by this node alone. A BatchNormalization that follows anything else is
left.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from calib.graph import attribute
from edge.onnx_import.graph_rewriting import Array, GraphRewriting
from edge.onnx_import.rewritten import Rewritten

KIND = "batch_norm"


def fuse_batch_norms(model: onnx.ModelProto) -> list[Rewritten]:
    """Fold every BatchNormalization that follows a Conv, ConvTranspose, Gemm or MatMul, in place."""
    graph, places = GraphRewriting(model), list[Rewritten]()
    for node in graph.backward():
        fused = _folded(graph, node) if node.op_type == "BatchNormalization" else None
        if fused is not None:
            places.append(Rewritten(KIND, graph.name(node), graph.replace(node, fused)))
    graph.finish()
    return places[::-1]


@dataclass(frozen=True)
class _Layer:
    """A linear layer that one node reads: the node that multiplies, its weight, its bias, and the Reshape after it, if any."""

    node: onnx.NodeProto
    weight: Array
    bias: Array
    reshape: onnx.NodeProto | None


def _folded(graph: GraphRewriting, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    values = [graph.array(name) for name in node.input[1:5]]
    gamma, beta, mean, variance = (np.empty(0) if v is None else v.astype(np.float64) for v in values)
    layer = _layer(graph, node.input[0], gamma.size)
    in_use = any(v is None for v in values) or any(node.output[1:]) or bool(attribute(node, "training_mode", 0))
    if layer is None or in_use:
        return None
    scale = gamma / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
    weight = _scale_weight(layer.node, layer.weight, scale)
    if weight is None:
        return None
    shift = graph.add_constant((beta + scale * (layer.bias - mean)).astype(layer.weight.dtype), layer.node, "folded_bias")
    folded_weight = graph.add_constant(weight.astype(layer.weight.dtype), layer.node, "folded_weight")
    if layer.node.op_type == "MatMul":
        nodes = [graph.copy_node(layer.node, [layer.node.input[0], folded_weight])]
        nodes.append(graph.make_node("Add", [nodes[0].output[0], shift], node))
        if layer.reshape is not None:
            nodes.append(graph.copy_node(layer.reshape, [nodes[-1].output[0], *layer.reshape.input[1:]]))
        return nodes
    fused = graph.copy_node(layer.node, [layer.node.input[0], folded_weight, shift])
    for item in [item for item in fused.attribute if item.name == "beta"]:
        fused.attribute.remove(item)
    return [fused]


def _layer(graph: GraphRewriting, tensor: str, channels: int) -> _Layer | None:
    """The layer that computes a tensor; a MatMul only where its columns are axis 1 of a matrix."""
    path, reshape = [tensor], graph.producer(tensor, "Reshape", "Flatten")
    if reshape is not None:
        path.append(reshape.input[0])
    add = graph.producer(path[-1], "Add")
    if add is not None:
        path.append(next((name for name in add.input if not graph.is_constant(name)), ""))
    node = graph.producer(path[-1], "MatMul", *(("Conv", "ConvTranspose", "Gemm") if reshape is None else ()))
    weight = graph.array(node.input[1]) if node is not None else None
    if node is None or weight is None or not all(graph.is_read_once(name) for name in path):
        return None
    shapes = [graph.shape(name) or () for name in path]
    if node.op_type == "MatMul" and (len(shapes[0]) != 2 or any(shape[-1:] != (channels,) for shape in shapes)):
        return None
    own = [name for name in node.input[2:] if name]
    added = [name for name in add.input if name != path[-1]] if add is not None else []
    axis = 1 - weight.ndim if added and node.op_type.startswith("Conv") else -1
    bias = _along(graph.array((own + added)[0]), axis, channels) if own or added else np.zeros(channels)
    if bias is None or (own and added):
        return None
    return _Layer(node, weight, bias * float(attribute(node, "beta", 1.0)), reshape)


def _along(bias: Array | None, axis: int, channels: int) -> Array | None:
    """A bias (channels,) float64 of a constant that varies along one negative axis alone."""
    along = bias is not None and bias.ndim >= -axis and bias.shape[axis] == bias.size == channels
    if bias is None or not (along or bias.size == 1):
        return None
    return np.broadcast_to(bias.astype(np.float64).reshape(-1), (channels,))


def _scale_weight(layer: onnx.NodeProto, weight: Array, scale: Array) -> Array | None:
    """The weight (float64) times a factor per output channel; None where the sizes do not fit."""
    wide = weight.astype(np.float64)
    if layer.op_type == "Conv":
        return wide * scale.reshape(-1, *[1] * (wide.ndim - 1)) if wide.shape[0] == scale.size else None
    if layer.op_type == "ConvTranspose":  # (C_in, C_out / groups, ...): channel g * C_out / groups + o
        groups = int(attribute(layer, "group", 1))
        if wide.shape[0] % groups or wide.shape[1] * groups != scale.size:
            return None
        grouped = wide.reshape(groups, wide.shape[0] // groups, wide.shape[1], prod(wide.shape[2:]))
        return (grouped * scale.reshape(groups, 1, -1, 1)).reshape(wide.shape)
    axis = 0 if layer.op_type == "Gemm" and attribute(layer, "transB", 0) else 1
    if wide.ndim != 2 or wide.shape[axis] != scale.size:
        return None
    return wide * (scale.reshape(-1, 1) if axis == 0 else scale)
