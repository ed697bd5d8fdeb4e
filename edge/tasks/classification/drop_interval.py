"""Confidence interval of the drop in accuracy from paired answers, McNemar's test, and the number of images to decide.

Reference and engine answer the same n labelled images: a both right, b right in the reference and wrong in the engine, c the
reverse, d both wrong. The drop is (b - c) / n. The images are paired, so that the flips alone carry its uncertainty.

**The interval** is Newcombe's square-and-add (Statistics in Medicine 17, 1998, 2635-2650, method 10) on the two flip rates.
With p = b / n, q = c / n, their Wilson limits [l, u] at the same level, and the correlation of two cells of a multinomial,

    r    = -sqrt(p q / ((1 - p) (1 - q)))
    low  = p - q - sqrt((p - l_p)^2 - 2 r (p - l_p) (u_q - q) + (u_q - q)^2)
    high = p - q + sqrt((u_p - p)^2 - 2 r (u_p - p) (q - l_q) + (q - l_q)^2)

This is method 10 of the table (a + d, b, c, 0). The drop does not depend on how the other images divide into both right and
both wrong, so neither may its interval; that of method 10 on (a, b, c, d) does, and with few flips it is too narrow for a
network that is right half of the time. Exact coverage at nominal 95 %, 2 to 60 expected flips, all divisions into b and c, n
large; in brackets the largest share of intervals that end below the true drop (nominal 2.5 %), which lets a bad engine pass:

    this interval 95.0 to 99.9 % (2.5 %)     method 10 at 90 % right 94.6 to 100.0 % (4.4 %), at 50 % 86.4 to 99.9 % (13.5 %)
    Tango's score 92.9 to 99.4 % (2.7 %)     Agresti-Min 86.4 to 99.9 % (13.5 %)

`scripts/bench/drift_statistics.py coverage` simulates all of them, and the bootstrap.

The verdict against a budget: `edge.tasks.interval.decide`. numpy and the standard library alone: this also runs on a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calib.errors import DataError
from edge.tasks.interval import LEVEL, Float64, Interval, decide, wilson_limits

MOST_IMAGES = 10_000_000
"""More are not labelled to settle a verdict."""


@dataclass(frozen=True)
class Flips:
    """Number of images whose answer changed from right to wrong, and from wrong to right."""

    right_to_wrong: int
    wrong_to_right: int


@dataclass(frozen=True)
class Paired:
    """Number of images by reference and engine answer, in this order. Raises DataError for a negative count or no image."""

    both_right: int
    right_to_wrong: int
    wrong_to_right: int
    both_wrong: int

    def __post_init__(self) -> None:
        counts = (self.both_right, self.right_to_wrong, self.wrong_to_right, self.both_wrong)
        if min(counts) < 0 or not sum(counts):
            raise DataError("invalid counts of paired answers", found=counts, allowed="none negative, at least one image")

    @classmethod
    def of(cls, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Paired:
        """Count from bool (n,): which images are right on each side."""
        sides = ((before, after), (before, ~after), (~before, after), (~before, ~after))
        return cls(*(int((a & b).sum()) for a, b in sides))

    @property
    def images(self) -> int:
        """Number of images."""
        return self.both_right + self.right_to_wrong + self.wrong_to_right + self.both_wrong

    @property
    def flips(self) -> Flips:
        """The two counts on which the drop depends."""
        return Flips(self.right_to_wrong, self.wrong_to_right)


def mcnemar_p(flips: Flips) -> float:
    """Exact two-sided p-value of McNemar's test that flips are equally likely in both directions.

    p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2), which is 1 without flips (McNemar, Psychometrika 12, 1947). It
    tests whether there is a drop at all, not whether it is within a budget: with many images a tiny drop is significant.
    Raises DataError for a negative count.
    """
    total, fewer = flips.right_to_wrong + flips.wrong_to_right, min(flips.right_to_wrong, flips.wrong_to_right)
    if fewer < 0:
        raise DataError("invalid counts of flips", found=flips, allowed="none negative")
    k = np.arange(1, fewer + 1)
    log_binomial = np.concatenate([[0.0], np.cumsum(np.log((total - k + 1) / k))])  # of (total, k), k = 0 ... fewer
    return min(1.0, 2.0 * float(np.exp(log_binomial - total * np.log(2.0)).sum()))


def drop_limits(
    lost: npt.ArrayLike, won: npt.ArrayLike, images: npt.ArrayLike, level: float = LEVEL
) -> tuple[Float64, Float64]:
    """The interval of the drop as shares in [-1, 1], elementwise; `lost` right to wrong, `won` wrong to right, may be real.

    Formula at the top of this file; r is 0 where one of the flips does not occur.
    """
    b, c, n = (np.asarray(counts, np.float64) for counts in (lost, won, images))
    p, q = b / n, c / n
    low_p, high_p = wilson_limits(b, n, level)
    low_q, high_q = wilson_limits(c, n, level)
    r = -np.sqrt(np.divide(p * q, (1 - p) * (1 - q), out=np.zeros(np.broadcast(p, q).shape), where=p * q > 0))
    low: Float64 = p - q - _side(p - low_p, high_q - q, r)
    high: Float64 = p - q + _side(high_p - p, q - low_q, r)
    return low, high


def drop_interval(paired: Paired, level: float = LEVEL) -> Interval:
    """The interval of the drop in points; formula at the top of this file. Raises DataError for a level outside (0, 1)."""
    return _interval(paired.right_to_wrong, paired.wrong_to_right, paired.images, level)


def images_to_decide(paired: Paired, budget_points: float, level: float = LEVEL) -> int | None:
    """Number of images that decide if all rates stay as they are, rounded up to two significant digits; None above MOST_IMAGES.

    The smallest n at which the interval of (n b / images, n c / images) lies on one side of the budget. Both limits approach
    the drop as n grows, so that bisection finds it. None means that the drop equals the budget, or nearly so. An estimate:
    other images have other rates, and about half of the samples of this size decide. Raises DataError for a level outside
    (0, 1).
    """

    def decided(images: int) -> bool:
        scale = images / paired.images
        interval = _interval(scale * paired.right_to_wrong, scale * paired.wrong_to_right, images, level)
        return decide(interval, budget_points) != "inconclusive"

    open_at, decided_at = 0, MOST_IMAGES
    if not decided(decided_at):
        return None
    while decided_at - open_at > 1:
        middle = (open_at + decided_at) // 2
        open_at, decided_at = (open_at, middle) if decided(middle) else (middle, decided_at)
    step: int = 10 ** max(0, len(str(decided_at)) - 2)
    return -(-decided_at // step) * step


def _interval(lost: float, won: float, images: int, level: float) -> Interval:
    low, high = drop_limits(lost, won, images, level)
    return Interval(level, 100.0 * float(low), 100.0 * float(high))


def _side(x: Float64, y: Float64, r: Float64) -> Float64:
    """Length of one side of the interval from the two distances, bit-identical when they are exchanged; r <= 0."""
    length: Float64 = np.sqrt(x**2 + y**2 - 2 * r * (x * y))
    return length
