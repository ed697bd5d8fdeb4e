"""Levels of the intervals of a sequential test: over all looks together they hold the true value with 95 %.

Data are looked at after growing shares t_1 < ... < t_K = 1 of all images, and the test may stop at each of them. With plain
95 % intervals at every look a network exactly at its budget would be judged wrongly about three times as often. So each look
spends a part of the error (Lan and DeMets, Biometrika 70, 1983), up to share t on each side

    s(t) = 2.5 % t^2        (Kim and DeMets, Biometrika 74, 1987)

which decides clear cases early and leaves the last look most: its interval is that of 96 %, hardly wider than a single test's.
The sums of a growing sample are a Brownian motion B(t); the bounds c_k solve

    P(|B(t_j)| < c_j for all j < k, B(t_k) >= c_k) = s(t_k) - s(t_{k-1})

by integration over the density of the paths that have not left (Armitage, McPherson and Rowe, JRSS A 132, 1969). The interval
at look k has the quantile c_k / sqrt(t_k): a repeated confidence interval (Jennison and Turnbull, JRSS B 51, 1989), which holds
the level whatever rule stops the test. numpy and the standard library alone: a device judges too.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from edge.tasks.interval import LEVEL, Float64

_NODES = 128
_HIGHEST = 1 - 1e-12
"""Levels above differ from 1 by little more than rounding; capping one adds that little to the error."""


def look_levels(sizes: Sequence[int]) -> tuple[float, ...]:
    """Level of the interval at each look by the numbers of images, ascending, the last of them all; one look has LEVEL."""
    return _levels(tuple(size / sizes[-1] for size in sizes))


def spent(share: float) -> float:
    """Error spent on each side up to a share of the images, in [0, 1]."""
    return (1 - LEVEL) / 2 * share**2


@lru_cache
def _levels(shares: tuple[float, ...]) -> tuple[float, ...]:
    """The same by share of the images."""
    if len(shares) == 1:
        return (LEVEL,)
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    at, density = np.zeros(1), np.ones(1)  # paths that have not left, and their probability with the weights of the integral
    levels = []
    for before, share in pairwise((0.0, *shares)):
        spread = math.sqrt(share - before)
        error = spent(share) - spent(before)
        bound = _bound(at, density, spread, error)
        levels.append(min(_HIGHEST, math.erf(bound / math.sqrt(2 * share))))
        inside = bound * points
        steps = (inside[:, None] - at) / spread
        density = bound * weights * (np.exp(-(steps**2) / 2) @ density) / (spread * math.sqrt(2 * math.pi))
        at = inside
    return tuple(levels)


def _bound(at: Float64, density: Float64, spread: float, error: float) -> float:
    """The bound that paths from `at` exceed after a step of deviation `spread` with probability `error`, by bisection."""
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        exceeds = float(_tail((middle - at) / spread) @ density) > error
        low, high = (middle, high) if exceeds else (low, middle)
    return (low + high) / 2


def _tail(values: Float64) -> Float64:
    """P(Z > value) of a standard normal Z, elementwise."""
    return np.array([math.erfc(value / math.sqrt(2)) / 2 for value in values.flat]).reshape(values.shape)
