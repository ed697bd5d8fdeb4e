"""FP16 and BF16: their limits, and rounding to them.

    FP16   IEEE 754 binary16     11 significant bits   largest 65504         smallest normal 2^-14    subnormal 2^-24
    BF16   truncated binary32     8 significant bits   largest 2^128 - 2^120 smallest normal 2^-126   subnormal 2^-133

Rounding is to nearest, ties to even, through subnormal numbers; beyond the largest number it yields infinity, as hardware does.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.fp16 import LARGEST, SMALLEST_NORMAL

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format of 16 bits.

    Attributes:
        name: "fp16" or "bf16".
        significant_bits: digits of a normal number, the leading one included.
        largest: largest finite number.
        smallest_normal: below it, numbers lose digits.
        smallest_subnormal: half of it and less rounds to zero.
    """

    name: str
    significant_bits: int
    largest: float
    smallest_normal: float
    smallest_subnormal: float

    def round(self, values: npt.ArrayLike) -> Float32:
        """float32 or float64 -> the nearest numbers of the format, as float32; infinity beyond the largest."""
        with np.errstate(over="ignore"):
            exact = np.asarray(values, dtype=np.float32)
            return exact.astype(np.float16).astype(np.float32) if self.name == "fp16" else _round_bf16(exact)

    def headroom_bits(self, largest_value: float) -> float:
        """Doublings left before `largest_value` overflows; negative when it does, +inf for zero."""
        return math.inf if largest_value <= 0 else math.log2(self.largest) - math.log2(largest_value)

    def floor_bits(self, smallest_value: float, *, subnormal: bool = False) -> float:
        """Halvings left before `smallest_value` > 0 falls below the smallest normal (or subnormal) number."""
        limit = self.smallest_subnormal if subnormal else self.smallest_normal
        return math.inf if smallest_value <= 0 else math.log2(smallest_value) - math.log2(limit)


FP16 = FloatFormat("fp16", 11, LARGEST, SMALLEST_NORMAL, 2.0**-24)
BF16 = FloatFormat("bf16", 8, 2.0**128 - 2.0**120, 2.0**-126, 2.0**-133)
FORMATS: dict[str, FloatFormat] = {f.name: f for f in (FP16, BF16)}


def _round_bf16(values: Float32) -> Float32:
    """The upper half of binary32, rounded half to even on the lower half; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(values), values, rounded)
