"""Decide which tensors get Q/DQ: only inputs of operators that TensorRT lowers to INT8.

    MatMul  (..., M, K) x constant (K, N)        activation per tensor, weight per channel, axis 1
    MatMul  (..., M, K) x constant (..., K, N)   both sides per tensor
    MatMul  constant (..., M, K) x (..., K, N)   activation per tensor, weight per channel, its last axis but one
    Gemm    (M, K) x constant, constant x (K, N) activation per tensor, weight per channel: the axis of N or of M
    Conv    depthwise too                        activation per tensor, weight per channel, axis 0
    MatMul  activation x activation              both sides per tensor

The axis is always that of the output channels: a scale along the contraction axis K cannot be factored out of the sum, and
along a batch axis of a weight of three axes or more TensorRT silently computes in float, too. ConvTranspose stays in float:
TensorRT-RTX 1.7 runs it so whatever the axis. LayerNorm inputs, residual additions and norm reductions are never affected,
since a pair feeds only the quantized consumers of a tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import onnx

from calib.errors import GraphError, UsageError
from calib.graph import GraphIndex, TensorType, attribute, index_graph, infer_types, opset_version
from calib.mac_formulas import FORMULAS
from calib.macs import MAC_OPS

_FIRST_PER_AXIS_OPSET = 13


@dataclass(frozen=True)
class QuantScheme:
    """What to quantize: INT8, symmetric, zero-point 0, range [-127, 127].

    `exclude` are glob patterns on node names; matching nodes stay in float. A pattern that matches no candidate is refused.
    """

    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantPoint:
    """One quantized input of one node, under its unique name, see `calib.graph.node_names`.

    An activation is quantized per tensor, a weight, which is a constant, per channel: `axis` is that of its output channels,
    None for one scale.
    """

    node: str
    input_index: int
    tensor: str
    kind: Literal["activation", "weight"]
    axis: int | None = None


@dataclass(frozen=True)
class QuantPlan:
    """The inputs that get Q/DQ, in graph order, and the nodes that stay in float, each with the reason."""

    points: tuple[QuantPoint, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def activations(self) -> tuple[str, ...]:
        """Tensors that need a calibrated scale, each once, in the order of their first consumer."""
        return tuple(dict.fromkeys(p.tensor for p in self.points if p.kind == "activation"))

    @property
    def nodes(self) -> tuple[str, ...]:
        """Quantized nodes in graph order."""
        return tuple(dict.fromkeys(p.node for p in self.points))


def plan_quantization(model: onnx.ModelProto, scheme: QuantScheme | None = None) -> QuantPlan:
    """Decide for every node of the main graph of a float graph that multiplies, in graph order.

    Raises GraphError for a graph that already holds Q/DQ, for an opset below 13 (no per-channel Q/DQ) and when nothing is left
    to quantize, UsageError for an exclusion that matches nothing.
    """
    scheme = scheme or QuantScheme()
    _check_float_graph(model)
    index, types = index_graph(model), infer_types(model)
    candidates = [(name, n) for name, n in index.nodes.items() if n.op_type in FORMULAS and n.domain in ("", "ai.onnx")]
    for pattern in scheme.exclude:
        if not any(fnmatchcase(name, pattern) for name, _ in candidates):
            raise UsageError(
                "exclusion matches no node that could be quantized",
                where="--keep-float, --placement",
                found=repr(pattern),
                allowed=f"globs on {len(candidates)} node names such as {', '.join(name for name, _ in candidates[:4])}",
            )
    points: list[QuantPoint] = []
    skipped: dict[str, str] = {}
    for name, node in candidates:
        reason = _excluded(name, scheme) or _other_type(node, types) or float_reason(node, index)
        if reason:
            skipped[name] = reason
        else:
            points.extend(_points(name, node, index))
    if not points:
        reasons = [f"{node}: {reason}" for node, reason in skipped.items()]
        raise GraphError("nothing to quantize", found="; ".join(reasons[:8]) or "no candidate")
    return QuantPlan(tuple(points), skipped)


def _check_float_graph(model: onnx.ModelProto) -> None:
    quantized = sum(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node)
    if quantized:
        raise GraphError(
            "graph is already quantized",
            found=f"{quantized} Q/DQ nodes",
            allowed="a float graph",
            next_command="pass the float ONNX file that it was made from",
        )
    if opset_version(model) < _FIRST_PER_AXIS_OPSET:
        raise GraphError(
            "opset has no per-channel Q/DQ",
            found=f"opset {opset_version(model)}",
            allowed=f"opset {_FIRST_PER_AXIS_OPSET} or newer; 20 works with every TensorRT from 10.0 on",
            next_command="export again with opset 20",
        )


def _excluded(name: str, scheme: QuantScheme) -> str:
    return next((f"excluded by {pattern!r}" for pattern in scheme.exclude if fnmatchcase(name, pattern)), "")


def _other_type(node: onnx.NodeProto, types: Mapping[str, TensorType]) -> str:
    for tensor in node.input[:2]:
        if tensor in types and types[tensor].dtype not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED):
            kind = onnx.TensorProto.DataType.Name(types[tensor].dtype)
            return f"{tensor} is {kind}: quantize the FP32 graph, lower the rest to FP16 afterwards"
    return ""


def float_reason(node: onnx.NodeProto, index: GraphIndex) -> str:
    """Why a node that multiplies has to stay in float; "" if it can be quantized."""
    if node.op_type not in MAC_OPS:
        return _OPERATOR_REASONS.get(node.op_type, f"TensorRT has no INT8 form of {node.op_type}")
    operands = node.input[:2]
    constants = [index.constants[tensor] for tensor in operands if tensor in index.constants]
    reasons = (
        (
            index.constant_like.issuperset(operands),
            "both operands are constants: fold the node first, for example with onnxsim",
        ),
        (
            any(tensor in index.constant_like and tensor not in index.constants for tensor in operands),
            "its weight is computed from constants: fold them first, for example with onnxsim",
        ),
        (not constants and node.op_type != "MatMul", f"the weight of this {node.op_type} is computed from the input"),
        (
            node.op_type == "Conv" and operands[1] not in index.constants,
            "the data of this Conv are constant, and its weight is computed from the input",
        ),
        (
            any(len(tensor.dims) < 2 for tensor in constants),
            "its constant operand is a vector, which has no axis of output channels",
        ),
    )
    return next((reason for holds, reason in reasons if holds), "")


_OPERATOR_REASONS = {
    "ConvTranspose": "TensorRT runs ConvTranspose in float",
    "Einsum": "Einsum is not quantized by this toolkit: write it as MatMul",
    "Attention": "Attention is one node, which is not quantized inside: write it as two MatMul and a Softmax",
    "DeformConv": "TensorRT runs DeformConv in float",
    **dict.fromkeys(("GRU", "LSTM", "RNN"), "recurrent: its steps depend on each other, TensorRT runs it in float"),
    **dict.fromkeys(
        ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"), "TensorRT does not parse this integer operator"
    ),
}


def _points(name: str, node: onnx.NodeProto, index: GraphIndex) -> tuple[QuantPoint, QuantPoint]:
    """The quantized inputs of a node that can be quantized."""

    def point(at: int) -> QuantPoint:
        tensor = node.input[at]
        if tensor not in index.constants:
            return QuantPoint(name, at, tensor, "activation")
        rank = len(index.constants[tensor].dims)
        # TensorRT takes scales along the last axis of a matrix per head, too; ONNX Runtime's kernel refuses them
        one_scale = node.op_type == "MatMul" and at == 1 and rank > 2
        return QuantPoint(name, at, tensor, "weight", None if one_scale else channel_axis(node, at, rank))

    return point(0), point(1)


def channel_axis(node: onnx.NodeProto, position: int, rank: int) -> int:
    """The axis of the output channels of a weight that is input `position` of a Conv, ConvTranspose, Gemm or MatMul."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    transposed = bool(attribute(node, ("transA", "transB")[position], 0)) if node.op_type == "Gemm" else False
    return rank - 1 if (position == 1) != transposed else rank - 2
