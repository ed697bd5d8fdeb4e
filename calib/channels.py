"""Ranges of every channel of a tensor: calib.histogram with one histogram, and one bin width, per channel.

The state is a function of the multiset of values in each channel, as that of a Histogram is, and so is each row: it holds
the very bytes of `Histogram(tensor, bins)` over that channel's slice. Its size is fixed by channels times bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.calibrators import method as range_method
from calib.errors import InputError
from calib.histogram import CHUNK, SMALLEST_EXPONENT, Histogram, bin_exponents, check_type, coarsen, not_finite

CHANNEL_BINS = 512


class ChannelHistograms:
    """Streaming histograms of |x|, exact minimum and maximum of every channel of one tensor.

    Args:
        tensor: its name, for errors.
        axis: the axis of the channels, negative from the end.
        bins: a power of two, at least 2.

    Attributes, with C channels, 0 before any data:
        counts: (C, bins) int64.
        exponents: (C,) int64, e of the bin widths 2^e.
        minimum, maximum: (C,) float64, exact, of the signed values.
    """

    def __init__(self, tensor: str, axis: int, bins: int = CHANNEL_BINS) -> None:
        self.tensor, self.axis = tensor, axis
        self.bins = Histogram(tensor, bins).bins
        self._allocate(0)

    @property
    def amax(self) -> NDArray[np.float64]:
        """(C,) exact max|x|."""
        amax: NDArray[np.float64] = np.maximum(self.maximum, -self.minimum) + 0.0
        return amax

    def row(self, channel: int) -> Histogram:
        """The histogram of one channel; it shares the counts."""
        histogram = Histogram(f"{self.tensor}, channel {channel}", self.bins)
        histogram.counts = self.counts[channel]
        histogram.exponent = int(self.exponents[channel])
        histogram.amax = float(self.amax[channel])
        return histogram

    def update(self, values: NDArray[Any]) -> None:
        """Add an array of float32 or float16. Raises InputError for NaN, infinities, other types and other channels."""
        check_type(values, self.tensor)
        if not -values.ndim <= self.axis < values.ndim:
            raise InputError("no such axis", where=f"tensor {self.tensor}", found=f"shape {values.shape}, axis {self.axis}")
        if values.size == 0:
            return
        axis = self.axis % values.ndim
        outer, channels = math.prod(values.shape[:axis]), values.shape[axis]
        blocks = np.ascontiguousarray(values).reshape(outer, channels, -1)  # (outer, C, inner)
        lowest, highest = blocks.min(axis=(0, 2)), blocks.max(axis=(0, 2))  # NaN and infinities survive max and min
        if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
            raise not_finite(values, self.tensor)
        self._fit(channels)
        self._widen_for(lowest.astype(np.float64), highest.astype(np.float64))
        to_bins = np.ldexp(np.ones(channels, np.float32), -self.exponents)[:, None]
        first_bins = (np.arange(channels) * self.bins)[:, None]
        for block in _parts(blocks, max(CHUNK, self.counts.size)):
            scaled = np.abs(block, dtype=np.float32)
            scaled *= to_bins
            bins = scaled.astype(np.intp)
            bins += first_bins
            self.counts += np.bincount(bins.reshape(-1), minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, other: ChannelHistograms) -> None:
        """Add what other histograms of the same tensor have seen. Raises InputError for those of another one."""
        ours, theirs = ((h.tensor, h.axis, h.bins) for h in (self, other))
        if ours != theirs:
            raise InputError("histograms of different tensors, axes or resolutions", found=theirs, allowed=ours)
        if len(other.counts) == 0:
            return
        self._fit(len(other.counts))
        self._widen_for(other.minimum, other.maximum)
        self.counts += _coarsen_rows(other.counts, self.exponents - other.exponents)

    def _allocate(self, channels: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((channels, self.bins), dtype=np.int64)
        self.exponents: NDArray[np.int64] = np.full(channels, SMALLEST_EXPONENT, dtype=np.int64)
        self.minimum: NDArray[np.float64] = np.full(channels, np.inf)
        self.maximum: NDArray[np.float64] = np.full(channels, -np.inf)

    def _fit(self, channels: int) -> None:
        if len(self.counts) == 0:
            self._allocate(channels)
        if len(self.counts) != channels:
            raise InputError(
                "number of channels changed", where=f"tensor {self.tensor}", found=channels, allowed=len(self.counts)
            )

    def _widen_for(self, lowest: NDArray[np.float64], highest: NDArray[np.float64]) -> None:
        self.minimum = np.minimum(self.minimum, lowest) + 0.0  # -0.0 and 0.0 are one number and must be one pattern of bits
        self.maximum = np.maximum(self.maximum, highest) + 0.0
        exponents = np.maximum(self.exponents, bin_exponents(self.amax, self.bins))
        self.counts = _coarsen_rows(self.counts, exponents - self.exponents)
        self.exponents = exponents


def channel_amax(histograms: ChannelHistograms, method: str) -> NDArray[np.float64]:
    """(C,) amax of every channel by a method of calib.calibrators. Raises InputError for an unknown one."""
    reduce = range_method(method)
    return np.array([reduce(histograms.row(channel)) for channel in range(len(histograms.counts))], dtype=np.float64)


def _coarsen_rows(counts: NDArray[np.int64], doublings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Histograms (C, bins), row c with bins 2^doublings_c as wide. One step per different number of doublings."""
    steps = np.unique(doublings)
    if not steps.any():
        return counts
    coarse = np.empty_like(counts)
    for step in steps:
        rows = doublings == step
        coarse[rows] = coarsen(counts[rows], int(step))
    return coarse


def _parts(blocks: NDArray[Any], limit: int) -> Iterator[NDArray[Any]]:
    """An array (outer, C, inner) in parts of at most `limit` elements, or of one element per channel."""
    outer, channels, inner = blocks.shape
    columns = max(1, min(inner, limit // channels))
    rows = max(1, limit // (channels * columns))
    for row in range(0, outer, rows):
        for column in range(0, inner, columns):
            yield blocks[row : row + rows, :, column : column + columns]
