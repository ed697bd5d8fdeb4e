"""Confidence intervals in percentage points, and the verdict of one against a budget.

Pass when the whole interval lies within the budget, fail when all of it lies beyond, inconclusive otherwise. That the upper end
of a 95 % interval lies within the budget is a non-inferiority test at one-sided 2.5 %: it rejects "the loss is larger than the
budget". That its lower end lies beyond rejects "the loss is within the budget", at 2.5 % too. So about 2.5 % at most of engines
whose true loss is the budget or more pass, and about 2.5 % at most of those within it fail. Two one-sided tests of equivalence
(TOST; Schuirmann, J. Pharmacokin. Biopharm. 15, 1987) would also require low >= -budget; this is left out, because an engine
that answers better than its reference is correct. numpy and the standard library alone: this also runs on a device.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from calib.errors import DataError

Float64 = npt.NDArray[np.float64]
Verdict = Literal["pass", "fail", "inconclusive"]
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Confidence interval in percentage points: of a drop, or of a share."""

    level: float
    low_points: float
    high_points: float


def decide(interval: Interval, budget_points: float) -> Verdict:
    """Pass when the whole interval is at most the budget, fail when all of it exceeds the budget, inconclusive otherwise."""
    if interval.high_points <= budget_points:
        return "pass"
    return "fail" if interval.low_points > budget_points else "inconclusive"


def level_text(level: float) -> str:
    """A confidence level in percent, rounded down to two decimals."""
    return f"{math.floor(round(1e4 * level, 9)) / 100:g}%"


def wilson_limits(count: npt.ArrayLike, total: npt.ArrayLike, level: float = LEVEL) -> tuple[Float64, Float64]:
    """Wilson's score limits of a share count / total, elementwise, in [0, 1]; counts may be real.

    The shares x with |count / total - x| = z sqrt(x (1 - x) / total) (Wilson, JASA 22, 1927):

        high = (count + z^2 / 2 + z sqrt(count (total - count) / total + z^2 / 4)) / (total + z^2)

    and low by the product of the two, count^2 / (total (total + z^2)), which is exactly 0 at count 0. Raises DataError for a
    level outside (0, 1).
    """
    k, n, z2 = np.asarray(count, np.float64), np.asarray(total, np.float64), _z(level) ** 2
    high = (k + z2 / 2 + np.sqrt(z2 * (k * (n - k) / n + z2 / 4))) / (n + z2)
    return k**2 / (n * (n + z2) * high), np.minimum(high, 1.0)


def share_interval(count: int, images: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of the share count / images, in points.

    For images without labels: a drop cannot be larger than the share of answers that changed, |b - c| / n <= changed / n, so
    that an upper end within the budget passes without a label. Raises DataError unless 0 <= count <= images and images > 0.
    """
    if not 0 <= count <= images or not images:
        raise DataError("invalid count of images", found=f"{count} of {images}", allowed="0 to all of at least one image")
    low, high = wilson_limits(count, images, level)
    return Interval(level, 100.0 * float(low), 100.0 * float(high))


def _z(level: float) -> float:
    quantile = 0.5 + level / 2
    if not 0.5 < quantile < 1:
        raise DataError("invalid confidence level", found=level, allowed="between 0 and 1, 0.95 for instance")
    return NormalDist().inv_cdf(quantile)
