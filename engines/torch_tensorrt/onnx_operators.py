"""What each operator of this toolkit's ONNX graphs is in torch.

Whatever a node says must be asked for by its entry in OPERATORS; what nobody asked for is refused, never passed over. ReduceL2
of FP16 sums its squares in FP32, as TensorRT's ONNX parser has it; LayerNormalization's statistics are FP32 in torch, which is
what `stash_type` 1 asks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own custom
from onnx import helper, numpy_helper

from calib.errors import InputError
from engines.torch_tensorrt import torch_qdq

Compute = Callable[..., Any]
FLOATS = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.FLOAT16: torch.float16}
"""Element types that a tensor may have besides INT8."""

torch_qdq.register()


class NodeReader:
    """What one node says. Everything that it says must be asked for: `finish` refuses the rest."""

    def __init__(self, node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto]) -> None:
        self.node = node
        self._attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._initializers = initializers

    def pop(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or what the standard says where it is left out."""
        return self._attributes.pop(name, default)

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuse an attribute that has any other value; left out, it has the first."""
        if (value := self._attributes.pop(name, allowed[0])) not in allowed:
            raise self.refuse(f"{name}={value!r}", f"{name}={' or '.join(map(repr, allowed))}")

    def constant(self, position: int) -> Any:
        """The array of an input that is an initializer, None for one that is computed or left out."""
        name = self.node.input[position] if position < len(self.node.input) else ""
        return numpy_helper.to_array(self._initializers[name]) if name in self._initializers else None

    def refuse(self, found: object, allowed: object) -> InputError:
        """The error that names this node."""
        where = f"{self.node.op_type} {self.node.name or self.node.output[0]}"
        return InputError("the graph has no torch program", where=where, found=found, allowed=allowed)

    def finish(self) -> None:
        """Refuse attributes that nobody asked for, and outputs beyond the first."""
        if self._attributes:
            raise self.refuse(f"attribute {', '.join(self._attributes)}", "the attributes of opset 20 that this toolkit writes")
        if any(self.node.output[1:]):
            raise self.refuse(f"outputs {', '.join(self.node.output)}", "one output")


def compute_of(node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto]) -> Compute:
    """What computes a node's first output from its inputs: tensors, and Python integers for integer tensors.

    Raises InputError for an operator, or something that the node says of it, without an entry here.
    """
    reader = NodeReader(node, initializers)
    make = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if make is None:
        raise reader.refuse("this operator", ", ".join(OPERATORS))
    compute = make(reader)
    reader.finish()
    return compute


def _plain(function: Compute) -> Callable[[NodeReader], Compute]:
    """An operator whose ONNX and torch forms agree, without attributes."""
    return lambda _node: function


def _shape(node: NodeReader) -> Compute:
    start, end = node.pop("start", 0), node.pop("end")
    return lambda x: list(x.shape)[start:end]


def _concat(node: NodeReader) -> Compute:
    axis = node.pop("axis")
    return lambda *parts: list(itertools.chain(*parts)) if isinstance(parts[0], list) else torch.cat(parts, axis)


def _expand(_node: NodeReader) -> Compute:
    def expand(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
        sizes = [1] * (len(shape) - x.dim()) + list(x.shape)
        return x.expand([own if wanted == 1 else wanted for own, wanted in zip(sizes, shape, strict=True)])

    return expand


def _slice(node: NodeReader) -> Compute:
    starts, ends, axes, steps = (node.constant(i) for i in (1, 2, 3, 4))
    if starts is None or ends is None:
        raise node.refuse("bounds that are computed", "bounds that are constants")
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    if min(steps) < 1:
        raise node.refuse(f"steps {steps}", "positive steps")
    bounds = {axis: slice(*b) for axis, *b in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True)}
    return lambda x, *_bounds: x[tuple(bounds.get(i, bounds.get(i - x.dim(), slice(None))) for i in range(x.dim()))]


def _gather(node: NodeReader) -> Compute:
    axis, index = node.pop("axis", 0), node.constant(1)
    if index is None or index.ndim:
        raise node.refuse("indices that are no constant number", "one constant index")
    return lambda x, at: x[at] if isinstance(x, list) else x.select(axis, at)


def _reshape(node: NodeReader) -> Compute:
    keeps = not node.pop("allowzero", 0)
    return lambda x, shape: x.reshape([x.shape[i] if keeps and n == 0 else n for i, n in enumerate(shape)])


def _transpose(node: NodeReader) -> Compute:
    order = node.pop("perm")
    return lambda x: x.permute(order if order is not None else list(reversed(range(x.dim()))))


def _conv(node: NodeReader) -> Compute:
    node.expect("auto_pad", b"NOTSET")
    node.pop("kernel_shape")  # the weight has it
    pads, group = node.pop("pads", [0, 0, 0, 0]), node.pop("group", 1)
    strides, dilations = node.pop("strides", [1, 1]), node.pop("dilations", [1, 1])
    if len(pads) != 4 or pads[:2] != pads[2:]:
        raise node.refuse(f"pads {pads}", "two dimensions, padded alike on both sides")
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
        raise node.refuse(f"axis {axis}", "the last axis, with a constant scale")
    return lambda x, weight, bias=None: F.layer_norm(x, weight.shape, weight, bias, eps)


def _batch_norm(node: NodeReader) -> Compute:
    node.expect("training_mode", 0)
    node.pop("momentum")  # of no use but in training
    eps = node.pop("epsilon", 1e-5)
    return lambda x, weight, bias, mean, var: F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)


def _gelu(node: NodeReader) -> Compute:
    kind = node.pop("approximate", b"none").decode()
    return lambda x: F.gelu(x, approximate=kind)


def _reduce(function: Compute) -> Callable[[NodeReader], Compute]:
    def make(node: NodeReader) -> Compute:
        node.expect("noop_with_empty_axes", 0)
        keep = bool(node.pop("keepdims", 1))
        if node.constant(1) is None:
            raise node.refuse("axes that are no constant", "constant axes")
        return lambda x, axes: function(x.float(), axes, keep).to(x.dtype)

    return make


def _clip(_node: NodeReader) -> Compute:
    def clip(x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None) -> torch.Tensor:
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    return clip


def _cast(node: NodeReader) -> Compute:
    node.expect("saturate", 1)
    to = node.pop("to")
    if to not in FLOATS:
        raise node.refuse(f"to {to}", "FLOAT or FLOAT16")
    return lambda x: x.to(FLOATS[to])


def _qdq(name: str) -> Callable[[NodeReader], Compute]:
    def make(node: NodeReader) -> Compute:
        node.expect("block_size", 0)
        node.expect("saturate", 1)
        node.expect("output_dtype", 0)
        axis, scale, zero = node.pop("axis", 1), node.constant(1), node.constant(2)
        if scale is None or zero is None or zero.dtype != np.int8 or zero.any():
            raise node.refuse("a scale that is computed, or a zero-point", "a constant scale and an INT8 zero-point of 0")
        operator = getattr(torch.ops.ufovit, name)
        return lambda x, scale, _zero: operator(x, scale, axis)

    return make


OPERATORS: dict[str, Callable[[NodeReader], Compute]] = {
    "Add": _plain(torch.add),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _qdq("dequantize"),
    "Div": _plain(torch.div),
    "Expand": _expand,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "MatMul": _plain(torch.matmul),
    "Max": _plain(lambda *parts: functools.reduce(torch.maximum, parts)),
    "Mul": _plain(torch.mul),
    "QuantizeLinear": _qdq("quantize"),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceMean": _reduce(torch.mean),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Sub": _plain(torch.sub),
    "Transpose": _transpose,
}
"""ONNX operator -> what computes it in torch: all that this toolkit's graphs hold."""
