"""Images of a training: selection, augmentation and preprocessing; the splits that are written beside the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edge.images.idx import read_idx, write_idx
from edge.images.preprocess import Uint8

MEAN, STD = 0.2860, 0.3530  # of the training images, on the [0, 1] scale


def draw_batch(step: int, count: int, batch: int, seed: int) -> tuple[NDArray[Any], np.random.Generator]:
    """Indices (batch,) of this step's images, each image once per epoch, and the random generator for their augmentation."""
    epoch, index = divmod(step, count // batch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[index * batch : (index + 1) * batch], np.random.default_rng([seed, epoch, index])


def augment(images: Uint8, rng: np.random.Generator, shift: int = 2, erase: float = 0.25) -> Uint8:
    """Random shift by up to `shift` pixels (zero-padded), horizontal flip and, with probability `erase`, a rectangle of noise
    of a quarter to half of each side (Zhong et al. 2017); images (B, H, W).
    """
    count, height, width = images.shape
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift)))
    offsets, flips = rng.integers(0, 2 * shift + 1, (2, count, 1)), rng.random((count, 1)) < 0.5
    rows, columns = np.arange(height)[None], np.arange(width)[None]
    shifted_rows, shifted_columns = rows + offsets[0], np.where(flips, width - 1 - columns, columns) + offsets[1]
    out = padded[np.arange(count)[:, None, None], shifted_rows[:, :, None], shifted_columns[:, None, :]]
    in_rows, in_columns = (span(side, count, rng) for side in (height, width))
    erased = in_rows[:, :, None] & in_columns[:, None, :] & (rng.random((count, 1, 1)) < erase)
    return np.asarray(np.where(erased, rng.integers(0, 256, out.shape, np.uint8), out))


def span(side: int, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Mask bool (count, side): for each image a random run of a quarter to half of `side` positions."""
    length = rng.integers(side // 4, side // 2 + 1, (count, 1))
    first = rng.integers(0, side - length + 1)
    position = np.arange(side)[None]
    return (first <= position) & (position < first + length)


def network_input(images: Tensor, resample: tuple[Tensor, Tensor]) -> Tensor:
    """`Preprocess.batch` for square greyscale images, on the device: uint8 (B, S, S) -> float32 (B, 3, H, W).

    `resample` are `resample_matrix(S, H)` and `resample_matrix(S, W)`; normalising before the resize is equivalent, because
    their rows sum to 1.
    """
    rows, columns = resample
    normalised = (images.float() / 255 - MEAN) / STD
    return (rows @ normalised @ columns.T)[:, None].expand(-1, 3, -1, -1)


def write_splits(data: Path, out: Path, images: Uint8, labels: NDArray[Any]) -> None:
    """The calibration split (held-out training images) and the test split, under the file names that the toolkit ships."""
    write_idx(out / "calibration-images-idx3-ubyte.gz", images)
    write_idx(out / "calibration-labels-idx1-ubyte.gz", labels.astype(np.uint8))
    for kind in ("images-idx3", "labels-idx1"):
        write_idx(out / f"test-{kind}-ubyte.gz", read_idx(data / f"t10k-{kind}-ubyte.gz"))
