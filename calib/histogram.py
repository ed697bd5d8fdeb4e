"""Streaming histogram of |x| of one tensor, for calibration: memory does not grow with the data.

BINS bins, whose width is a power of two:

    width = 2^e,  e the smallest with max|x| < BINS * 2^e        bin(x) = floor(|x| / 2^e)        counts: int64

Scaling by a power of two is exact and floor(floor(|x| / w) / 2) = floor(|x| / 2w), so when the maximum grows, adding
neighbouring bins pairwise gives exactly the histogram that the wider bins would have given from the start. The state is thus
a function of the multiset of values: splitting the data and merging in any order gives the same bytes.

`calib.calibrators` reduces a histogram to amax, the largest magnitude that INT8 is to represent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.errors import DataError

BINS = 4096
SMALLEST_EXPONENT = -126  # 2^126, the factor that maps |x| to bins, is still finite in float32
CHUNK = 1 << 15  # elements binned at a time: scratch space that stays in the cache


class Histogram:
    """Streaming histogram of |x| and exact max|x| of one tensor, whose name errors state.

    Attributes:
        counts: (BINS,) int64.
        exponent: e of the bin width 2^e.
        amax: exact max|x| so far, 0.0 before any data.
    """

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor
        self.counts: NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)
        self.exponent = SMALLEST_EXPONENT
        self.amax = 0.0

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self.exponent)

    @property
    def size(self) -> int:
        """Number of values added."""
        return int(self.counts.sum())

    def update(self, values: NDArray[Any]) -> None:
        """Add an array of float32 or float16, any shape. Raises DataError for NaN, infinities and other types."""
        if values.dtype not in (np.float32, np.float16):
            raise DataError("only float32 and float16 are calibrated", where=f"tensor {self.tensor}", found=values.dtype)
        if values.size == 0:
            return
        flat = np.ascontiguousarray(values).reshape(-1)
        largest = max(float(flat.max()), -float(flat.min()))  # NaN and infinities propagate through max and min
        if not math.isfinite(largest):
            raise DataError(
                "a tensor to be calibrated holds NaN or infinity",
                where=f"tensor {self.tensor}",
                found=f"{np.count_nonzero(~np.isfinite(flat))} of {flat.size} elements are NaN or infinite",
                next_command="find the first such tensor by running the float graph on the same images",
            )
        self._widen_for(largest)
        to_bins = np.float32(math.ldexp(1.0, -self.exponent))
        for start in range(0, flat.size, CHUNK):
            scaled = np.abs(flat[start : start + CHUNK], dtype=np.float32)
            scaled *= to_bins
            self.counts += np.bincount(scaled.astype(np.intp), minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Add the values of another histogram."""
        self._widen_for(other.amax)
        self.counts += _coarsened(other.counts, self.exponent - other.exponent)

    def _widen_for(self, largest: float) -> None:
        self.amax = max(self.amax, largest)
        exponent = math.frexp(self.amax)[1] - (BINS.bit_length() - 1)  # the smallest e with amax < BINS * 2^e
        if self.amax > 0 and exponent > self.exponent:
            self.counts = _coarsened(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _coarsened(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The histogram with bins 2^doublings as wide."""
    group = min(1 << min(doublings, 62), BINS)
    coarse = np.zeros_like(counts)
    coarse[: BINS // group] = counts.reshape(-1, group).sum(axis=1)
    return coarse
