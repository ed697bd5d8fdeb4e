"""The images of a comparison as either side gets them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from calib.errors import InputError
from edge.images.labelled_images import Int64, evenly_spread
from edge.images.preprocess import Float32

_BATCH_PIXELS = 32 * 64**2
"""Pixels of one batch: tensors at the ends of all layers are held in eight forms at once, 0.4 GB for one image of 224 px."""


@dataclass(frozen=True)
class Sides:
    """The same images twice.

    Attributes:
        mine: (n, C, S, S) float32, as the reference is fed with them.
        judged: as the judged side is; often the same array.

    Raises InputError for other numbers of images, and for none.
    """

    mine: Float32
    judged: Float32

    def __post_init__(self) -> None:
        if self.mine.ndim != 4 or self.mine.shape != self.judged.shape or not len(self.mine):
            raise InputError(
                "the two sides did not get the same images",
                found=f"{self.mine.shape} and {self.judged.shape}",
                allowed="float32 (n, C, S, S) twice, n > 0",
            )

    def __len__(self) -> int:
        return len(self.mine)

    def take(self, count: int) -> Sides:
        """`count` of the images, spread evenly, or all."""
        chosen = self._even(count)
        return self if len(chosen) == len(self) else Sides(self.mine[chosen], self.judged[chosen])

    def pairs_without(self, count: int) -> Iterator[tuple[Float32, Float32]]:
        """The images that `take(count)` leaves, in batches of either side; none where it leaves none."""
        left = np.delete(np.arange(len(self)), self._even(count))
        if len(left):
            yield from Sides(self.mine[left], self.judged[left]).pairs()

    def _even(self, count: int) -> Int64:
        if count >= len(self):
            return np.arange(len(self))
        return evenly_spread(len(self), count)

    def pairs(self) -> Iterator[tuple[Float32, Float32]]:
        """The images in order, in batches of either side."""
        size = max(1, _BATCH_PIXELS // (self.mine.shape[2] * self.mine.shape[3]))
        for start in range(0, len(self), size):
            yield self.mine[start : start + size], self.judged[start : start + size]
