"""Convert the ONNX operators that this toolkit writes to torch functions.

An entry of OPERATORS must read every attribute of its node: an attribute that it did not read is an error. ReduceL2 of FP16
sums its squares in FP32, like TensorRT's ONNX parser; LayerNormalization's statistics are FP32 in torch, which matches
`stash_type` 1.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812  # the customary name
from onnx import helper, numpy_helper

from calib.errors import GraphError
from engines.torch_tensorrt import torch_qdq

Compute = Callable[..., Any]
FLOATS = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.FLOAT16: torch.float16}
"""Supported element types besides INT8."""

torch_qdq.register()


class NodeReader:
    """Read the attributes and constant inputs of one node; `finish` refuses attributes that were not read."""

    def __init__(self, node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto]) -> None:
        self.node = node
        self._attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._initializers = initializers

    def pop(self, name: str, default: Any = None) -> Any:
        """Read an attribute; `default` is the standard's default."""
        return self._attributes.pop(name, default)

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuse an attribute with any other value; a missing one has the first."""
        if (value := self._attributes.pop(name, allowed[0])) not in allowed:
            raise self.node_error(f"{name}={value!r}", f"{name}={' or '.join(map(repr, allowed))}")

    def constant(self, position: int) -> Any:
        """The array of an input that is an initializer; None for a computed or missing input."""
        name = self.node.input[position] if position < len(self.node.input) else ""
        return numpy_helper.to_array(self._initializers[name]) if name in self._initializers else None

    def node_error(self, found: object, allowed: object) -> GraphError:
        """The error for an unsupported property of this node."""
        where = f"{self.node.op_type} {self.node.name or self.node.output[0]}"
        return GraphError("the graph cannot be converted to a torch program", where=where, found=found, allowed=allowed)

    def finish(self) -> None:
        """Refuse attributes that were not read, and outputs beyond the first."""
        if self._attributes:
            raise self.node_error(
                f"attribute {', '.join(self._attributes)}", "the opset 20 attributes that this toolkit writes"
            )
        if any(self.node.output[1:]):
            raise self.node_error(f"outputs {', '.join(self.node.output)}", "one output")


def torch_function(node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto]) -> Compute:
    """The function that computes a node's first output; integer tensors are Python integers. Raises GraphError for others."""
    reader = NodeReader(node, initializers)
    convert = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if convert is None:
        raise reader.node_error("this operator", ", ".join(OPERATORS))
    compute = convert(reader)
    reader.finish()
    return compute


def _plain(function: Compute, _node: NodeReader) -> Compute:
    """An operator without attributes."""
    return function


def _shape(node: NodeReader) -> Compute:
    start, end = node.pop("start", 0), node.pop("end")
    return lambda x: list(x.shape)[start:end]


def _concat(node: NodeReader) -> Compute:
    axis = node.pop("axis")
    return lambda *parts: list(itertools.chain(*parts)) if isinstance(parts[0], list) else torch.cat(parts, axis)


def _expand(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    sizes = [1] * (len(shape) - x.dim()) + list(x.shape)
    return x.expand([own if size == 1 else size for own, size in zip(sizes, shape, strict=True)])


def _slice(node: NodeReader) -> Compute:
    starts, ends, axes, steps = (node.constant(i) for i in (1, 2, 3, 4))
    if starts is None or ends is None:
        raise node.node_error("computed bounds", "constant bounds")
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    if min(steps) < 1:
        raise node.node_error(f"steps {steps}", "positive steps")
    bounds = {axis: slice(*b) for axis, *b in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True)}
    return lambda x, *_bounds: x[tuple(bounds.get(i, bounds.get(i - x.dim(), slice(None))) for i in range(x.dim()))]


def _gather(node: NodeReader) -> Compute:
    axis, index = node.pop("axis", 0), node.constant(1)
    if index is None or index.ndim:
        raise node.node_error("indices other than one constant", "one constant index")
    return lambda x, at: x[at] if isinstance(x, list) else x.select(axis, at)


def _reshape(node: NodeReader) -> Compute:
    keeps = not node.pop("allowzero", 0)
    return lambda x, shape: x.reshape([x.shape[i] if keeps and n == 0 else n for i, n in enumerate(shape)])


def _transpose(node: NodeReader) -> Compute:
    order = node.pop("perm")
    return lambda x: x.permute(order if order is not None else list(reversed(range(x.dim()))))


def _conv(node: NodeReader) -> Compute:
    node.expect("auto_pad", b"NOTSET")
    node.pop("kernel_shape")  # given by the weight
    pads, group = node.pop("pads", [0, 0, 0, 0]), node.pop("group", 1)
    strides, dilations = node.pop("strides", [1, 1]), node.pop("dilations", [1, 1])
    if len(pads) != 4 or pads[:2] != pads[2:]:
        raise node.node_error(f"pads {pads}", "two dimensions, with equal padding on both sides")
    return lambda x, weight, bias=None: F.conv2d(x, weight, bias, strides, pads[:2], dilations, group)


def _gemm(node: NodeReader) -> Compute:
    for name, value in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        node.expect(name, value)
    transposed = node.pop("transB", 0)
    return lambda x, weight, bias=None: F.linear(x, weight if transposed else weight.t(), bias)


def _layer_norm(node: NodeReader) -> Compute:
    node.expect("stash_type", 1)
    axis, eps, scale = node.pop("axis", -1), node.pop("epsilon", 1e-5), node.constant(1)
    if axis != -1 or scale is None or scale.ndim != 1:
        raise node.node_error(f"axis {axis}", "the last axis, with a constant scale")
    return lambda x, weight, bias=None: F.layer_norm(x, weight.shape, weight, bias, eps)


def _batch_norm(node: NodeReader) -> Compute:
    node.expect("training_mode", 0)
    node.pop("momentum")  # used in training only
    eps = node.pop("epsilon", 1e-5)
    return lambda x, weight, bias, mean, var: F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)


def _gelu(node: NodeReader) -> Compute:
    kind = node.pop("approximate", b"none").decode()
    return lambda x: F.gelu(x, approximate=kind)


def _reduce(function: Compute, node: NodeReader) -> Compute:
    node.expect("noop_with_empty_axes", 0)
    keep = bool(node.pop("keepdims", 1))
    if node.constant(1) is None:
        raise node.node_error("missing or computed axes", "constant axes")
    return lambda x, axes: function(x.float(), axes, keep).to(x.dtype)


def _clip(x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None) -> torch.Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _cast(node: NodeReader) -> Compute:
    node.expect("saturate", 1)
    to = node.pop("to")
    if to not in FLOATS:
        raise node.node_error(f"to {to}", "FLOAT or FLOAT16")
    return lambda x: x.to(FLOATS[to])


def _qdq(name: str, node: NodeReader) -> Compute:
    for attribute, value in (("block_size", 0), ("saturate", 1), ("output_dtype", 0)):
        node.expect(attribute, value)
    axis, scale, zero = node.pop("axis", 1), node.constant(1), node.constant(2)
    if scale is None or zero is None or zero.dtype != np.int8 or zero.any():
        raise node.node_error("an unsupported scale or zero-point", "a constant scale and an INT8 zero-point of 0")
    operator = getattr(torch.ops.ufovit, name)
    return lambda x, scale, _zero: operator(x, scale, axis)


OPERATORS: dict[str, Callable[[NodeReader], Compute]] = {
    "Add": partial(_plain, torch.add),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": partial(_plain, _clip),
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": partial(_qdq, "dequantize"),
    "Div": partial(_plain, torch.div),
    "Expand": partial(_plain, _expand),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "MatMul": partial(_plain, torch.matmul),
    "Max": partial(_plain, lambda *parts: reduce(torch.maximum, parts)),
    "Mul": partial(_plain, torch.mul),
    "QuantizeLinear": partial(_qdq, "quantize"),
    "ReduceL2": partial(_reduce, lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceMean": partial(_reduce, torch.mean),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Sub": partial(_plain, torch.sub),
    "Transpose": _transpose,
}
"""ONNX operator -> its conversion to a torch function, for every operator in this toolkit's graphs."""
