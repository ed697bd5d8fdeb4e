"""Resampling of one axis with a triangle filter, as a matrix: the antialiased "bilinear" of Pillow. numpy only."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
_CHUNK_CELLS = 1 << 20
_KEPT_CELLS = 1 << 20


def resample_matrix(size_in: int, size_out: int) -> Float32:
    """The triangle-filter resampling of one axis as a matrix (size_out, size_in) whose rows sum to 1.

    Pixel j covers [j, j + 1); output i is centred at (i + 1/2) * size_in / size_out; the triangle's half-width is one input
    pixel when enlarging and size_in / size_out input pixels when shrinking.
    """
    return _resample_rows(size_in, size_out, 0, size_out)


def resample_rows(size_in: int, size_out: int, start: int, count: int) -> Float32:
    """Rows `start` to `start + count` of `resample_matrix`, (count, size_in), read-only; small ones are kept for next time."""
    make = _kept_resample_rows if size_in * count <= _KEPT_CELLS else _resample_rows
    return make(size_in, size_out, start, count)


def _resample_rows(size_in: int, size_out: int, start: int, count: int) -> Float32:
    """Computes no other row than those asked for."""
    ratio = size_in / size_out
    half_width = max(ratio, 1.0)
    pixels = np.arange(size_in)[None, :] + 0.5
    matrix = np.empty((count, size_in), np.float32)
    step = max(1, _CHUNK_CELLS // size_in)
    for first in range(0, count, step):
        centres = (np.arange(start + first, start + min(first + step, count)) + 0.5) * ratio
        distance = np.abs(pixels - centres[:, None]) / half_width
        weights = np.maximum(0.0, 1.0 - distance)
        matrix[first : first + step] = weights / weights.sum(axis=1, keepdims=True)
    matrix.flags.writeable = False
    return matrix


_kept_resample_rows = lru_cache(maxsize=64)(_resample_rows)
