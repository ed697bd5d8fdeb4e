"""Round weights and scales to FP16; overflow is an error, flushed and subnormal values are counted.

FP16: largest 65504, smallest normal 2^-14, smallest subnormal 2^-24 (IEEE 754 binary16); round to nearest, ties to even.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from calib.errors import GraphError

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
_SCALE_TOLERANCE = 2.0**-7
_MAGNITUDE, _NORMAL, _INFINITY = np.uint16(0x7FFF), np.uint16(0x0400), np.uint16(0x7C00)
"""Bits of a binary16 without its sign; those of the smallest normal number and of infinity."""


def round_weights(values: NDArray[np.generic], name: str, counts: Counter[str]) -> NDArray[np.float16]:
    """Round FLOAT to FLOAT16, any shape. Raises GraphError naming the tensor for NaN, infinity and |value| > 65504.

    Adds to `counts` the nonzero values that became zero, "flushed", or "subnormal", with fewer significant bits.
    """
    source = np.asarray(values, dtype=np.float32)
    if not np.isfinite(source).all():
        raise GraphError("weights contain NaN or infinity", where=name, allowed="finite numbers")
    with np.errstate(over="ignore"):
        rounded = source.astype(np.float16)
    magnitude = rounded.view(np.uint16) & _MAGNITUDE  # ordered as the numbers are, and faster to compare than float16
    if (magnitude >= _INFINITY).any():
        raise GraphError(
            "weights overflow FP16",
            where=name,
            found=f"largest magnitude {np.abs(source).max():g}",
            allowed=f"<= {LARGEST:g}",
            next_command="keep the node that consumes it in FP32",
        )
    counts["flushed"] += int(((magnitude == 0) & (source != 0)).sum())
    counts["subnormal"] += int(((magnitude > 0) & (magnitude < _NORMAL)).sum())
    return rounded


def round_scale(values: NDArray[np.generic], name: str) -> NDArray[np.float32]:
    """Round quantization scales to FP16 values, returned as FLOAT, any shape.

    Raises GraphError if a scale is not positive and finite, overflows, or is so small that FP16 changes it by more than 2^-7,
    half a code at 64 (scales below about 4e-6).
    """
    source = np.asarray(values, dtype=np.float32)
    with np.errstate(over="ignore"):
        rounded = source.astype(np.float16).astype(np.float32)
    if not (np.isfinite(source).all() and (source > 0).all()):
        raise GraphError("quantization scales must be positive and finite", where=name, found=f"min {source.min():g}")
    inexact = ~(np.abs(rounded - source) <= _SCALE_TOLERANCE * source)
    if inexact.any():
        raise GraphError(
            "the quantization scale cannot be represented in FP16",
            where=name,
            found=f"{source[inexact].flat[0]:g} becomes {rounded[inexact].flat[0]:g}",
            allowed=f"a relative change of at most {_SCALE_TOLERANCE:g}",
            next_command="fold a power of two into the weights before calibration, or keep the layer in float",
        )
    return rounded
