"""Multiply-accumulates (MACs) per node: the unit of a network's INT8 share."""

import math
from collections.abc import Mapping

import onnx

from calib.errors import GraphError
from calib.graph import TensorType, attribute, index_graph, infer_types

MAC_OPS = ("Conv", "Gemm", "MatMul")


def count_macs(model: onnx.ModelProto, batch: int = 1) -> dict[str, int]:
    """Multiply-accumulates of every Conv, MatMul (any rank) and Gemm of the main graph, in graph order.

        Conv     elements of the output x (C_in / group) x product of the kernel's sides; padding counts as data
        MatMul   elements of the output x K           (..., M, K) x (..., K, N)
        Gemm     M x N x K                            transA and transB change K's place, not the count

    Biases and the alpha and beta of Gemm are not counted. Quantize, dequantize and Cast nodes do not change the result.

    `batch` is the value of a symbolic first dimension of the inputs; a fixed first dimension stays as it is.
    Returns unique node name, see `calib.graph.node_names` -> MACs. Raises GraphError when a needed shape cannot be inferred.
    """
    types = infer_types(model, batch)
    return {
        name: _node_macs(name, node, types)
        for name, node in index_graph(model).nodes.items()
        if node.op_type in MAC_OPS and node.domain in ("", "ai.onnx")
    }


def _node_macs(name: str, node: onnx.NodeProto, types: Mapping[str, TensorType]) -> int:
    if node.op_type == "Conv":
        weight = _shape(name, node.input[1], types)
        return math.prod(_shape(name, node.output[0], types)) * math.prod(weight[1:])  # weight is (C_out, C_in/group, *k)
    left = _shape(name, node.input[0], types)
    depth = left[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else left[-1]
    return math.prod(_shape(name, node.output[0], types)) * depth


def _shape(name: str, tensor: str, types: Mapping[str, TensorType]) -> tuple[int, ...]:
    shape = types[tensor].shape if tensor in types else None
    if shape is None or None in shape:
        raise GraphError(
            "shape of a tensor cannot be inferred, so its node's multiply-accumulates cannot be counted",
            where=f"node {name}, tensor {tensor}",
            found=shape,
            allowed="static shapes except for the batch",
            next_command="export with fixed dimensions, or simplify the graph with onnxsim",
        )
    return tuple(int(d) for d in shape if d is not None)
