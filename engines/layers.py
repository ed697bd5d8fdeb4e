"""What a graph asks of each layer that multiplies: its MACs, the precision it requests, and what stands in INT8's way.

    requested = "int8"     both operands come straight from DequantizeLinear
                "fp16"...  otherwise: the type of the first operand

A "problem" is a reason, visible in the graph, for which TensorRT computes such a layer in float without saying so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx

from calib.graph import GraphIndex, TensorType, attribute, index_graph, infer_types, to_array
from calib.macs import count_macs

DEQUANTIZE = "DequantizeLinear"
TYPE_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}


@dataclass(frozen=True)
class Layer:
    """A node that multiplies.

    Attributes:
        name: unique node name.
        op_type: Conv, Gemm or MatMul.
        macs: multiply-accumulates for one image.
        requested: precision that the graph asks for.
        problem: why it may not become INT8, empty if nothing speaks against it.
    """

    name: str
    op_type: str
    macs: int
    requested: str
    problem: str


@dataclass(frozen=True)
class LayerEvidence:
    """What an engine says of one layer.

    Attributes:
        actual: "int8", "fp16", "fp32", "bf16", or "unknown" where the engine does not tell.
        source: where this was read, one phrase.
    """

    actual: str
    source: str


def read_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Every Conv, MatMul and Gemm of a graph, in graph order. Raises InputError when a shape cannot be inferred."""
    macs = count_macs(model, batch=1)
    index, types = index_graph(model), infer_types(model)
    layers = []
    for name, node in zip(index.names, model.graph.node, strict=True):
        if name in macs:
            requested, problem = _request(node, index, types, model)
            layers.append(Layer(name, node.op_type, macs[name], requested, problem))
    return tuple(layers)


def unique_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names that belong to exactly one node: only these can be found again in an engine without ambiguity."""
    counts = Counter(n.name for n in model.graph.node)
    return tuple(n.name for n in model.graph.node if n.name and counts[n.name] == 1)


def _request(node: onnx.NodeProto, index: GraphIndex, types: dict[str, TensorType], model: onnx.ModelProto) -> tuple[str, str]:
    sources = [_dequantizer(tensor, index, model) for tensor in node.input[:2]]
    if all(sources):
        problems = (_operand_problem(node, i, s, index) for i, s in enumerate(sources) if s is not None)
        return "int8", "; ".join(p for p in problems if p)
    dtype = types[node.input[0]].dtype if node.input[0] in types else 0
    missing = " and ".join(f"operand {'AB'[i]}" for i, s in enumerate(sources) if s is None)
    return TYPE_NAMES.get(dtype, "unknown"), f"the graph has no Q/DQ on {missing}"


def _dequantizer(tensor: str, index: GraphIndex, model: onnx.ModelProto) -> onnx.NodeProto | None:
    position = index.producers.get(tensor)
    node = None if position is None else model.graph.node[position]
    return node if node is not None and node.op_type == DEQUANTIZE else None


def _operand_problem(node: onnx.NodeProto, operand: int, dequantize: onnx.NodeProto, index: GraphIndex) -> str:
    side = "AB"[operand]
    scale = index.constants.get(dequantize.input[1])
    if scale is None:
        return f"the scale of operand {side} is no constant"
    if len(dequantize.input) > 2 and dequantize.input[2]:
        zero = index.constants.get(dequantize.input[2])
        if zero is None or np.any(to_array(zero)):
            return f"the zero-point of operand {side} is not 0"
    if int(np.prod(scale.dims)) <= 1:
        return ""
    if operand == 0 or dequantize.output[0] not in index.constant_like:
        return f"operand {side} is an activation with a scale per channel"
    wanted = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
    axis = int(attribute(dequantize, "axis", 1))
    weight = index.constants.get(dequantize.input[0])
    if axis < 0 and weight is not None:
        axis += len(weight.dims)
    return "" if axis == wanted else f"the weight's scales run along axis {axis}, which is summed over"
