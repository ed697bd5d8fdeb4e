"""Some of many images, spread evenly over all of them: the same ones every time."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def spread_evenly(size: int, count: int) -> npt.NDArray[np.int64]:
    """Ascending positions of `count` of `size` images, from the first to the last; all of them where there are no more."""
    if count >= size:
        return np.arange(size)
    return np.asarray(np.linspace(0, size - 1, count).round().astype(np.int64))


def even_subset(sha256: str, size: int, count: int) -> tuple[npt.NDArray[np.int64], str]:
    """Positions of `count` of `size` images (`spread_evenly`), and the digest of the subset; `sha256` is that of all."""
    if count >= size:
        return np.arange(size), sha256
    positions = spread_evenly(size, count)
    return positions, hashlib.sha256(sha256.encode() + positions.tobytes()).hexdigest()
