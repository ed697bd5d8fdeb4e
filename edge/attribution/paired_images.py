"""The images of a comparison as either side gets them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from calib.errors import DataError
from edge.images.even_spread import spread_evenly
from edge.images.preprocess import Float32

_BATCH_PIXELS = 32 * 64**2
"""Pixels of one batch: tensors at the ends of all layers are held in eight variants at once, 0.4 GB for one image of 224 px."""


@dataclass(frozen=True)
class PairedImages:
    """The same images twice.

    Attributes:
        reference: (n, C, S, S) float32, the inputs of the reference.
        judged: the inputs of the judged side; often the same array.

    Raises InputError for other numbers of images, and for none.
    """

    reference: Float32
    judged: Float32

    def __post_init__(self) -> None:
        if self.reference.ndim != 4 or self.reference.shape != self.judged.shape or not len(self.reference):
            raise DataError(
                "the two sides did not get the same images",
                found=f"{self.reference.shape} and {self.judged.shape}",
                allowed="float32 (n, C, S, S) twice, n > 0",
            )

    def __len__(self) -> int:
        return len(self.reference)

    def take(self, count: int) -> PairedImages:
        """`count` of the images, spread evenly, or all."""
        chosen = spread_evenly(len(self), count)
        return self if len(chosen) == len(self) else PairedImages(self.reference[chosen], self.judged[chosen])

    def batches(self) -> Iterator[tuple[Float32, Float32]]:
        """The images in order, in batches of either side."""
        size = max(1, _BATCH_PIXELS // (self.reference.shape[2] * self.reference.shape[3]))
        for start in range(0, len(self), size):
            yield self.reference[start : start + size], self.judged[start : start + size]

    def batches_without(self, count: int) -> Iterator[tuple[Float32, Float32]]:
        """The images that `take(count)` leaves, in batches of either side; none where it leaves none."""
        rest = np.delete(np.arange(len(self)), spread_evenly(len(self), count))
        if len(rest):
            yield from PairedImages(self.reference[rest], self.judged[rest]).batches()
