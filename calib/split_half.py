"""Measure how much calibration ranges depend on the images: two halves of them, each with its own histograms.

The parity of the CRC-32 of an image's bytes decides its half, so that neither the order of the images nor the batching changes
a half. Histograms merge exactly: both halves together are the histograms of all images.
"""

import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.calibration_table import RangeShift
from calib.histogram import Histogram


class Halves:
    """Histograms of named tensors, separate for the two halves of the images.

    Attributes:
        histograms: per half, tensor -> histogram.
        images: per half, number of images.
    """

    def __init__(self, tensors: Sequence[str]) -> None:
        self.histograms = ({name: Histogram(name) for name in tensors}, {name: Histogram(name) for name in tensors})
        self.images = [0, 0]

    def update(self, batch: NDArray[Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        """Add the tensors of a batch of images (B, ...).

        A tensor (k B, ...) is assumed to hold k rows of the first image, then k of the second, and so on. One whose first axis
        is not a multiple of B counts entirely for the half of the first image.
        """
        if len(batch) == 0:
            return
        odd = np.array([half_of(image) == 1 for image in batch])
        self.images[0] += int((~odd).sum())
        self.images[1] += int(odd.sum())
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
        totals = {name: Histogram(name) for name in self.histograms[0]}
        for half in self.histograms:
            for name, histogram in half.items():
                totals[name].merge(histogram)
        return totals

    def shift(self, amax: Mapping[str, float], amax_of: Callable[[Histogram], float]) -> RangeShift | None:
        """|amax_A - amax_B| / amax over the tensors.

        Args:
            amax: tensor -> its amax from all images, positive.
            amax_of: calibration method that gives the amax of each half.

        Tensors without values in one half are left out; None when that is so for every tensor.
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
