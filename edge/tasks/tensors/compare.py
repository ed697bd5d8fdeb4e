"""Compare the outputs of an engine with those of the FP32 reference as numbers: the figures of every output.

numpy alone: this also runs on a device. Measures: `image_errors`; intervals: `ratio_interval`; verdict: `verdict`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from calib.errors import DataError
from calib.metrics import power_ratio_db
from edge.numeric_tolerances import RECOMPUTED, SQNR_CAP_DB
from edge.tasks.constant_outputs import ZERO
from edge.tasks.interval import LEVEL, level_text
from edge.tasks.task import Comparison, Sides
from edge.tasks.tensors.image_errors import Bools, Float64, ImageErrors
from edge.tasks.tensors.measured_output import MeasuredOutput, measure_sides
from edge.tasks.tensors.ratio_interval import half_width

DECIBELS = 10 / math.log(10)
"""dB of a factor e."""


@dataclass(frozen=True)
class OutputFigures:
    """The figures of one output over the images on which the engine's is finite; None for what is not defined.

    Attributes:
        integers: whether values are compared as names, see `image_errors`.
        constant: "zero for every image" or "the same for every image" where the reference's output is so.
        not_finite: images for which the engine gave NaN or infinity.
        sqnr_db: over all images, SQNR_CAP_DB for equal outputs; `sqnr_low_db` and `sqnr_high_db` are its 95 % interval.
        sqnr_median_db, sqnr_worst_db: of the images whose reference is not zero, each by itself.
        cosine_mean: over the images, with its interval; an image that is zero on both sides counts as 1, on one side as 0.
        max_abs: largest difference of two values; None for integers.
        equal_share: share of equal integers; None for floating point.
    """

    name: str
    integers: bool
    constant: str
    not_finite: int
    sqnr_db: float | None
    sqnr_low_db: float | None
    sqnr_high_db: float | None
    sqnr_median_db: float | None
    sqnr_worst_db: float | None
    cosine_mean: float | None
    cosine_low: float | None
    cosine_high: float | None
    cosine_worst: float | None
    max_abs: float | None
    equal_share: float | None

    @property
    def equal(self) -> bool:
        """Whether both sides are equal on every image."""
        return self.sqnr_db == SQNR_CAP_DB

    def text(self, level: float = LEVEL) -> str:
        """The figures in one line; `level` is that of the interval."""
        if self.constant == ZERO or self.sqnr_db is None or self.cosine_mean is None:
            return "undefined: " + (f"the reference's output is {self.constant}" if self.constant else "no finite output")
        if self.equal:
            return "equal on both sides"
        ends = "" if self.sqnr_low_db is None else f" [{self.sqnr_low_db:.1f}, {self.sqnr_high_db:.1f}] at {level_text(level)}"
        text = f"SQNR {self.sqnr_db:.1f} dB{ends}, worst image {self.sqnr_worst_db:.1f} dB, mean cosine {self.cosine_mean:.5f}"
        return text if self.equal_share is None else f"{text}, {self.equal_share:.2%} of the integers equal"


@dataclass(frozen=True)
class TensorComparison(Comparison):
    """The figures of every output, in the order of the network's."""

    outputs: tuple[OutputFigures, ...]
    level: float = LEVEL

    @property
    def with_truth(self) -> bool:
        """See `Comparison`."""
        return False


def compare(sides: Sides, names: tuple[str, ...], level: float = LEVEL) -> TensorComparison:
    """Compare both sides' outputs, called `names`, with intervals of `level`.

    Raises DataError for outputs that do not match and for a reference that is not finite.
    """
    measured = measure_sides(sides, names)
    images = measured[0].shape[0]
    finite, outputs = np.ones(images, np.bool_), []
    missing: list[str] = []
    for name, output in zip(names, measured, strict=True):
        if output.shape[0] != images:
            raise DataError("outputs of different numbers of images", where=name, found=output.shape[0], allowed=images)
        finite &= output.errors.finite
        figures = output_figures(name, output, level)
        outputs.append(figures)
        missing += _not_compared(figures, output.errors)
    return TensorComparison(images, int((~finite).sum()), tuple(missing), tuple(outputs), level)


def image_sqnr_db(errors: ImageErrors) -> Float64:
    """SQNR (n,) of every image by itself, dB: SQNR_CAP_DB for equal outputs, -SQNR_CAP_DB for those that are not finite."""
    pairs = zip(errors.signal, errors.noise, errors.finite, strict=True)
    return np.array([power_ratio_db(s, e) if finite else -SQNR_CAP_DB for s, e, finite in pairs])


def output_figures(name: str, output: MeasuredOutput, level: float = LEVEL) -> OutputFigures:
    """The figures of one output."""
    integers, errors, finite = output.integers, output.errors, output.errors.finite
    known = finite & (errors.signal > 0)
    signal, noise, cosine = errors.signal[finite], errors.noise[finite], errors.cosine[finite]
    some, each = bool(finite.any()), image_sqnr_db(errors)[known]
    return OutputFigures(
        name=name,
        integers=integers,
        constant=output.constant,
        not_finite=int((~finite).sum()),
        **_sqnr(signal, noise, level),
        sqnr_median_db=float(np.median(each)) if len(each) else None,
        sqnr_worst_db=float(each.min()) if len(each) else None,
        **_mean_cosine(cosine, level),
        cosine_worst=float(cosine.min()) if some else None,
        max_abs=float(errors.largest[finite].max()) if some and not integers else None,
        equal_share=1 - float(noise.sum() / 2 / signal.sum()) if integers else None,
    )


def _sqnr(signal: Float64, noise: Float64, level: float) -> dict[str, float | None]:
    """SQNR and its interval, dB, of images (n,); None where the signal is zero everywhere, or the images are too few."""
    value = low = high = None
    if signal.any():
        value = low = high = power_ratio_db(float(signal.sum()), float(noise.sum()))
        if abs(value) < SQNR_CAP_DB:  # neither equal nor an error beyond float64
            width = half_width(noise, signal, level)
            low, high = (None, None) if width is None else (value - DECIBELS * width, value + DECIBELS * width)
    return {"sqnr_db": value, "sqnr_low_db": low, "sqnr_high_db": high}


def _mean_cosine(cosine: Float64, level: float) -> dict[str, float | None]:
    """Mean cosine (n,) and its interval: that of the sum of 1 - cosine over the number of images."""
    mean = low = high = None
    if len(cosine):
        distance = 1 - cosine
        far = float(distance.mean())
        mean = low = high = 1 - far
        if far:
            width = half_width(distance, np.ones(len(distance)), level)
            ends = (None, None) if width is None else (max(-1.0, 1 - far * math.exp(width)), 1 - far * math.exp(-width))
            low, high = ends
    return {"cosine_mean": mean, "cosine_low": low, "cosine_high": high}


def _not_compared(figures: OutputFigures, errors: ImageErrors) -> Iterator[str]:
    output = f"output {figures.name!r}"
    if figures.constant:
        yield f"{output}: the reference's is {figures.constant}, which shows nothing of the network"
    if figures.not_finite:
        yield f"{output}: NaN or infinity on {figures.not_finite} images, which the other figures leave out"
    zero: Bools = errors.finite & (errors.signal == 0)
    if zero.any() and not figures.constant:
        yield f"{output}: the reference's is zero on {int(zero.sum())} images, whose own SQNR is not defined"


def contradiction(comparison: TensorComparison) -> str:
    """Why the figures cannot be of one comparison; "" when they can."""
    images, outputs = comparison.images, comparison.outputs
    if images < 1 or not outputs or len({figures.name for figures in outputs}) != len(outputs):
        return f"{images} images, outputs {', '.join(figures.name for figures in outputs) or 'none'}"
    if not max(f.not_finite for f in outputs) <= comparison.not_finite <= min(images, sum(f.not_finite for f in outputs)):
        return f"{comparison.not_finite} of {images} images are not finite"
    return next(filter(None, map(_contradiction, outputs)), "")


def _contradiction(figures: OutputFigures) -> str:
    """The same for one output: the order of figures that bound each other."""
    decibels = (figures.sqnr_low_db, figures.sqnr_db, figures.sqnr_high_db)
    if not _ascending(*decibels) or not _ascending(figures.sqnr_worst_db, figures.sqnr_median_db):
        return f"output {figures.name!r}: {figures.sqnr_db} dB, interval {decibels[::2]}, worst {figures.sqnr_worst_db} dB"
    present = [value for value in decibels if value is not None]
    if len(present) == 3 and abs(present[0] + present[2] - 2 * present[1]) > RECOMPUTED:
        return f"output {figures.name!r}: {figures.sqnr_db} dB is not in the middle of its interval"
    mean, ends = figures.cosine_mean, (figures.cosine_low, figures.cosine_high)
    if not _ascending(-1.0, ends[0], mean, ends[1], 1.0) or not _ascending(-1.0, figures.cosine_worst, mean):
        return f"output {figures.name!r}: cosine {mean}, interval {ends}, worst {figures.cosine_worst}"
    return ""


def _ascending(*values: float | None) -> bool:
    """Whether the figures that are present ascend, rounding apart."""
    present = [value for value in values if value is not None]
    return all(a <= b + RECOMPUTED for a, b in itertools.pairwise(present))
