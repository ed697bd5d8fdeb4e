"""XNorm and K^T V as 16-bit hardware computes them, element by element, and how far that is from float64.

    r(x)        x rounded to the format: every stored number is one
    K^T V       products are exact; tensor cores add 16 of them to the accumulator at once, which is kept in FP32, or rounded
                to the format after each such step (Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA
                tensor cores", PeerJ Computer Science 7, 2021)
    sum a^2     FP32: exact squares, summed in FP32; else r(r(a_i^2) + ...) pairwise, as threads of a warp reduce
    XN(a)       r(r(a) / max(r(sqrt(sum)), r(eps)))

The same for a BF16 accumulator, which hardware does not have for matrix products: it shows the error of a decomposed norm.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.stability.float_formats import Float32, FloatFormat
from edge.stability.observed_ranges import Float64
from edge.stability.site import Eps
from engines.fp16_emulation import MMA_DEPTH

Accumulate = Literal["fp32", "storage"]
"""Where sums are kept: in FP32, or in the format itself."""


def emulate_product(k: Float32, v: Float32, fmt: FloatFormat, accumulate: Accumulate) -> Float32:
    """K^T V of k (B, H, D, N) and v (B, H, N, D), float32: (B, H, D, D), rounded to the format."""
    left, right = fmt.round(k), fmt.round(v)
    with np.errstate(over="ignore", invalid="ignore"):
        if accumulate == "fp32":
            return fmt.round(left @ right)
        total = np.zeros((*left.shape[:-1], right.shape[-1]), np.float32)
        for start in range(0, left.shape[-1], MMA_DEPTH):
            part = slice(start, start + MMA_DEPTH)
            total = fmt.round(total + left[..., part] @ right[..., part, :])
        return total


def emulate_xnorm(a: Float32, axis: int, fmt: FloatFormat, accumulate: Accumulate, eps: tuple[Eps, ...] = ()) -> Float32:
    """a / ||a|| of float32 `a` along `axis` in the format: float32 of the same shape; NaN and zeros where hardware has them."""
    stored = fmt.round(a)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        squares = stored * stored
        if accumulate == "fp32":
            total = _guard(squares.sum(axis=axis, keepdims=True, dtype=np.float32), eps, "square", None)
        else:
            total = _pairwise(fmt.round(squares), axis, fmt)
            total = fmt.round(_guard(total, eps, "square", fmt))
        norm = fmt.round(_guard(fmt.round(np.sqrt(total)), eps, "norm", fmt))
        return fmt.round(stored / norm)


def exact_xnorm(a: Float64, axis: int, eps: tuple[Eps, ...] = ()) -> Float64:
    """a / ||a|| in float64, with the eps as the graph has it; a zero vector stays zero."""
    total = _guard((a * a).sum(axis=axis, keepdims=True), eps, "square", None)
    norm = _guard(np.sqrt(total), eps, "norm", None)
    return np.asarray(np.divide(a, norm, out=np.zeros_like(a), where=norm > 0))


def relative_error(found: Float32, exact: Float64) -> float:
    """||found - exact|| / ||exact|| over a whole array; inf where `found` holds NaN or infinity, 0 for two zero arrays."""
    if not np.isfinite(found).all():
        return float("inf")
    scale = float(np.linalg.norm(exact))
    difference = float(np.linalg.norm(found.astype(np.float64) - exact))
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


def _pairwise(values: Float32, axis: int, fmt: FloatFormat) -> Float32:
    """Sum along `axis`, kept, as a tree: halves are added until one value is left; each addition is rounded."""
    values = np.moveaxis(values, axis, 0)
    while len(values) > 1:
        half = (len(values) + 1) // 2
        upper = np.zeros_like(values[:half])
        upper[: len(values) - half] = values[half:]
        values = fmt.round(values[:half] + upper)
    return np.moveaxis(values, 0, axis)


def _guard(values: npt.NDArray[Any], eps: tuple[Eps, ...], acts_on: str, fmt: FloatFormat | None) -> npt.NDArray[Any]:
    """The eps of the square or of the norm; rounded to a format, or in the dtype of `values`."""
    for guard in eps:
        if guard.acts_on == acts_on:
            value = values.dtype.type(guard.value) if fmt is None else fmt.round(np.float32(guard.value))
            values = np.maximum(values, value) if guard.kind == "clamp" else values + value
    return values
