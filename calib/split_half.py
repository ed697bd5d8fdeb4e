"""How much the ranges still move: the images fall into two halves, and each half has its own histograms.

The parity of the CRC-32 of an image's bytes says which half it belongs to, so that neither the order of the images nor how
they are batched changes a half. Histograms merge exactly: both halves together are the very
histograms of all images.
"""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.calibration_table import RangeShift
from calib.histogram import Histogram


class Halves:
    """Histograms of named tensors, apart for the two halves of the images.

    Attributes:
        histograms: for either half, tensor -> histogram.
        images: how many images each half has.
    """

    def __init__(self, tensors: Sequence[str]) -> None:
        self.histograms = ({name: Histogram(name) for name in tensors}, {name: Histogram(name) for name in tensors})
        self.images = [0, 0]

    def update(self, batch: NDArray[Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        """Add the tensors of a batch of images (B, ...).

        A tensor (k B, ...) is taken to hold k rows of the first image, then k of the second, and so on. One whose first axis
        is no multiple of B counts for the half of the first image as a whole.
        """
        if len(batch) == 0:
            return
        odd = np.array([half_of(image) == 1 for image in batch])
        for half, chosen in enumerate((~odd, odd)):
            self.images[half] += int(chosen.sum())
        mixed = odd.any() and not odd.all()
        for name, values in tensors.items():
            if mixed and values.ndim > 0 and len(values) % len(batch) == 0 and values.size > 0:
                by_image = values.reshape(len(batch), -1)
                self.histograms[0][name].update(by_image[~odd])
                self.histograms[1][name].update(by_image[odd])
            else:
                self.histograms[int(odd[0])][name].update(values)

    def total(self) -> dict[str, Histogram]:
        """Histograms of all images, in the order of the tensors."""
        totals = {}
        for name in self.histograms[0]:
            totals[name] = Histogram(name)
            for half in self.histograms:
                totals[name].merge(half[name])
        return totals

    def shift(self, amax: Mapping[str, float], amax_of: Callable[[Histogram], float]) -> RangeShift | None:
        """|amax_A - amax_B| / amax over the tensors.

        Args:
            amax: tensor -> its amax from all images, positive.
            amax_of: what gives a half's amax from its histogram.

        Tensors of which one half saw nothing are left out; None when that is so for every tensor.
        """
        shifts = {}
        for name, total in amax.items():
            one, other = (half[name] for half in self.histograms)
            if one.size and other.size:
                shifts[name] = abs(amax_of(one) - amax_of(other)) / total
        if not shifts:
            return None
        tensor = max(shifts, key=shifts.__getitem__)
        return RangeShift(statistics.median(shifts.values()), shifts[tensor], tensor)


def half_of(image: NDArray[Any]) -> int:
    """0 or 1: the parity of the CRC-32 of the image's bytes."""
    return zlib.crc32(np.ascontiguousarray(image).data) & 1
