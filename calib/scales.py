"""Compute INT8 scales from amax, exactly representable in FP16.

    scale = amax / 127, rounded up to the next FP16 number        x_q = clip(round_half_even(x / scale), -127, 127)

An FP32 graph and its FP16 lowering then share every scale to the last bit and quantize alike. Rounding up means that no
value up to amax is clipped; it costs resolution, at most 2^-10 of the step for normal FP16 numbers and at most 2^-5 for the
subnormal ones down to 2^-19, which GPUs and CPUs convert without loss. Below that FP16 has too few digits.
No weight, and no activation within its range, becomes -128: a symmetric range needs no correction term.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calib.errors import DataError, GraphError

QMAX = 127
QMIN = -128
"""Where QuantizeLinear saturates: an activation beyond its range reaches it. Weights stop at -127."""
SMALLEST_SCALE = 2.0**-19
LARGEST_SCALE = 65504.0


def activation_scale(amax: float, tensor: str) -> float:
    """Scale of an activation from its amax.

    Raises DataError for NaN, for amax above 127 * 65504, and for amax at or below 0 or so small that its scale falls below
    2^-19. A tensor that was zero on every calibration image is refused rather than given an arbitrary scale: any value on a
    live image would be clipped to almost zero, and usually the images or their preprocessing are at fault.
    """
    scale = float(_round_up_to_fp16(np.float64(amax) / QMAX)) if np.isfinite(amax) else float("nan")
    if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        raise DataError(
            "range of a tensor has no INT8 scale that FP16 can represent",
            where=f"tensor {tensor}",
            found=f"amax {amax:g}",
            allowed=f"{SMALLEST_SCALE * QMAX:.3g} to {LARGEST_SCALE * QMAX:.3g}",
            next_command="calibrate on representative images, or exclude the nodes that read this tensor from quantization",
        )
    return scale


def weight_scales(amax: ArrayLike, tensor: str) -> NDArray[np.float32]:
    """Per-channel scales (channels,) of a weight from its per-channel amax (channels,).

    A channel with amax below 127 * 2^-19 gets the scale 2^-19: zero channels stay exactly zero, and others are off by at
    most 2^-20, which is less than the step of FP16 itself on weights above 2^-9.
    Raises GraphError for NaN, infinities and amax above 127 * 65504.
    """
    values = np.asarray(amax, dtype=np.float64)
    if not np.all(np.isfinite(values)) or values.max(initial=0.0) > LARGEST_SCALE * QMAX:
        raise GraphError(
            "weight has no INT8 scale that FP16 can represent",
            where=f"tensor {tensor}",
            found=f"largest per-channel amax {values.max(initial=0.0):g}",
            allowed=f"finite, up to {LARGEST_SCALE * QMAX:.3g}",
        )
    return np.maximum(_round_up_to_fp16(values / QMAX), SMALLEST_SCALE).astype(np.float32)


def _round_up_to_fp16(values: ArrayLike) -> NDArray[np.float64]:
    exact = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):  # beyond FP16 the result is inf or 0, which the callers handle
        nearest = exact.astype(np.float16)
        above = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest.astype(np.float64) < exact, above, nearest).astype(np.float64)
