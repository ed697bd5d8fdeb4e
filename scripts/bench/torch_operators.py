"""ONNX operators in torch, in whatever type their operands have: an oracle that shares no code with the toolkit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor
from torch.nn import functional

TYPES = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16, TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32, TensorProto.BOOL: torch.bool,
}  # fmt: skip
Ints = Tensor | Sequence[int] | None
"""Whole numbers, as an input (newer opsets) or an attribute."""


def to_tensor(tensor: TensorProto) -> Tensor:
    """A constant of the graph."""
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


def ints(given: Ints) -> list[int]:
    """Whole numbers as a list; empty for None."""
    return (
        [] if given is None else [int(value) for value in (given.reshape(-1).tolist() if isinstance(given, Tensor) else given)]
    )


def constant(**attributes: Any) -> Tensor:
    """ONNX Constant."""
    ((name, value),) = attributes.items()
    return to_tensor(value) if name == "value" else torch.tensor(value)


def conv(x: Tensor, w: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    """ONNX Conv in two dimensions."""
    strides, group = (attributes.get(name, 1) for name in ("strides", "group"))
    dilations = attributes.get("dilations", (1, 1))
    extent = [(size - 1) * step + 1 for size, step in zip(w.shape[2:], dilations, strict=True)]
    padded = functional.pad(x, padding_of(x, extent, attributes))
    return functional.conv2d(padded, w, bias, strides, 0, dilations, group)


def padding_of(x: Tensor, kernel: Sequence[int], attributes: dict[str, Any]) -> tuple[int, int, int, int]:
    """Left, right, top, bottom: `pads`, or those of auto_pad."""
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", "VALID"):
        top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
        return left, right, top, bottom
    pads = []
    for size, extent, stride in zip(x.shape[2:], kernel, attributes.get("strides", (1, 1)), strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
        pads.append((total // 2, total - total // 2) if mode == "SAME_UPPER" else (total - total // 2, total // 2))
    (top, bottom), (left, right) = pads
    return left, right, top, bottom


def conv_transpose(x: Tensor, w: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    """ONNX ConvTranspose in two dimensions, the same padding on both sides."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    assert (top, left) == (bottom, right)
    return functional.conv_transpose2d(
        x, w, bias, attributes.get("strides", 1), (top, left), attributes.get("output_padding", 0), attributes.get("group", 1)
    )


def max_pool(x: Tensor, *, kernel_shape: list[int], **attributes: Any) -> Tensor:
    """ONNX MaxPool in two dimensions."""
    padded = functional.pad(x, padding_of(x, kernel_shape, attributes), value=-math.inf)
    ceil = bool(attributes.get("ceil_mode", 0))
    pooled: Tensor = functional.max_pool2d(
        padded, kernel_shape, attributes.get("strides", 1), 0, attributes.get("dilations", 1), ceil
    )
    return pooled


def average_pool(x: Tensor, *, kernel_shape: list[int], **attributes: Any) -> Tensor:
    """ONNX AveragePool in two dimensions, the same padding on both sides."""
    left, right, top, bottom = padding_of(x, kernel_shape, attributes)
    assert (left, top) == (right, bottom)
    counted = bool(attributes.get("count_include_pad", 0))
    ceil = bool(attributes.get("ceil_mode", 0))
    return functional.avg_pool2d(x, kernel_shape, attributes.get("strides", 1), (top, left), ceil, counted)


def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, **attributes: Any) -> Tensor:
    """ONNX Gemm with alpha and beta 1."""
    assert attributes.get("alpha", 1) == attributes.get("beta", 1) == 1
    return functional.linear(a.mT if attributes.get("transA") else a, b if attributes.get("transB") else b.mT, c)


def reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An ONNX reduction of torch's function(x, axes, keepdim)."""

    def reduce(x: Tensor, axes: Ints = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        if not ints(axes) and noop_with_empty_axes:
            return x
        return function(x, ints(axes) or list(range(x.ndim)), bool(keepdims))

    return reduce


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> Tensor:
    """ONNX LayerNormalization."""
    shape = x.shape[axis:]
    return functional.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """ONNX Softmax along one axis (before opset 13 the last one, or of a matrix)."""
    return functional.softmax(x, axis)


def slices(x: Tensor, starts: Tensor, ends: Tensor, axes: Ints = None, steps: Ints = None) -> Tensor:
    """ONNX Slice."""
    axes = ints(axes) or list(range(len(starts)))
    for start, end, axis, step in zip(ints(starts), ints(ends), axes, ints(steps) or [1] * len(axes), strict=True):
        positions = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(positions), dtype=torch.int64, device=x.device))
    return x


def gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """ONNX Gather."""
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis % x.ndim + 1 :])
    return x.index_select(axis, indices.reshape(-1)).reshape(shape)


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """ONNX GatherND without batch axes."""
    assert not batch_dims
    return x[tuple(indices.unbind(-1))]


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, **_: Any) -> Tensor:
    """ONNX ScatterND without a reduction."""
    x = x.clone()
    x[tuple(indices.unbind(-1))] = updates
    return x


def reshape(x: Tensor, shape: Tensor, allowzero: int = 0) -> Tensor:
    """ONNX Reshape: 0 copies a length unless `allowzero`."""
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(ints(shape))])


def squeeze(x: Tensor, axes: Ints = None) -> Tensor:
    """ONNX Squeeze."""
    return x.squeeze(tuple(ints(axes))) if axes is not None else x.squeeze()


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """ONNX Unsqueeze: axes of the result."""
    for axis in sorted(value % (x.ndim + len(ints(axes))) for value in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def split(x: Tensor, split: Ints = None, axis: int = 0, num_outputs: int = 1) -> tuple[Tensor, ...]:
    """ONNX Split; in `num_outputs` parts of one length where no lengths are given."""
    return torch.split(x, ints(split) or math.ceil(x.shape[axis] / num_outputs), axis)


def pad(x: Tensor, pads: Ints, value: Tensor | None = None, axes: Ints = None, mode: bytes = b"constant") -> Tensor:
    """ONNX Pad; negative numbers crop."""
    given, chosen = ints(pads), ints(axes) or list(range(x.ndim))
    sides = {axis % x.ndim: (given[i], given[i + len(chosen)]) for i, axis in enumerate(chosen)}
    flat = [side for axis in reversed(range(x.ndim)) for side in sides.get(axis, (0, 0))]
    while len(flat) > 2 and not any(flat[-2:]):
        del flat[-2:]
    constant_mode = mode.decode() == "constant"
    return functional.pad(x, flat, mode.decode(), *([0.0 if value is None else float(value)] if constant_mode else []))


def resize(x: Tensor, _roi: Any = None, scales: Tensor | None = None, sizes: Tensor | None = None, **attributes: Any) -> Tensor:
    """ONNX Resize of maps: linear, by half pixels or aligned corners, and nearest by floor."""
    shape = ints(sizes)[2:]
    if scales is not None and scales.numel():
        shape = [int(size * scale) for size, scale in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    mode, position = (attributes.get(name, default).decode() for name, default in _RESIZE)
    if mode == "nearest":
        assert position == "asymmetric" or all(out % size == 0 for out, size in zip(shape, x.shape[2:], strict=True))
        return functional.interpolate(x, shape, mode="nearest")
    assert mode == "linear"
    return functional.interpolate(x, shape, mode="bilinear", align_corners=position == "align_corners")


_RESIZE = (("mode", b"nearest"), ("coordinate_transformation_mode", b"half_pixel"))


def clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002  # the names of ONNX's attributes
    """ONNX Clip."""
    return torch.clamp(x, min, max)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Div: whole numbers towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def constant_of_shape(shape: Tensor, value: TensorProto | None = None) -> Tensor:
    """ONNX ConstantOfShape."""
    filled = torch.zeros(1) if value is None else to_tensor(value)
    return filled.reshape(()).expand(ints(shape)).clone()


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """ONNX Expand."""
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(ints(shape))))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "AveragePool": average_pool,
    "BatchNormalization": lambda x, s, b, m, v, epsilon=1e-5, **_: functional.batch_norm(x, m, v, s, b, False, 0.0, epsilon),
    "Cast": lambda x, to, **_: x.to(TYPES[to]),
    "Clip": clip,
    "Concat": lambda *x, axis: torch.cat(x, axis),
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Cos": torch.cos,
    "CumSum": lambda x, axis, **_: x.cumsum(int(axis)),
    "Div": divide,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": expand,
    "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), -1),
    "Gather": gather,
    "GatherND": gather_nd,
    "Gelu": lambda x, approximate=b"none": functional.gelu(x, approximate=approximate.decode()),
    "Gemm": gemm,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "Identity": lambda x: x,
    "InstanceNormalization": lambda x, s, b, epsilon=1e-5: functional.instance_norm(x, None, None, s, b, eps=epsilon),
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "MatMul": torch.matmul,
    "Max": torch.maximum,
    "MaxPool": max_pool,
    "Min": torch.minimum,
    "Mod": lambda a, b, **_: torch.remainder(a, b),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Pad": pad,
    "Pow": torch.pow,
    "Range": torch.arange,
    "Reciprocal": torch.reciprocal,
    "ReduceL2": reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceMax": reduction(torch.amax),
    "ReduceMean": reduction(torch.mean),
    "ReduceSum": reduction(torch.sum),
    "Relu": torch.relu,
    "Reshape": reshape,
    "Resize": resize,
    "ScatterND": scatter_nd,
    "Shape": lambda x, start=0, end=None: torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device),
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Slice": slices,
    "Softmax": softmax,
    "Split": split,
    "Sqrt": torch.sqrt,
    "Squeeze": squeeze,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Tile": lambda x, repeats: x.tile(ints(repeats)),
    "Transpose": lambda x, perm=None: x.permute(perm or tuple(reversed(range(x.ndim)))),
    "Unsqueeze": unsqueeze,
    "Where": torch.where,
}
