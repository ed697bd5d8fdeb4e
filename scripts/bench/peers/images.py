"""Load the calibration images in equal batches: some tools stack activations and need equal shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

LARGEST_BATCH = 32


def load_calibration(folder: Path) -> npt.NDArray[np.float32]:
    """Load images float32 (N, 3, S, S)."""
    images: npt.NDArray[np.float32] = np.load(folder / "calib.npy")
    return images


def batch_size(count: int) -> int:
    """The largest batch up to LARGEST_BATCH that divides `count`."""
    return next(size for size in range(LARGEST_BATCH, 0, -1) if count % size == 0)


def batches(images: npt.NDArray[np.float32], size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Batches in order, all of size `size` if it divides the number of images."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
