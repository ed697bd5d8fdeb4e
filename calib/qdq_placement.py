"""Decide which tensors get Q/DQ: only inputs of operators that TensorRT lowers to INT8.

    MatMul  (..., K) x constant (K, N)      activation per tensor, weight per channel, axis 1
    Gemm    (M, K) x constant               activation per tensor, weight per channel, axis 0 if transB else 1
    Conv    depthwise too                   activation per tensor, weight per channel, axis 0
    MatMul  activation x activation         both sides per tensor

The axis is always that of the output channels: a scale along the contraction axis K cannot be factored out of the sum, and
TensorRT then silently computes in float. LayerNorm inputs, residual additions and norm reductions are never affected, since a
pair feeds only the quantized consumers of a tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import onnx

from calib.errors import GraphError, UsageError
from calib.graph import GraphIndex, TensorType, attribute, index_graph, infer_types, opset_version

QUANTIZABLE_OPS = ("Conv", "Gemm", "MatMul")
_LISTED_OPS = (*QUANTIZABLE_OPS, "ConvTranspose", "Einsum")
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

    An activation is quantized per tensor, a weight, which is a constant, per channel: `axis` is that of its output channels.
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
    """Decide for every Conv, Gemm and MatMul of a float graph, in graph order.

    Raises GraphError for a graph that already holds Q/DQ, for an opset below 13 (no per-channel Q/DQ) and when nothing is left
    to quantize, UsageError for an exclusion that matches nothing.
    """
    scheme = scheme or QuantScheme()
    _check_float_graph(model)
    index, types = index_graph(model), infer_types(model)
    candidates = [(name, n) for name, n in zip(index.names, model.graph.node, strict=True) if n.op_type in _LISTED_OPS]
    for pattern in scheme.exclude:
        if not any(fnmatchcase(name, pattern) for name, _ in candidates):
            raise UsageError(
                "exclusion matches no node that could be quantized",
                where="--keep-float",
                found=repr(pattern),
                allowed=f"globs on {len(candidates)} node names such as {', '.join(name for name, _ in candidates[:4])}",
            )
    points: list[QuantPoint] = []
    skipped: dict[str, str] = {}
    for name, node in candidates:
        decision = _excluded(name, node, scheme) or _decide(name, node, index, types)
        if isinstance(decision, str):
            skipped[name] = decision
        else:
            points.extend(decision)
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


def _excluded(name: str, node: onnx.NodeProto, scheme: QuantScheme) -> str | None:
    for pattern in scheme.exclude:
        if fnmatchcase(name, pattern):
            return f"excluded by {pattern!r}"
    return None if node.op_type in QUANTIZABLE_OPS else f"{node.op_type} is not quantized by this toolkit"


def _decide(
    name: str, node: onnx.NodeProto, index: GraphIndex, types: Mapping[str, TensorType]
) -> str | tuple[QuantPoint, ...]:
    """The quantized inputs of a node, or the reason why it has none."""
    data, weight = node.input[0], node.input[1]
    for tensor in (data, weight):
        if tensor in types and types[tensor].dtype not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED):
            kind = onnx.TensorProto.DataType.Name(types[tensor].dtype)
            return f"{tensor} is {kind}: quantize the FP32 graph, lower the rest to FP16 afterwards"
    if data in index.constant_like:
        return "its first operand is a constant: this toolkit quantizes weights as the second operand"
    axis = None
    if weight in index.constants:
        rank = len(index.constants[weight].dims)
        if node.op_type != "Conv" and rank != 2:
            return f"its constant operand has rank {rank}: this toolkit quantizes weights (K, N)"
        axis = 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)) else 1
    elif weight in index.constant_like:
        return "its weight is computed from constants: fold them first, for example with onnxsim"
    elif node.op_type != "MatMul":
        return f"the weight of this {node.op_type} is computed from the input"
    second = QuantPoint(name, 1, weight, "activation" if axis is None else "weight", axis)
    return QuantPoint(name, 0, data, "activation"), second
