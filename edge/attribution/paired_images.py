"""The images of a comparison as either side gets them: the same tensor, or how one follows from the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from calib.errors import DataError
from calib.metrics import power_ratio_db
from edge.attribution.attribution_record import InputDrift
from edge.images.labelled_images import spread_evenly
from edge.images.preprocess import Float32, Tensor
from edge.numeric_tolerances import PREPROCESS_ABS

_BATCH_PIXELS = 32 * 64**2
"""Pixels of one batch: tensors at the ends of all layers are held in eight variants at once, 0.4 GB for one image of 224 px."""
_FITS_DB = 40.0
"""Smallest SQNR of a fit that explains a difference: its residual is one part in ten thousand of the power."""
_MOST_CHANNELS = 3
_BETTER_DB = 20.0
"""How much better than the channels in their order another order has to fit: grey pictures fit in any."""


@dataclass(frozen=True)
class PairedImages:
    """The same images twice.

    Attributes:
        reference: (n, ...), the inputs of the reference.
        judged: the inputs of the judged side; often the same array.

    Raises InputError for other numbers of images, and for none.
    """

    reference: Tensor
    judged: Tensor

    def __post_init__(self) -> None:
        if self.reference.ndim < 2 or self.reference.shape != self.judged.shape or not len(self.reference):
            raise DataError(
                "the two sides did not get the same images",
                found=f"{self.reference.shape} and {self.judged.shape}",
                allowed="(n, ...) twice, n > 0",
            )

    def __len__(self) -> int:
        return len(self.reference)

    def split(self, count: int) -> Iterator[PairedImages]:
        """`count` of the images, spread evenly, then the others; all, and no others, where there are no more."""
        chosen = spread_evenly(len(self), count)
        if len(chosen) == len(self):
            yield self
            return
        for part in (chosen, np.delete(np.arange(len(self)), chosen)):
            yield PairedImages(self.reference[part], self.judged[part])

    def take(self, count: int) -> PairedImages:
        """`count` of the images, spread evenly, or all."""
        return next(self.split(count))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The images in order, in batches of either side."""
        size = max(1, 3 * _BATCH_PIXELS // math.prod(self.reference.shape[1:]))  # three values per pixel
        for start in range(0, len(self), size):
            yield self.reference[start : start + size], self.judged[start : start + size]


def compare_inputs(reference: Tensor, judged: Tensor) -> InputDrift:
    """How the judged side's images (n, C, H, W), or (n, H, W, C), differ from the reference's; any other is one channel.

    Every order of the channels and, per channel c, a_c x + b_c are fitted: another mean or deviation gives a_c and b_c, BGR for
    RGB another order.
    """
    reference, judged = (_channels_first(images.astype(np.float32)) for images in (reference, judged))
    signal, noise = (float(np.sum(values.astype(np.float64) ** 2)) for values in (reference, judged - reference))
    largest = float(np.abs(judged - reference).max())
    explanation = "" if largest <= PREPROCESS_ABS else _explain(reference, judged)
    return InputDrift(power_ratio_db(signal, noise), largest, explanation)


def _channels_first(images: Float32) -> Float32:
    if images.ndim == 4 and images.shape[1] > _MOST_CHANNELS >= images.shape[3]:
        images = images.transpose(0, 3, 1, 2)
    return images if images.ndim == 4 else images.reshape(len(images), 1, 1, -1)


def _explain(reference: Float32, judged: Float32) -> str:
    channels = range(reference.shape[1])
    orders = list(permutations(channels)) if len(channels) <= _MOST_CHANNELS else [tuple(channels)]
    fits = {order: [_fit(reference[:, source], judged[:, target]) for target, source in enumerate(order)] for order in orders}
    total = float(np.sum((judged - judged.mean(axis=(0, 2, 3), keepdims=True)).astype(np.float64) ** 2))
    residual = {order: power_ratio_db(total, sum(rest for _a, _b, rest in fit)) for order, fit in fits.items()}
    best, plain = max(orders, key=residual.__getitem__), tuple(channels)
    if residual[best] < residual[plain] + _BETTER_DB:
        best = plain
    if residual[best] < _FITS_DB:
        return "neither another mean or deviation nor another order of the channels: other images, or resized otherwise"
    factors = "; ".join(f"channel {c} is {a:.3f} x {round(b, 3) + 0.0:+.3f}" for c, (a, b, _rest) in enumerate(fits[best]))
    moved = any(abs(a - 1) > 10 * PREPROCESS_ABS or abs(b) > 10 * PREPROCESS_ABS for a, b, _rest in fits[best])
    if best == plain:
        return f"another mean or deviation: {factors}"
    order = f"channels in the order {', '.join(map(str, best))} (BGR for RGB is 2, 1, 0)"
    return f"{order}, then {factors}" if moved else order


def _fit(x: Float32, y: Float32) -> tuple[float, float, float]:
    """a, b of the least-squares fit y = a x + b, and the sum of its squared residuals, in float64."""
    u, v = (values.astype(np.float64).ravel() for values in (x, y))
    du, dv = u - u.mean(), v - v.mean()
    power = float(du @ du)
    a = float(du @ dv) / power if power > 0 else 0.0
    return a, float(v.mean() - a * u.mean()), float(np.sum((dv - a * du) ** 2))
