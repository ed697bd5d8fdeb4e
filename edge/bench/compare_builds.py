"""Compare the speed of two builds on a machine that is not idle: alternating runs, compared pair by pair.

The order is A B, B A, A B, ...: slow drift of the machine (temperature, other programs) affects both alike, and so does the
state of the caches after a run. The figure is the ratio of the medians, A's over B's: below 1, A is faster.

Its interval is a bootstrap over the pairs (percentiles of resampled ratios; Efron, Annals of Statistics 7, 1979). Neighbouring
pairs are correlated, because disturbances last longer than a run, and resampling single pairs would make the interval too
narrow: blocks of pairs are drawn instead, about n^(1/3) long, on a circle (Politis and Romano, 1992). The seed is fixed, so
that the same times give the same interval.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.errors import DataError
from edge.bench.latency import Clock, Float64, Plan

LEVEL = 0.95
RESAMPLES = 4000
PAUSE_S = 0.002
"""Pause before every run: idle threads of one library's pool spin for a while and would take cores from the other's run."""


@dataclass(frozen=True)
class Ratio:
    """Median time of A in units of that of B, and the ends of its interval at `level` over `runs` pairs."""

    ratio: float
    low: float
    high: float
    level: float
    runs: int


def interleave(
    first: Callable[[], object],
    second: Callable[[], object],
    plan: Plan,
    clock: Clock,
    pause: Callable[[float], object] = time.sleep,
) -> tuple[Float64, Float64]:
    """Times (n,), milliseconds, of both, run alternately: A B B A A B ... The plan counts pairs."""
    for _ in range(plan.warm_up):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    works = (first, second)
    begin = end = clock()
    while len(times[0]) < plan.runs or end - begin < plan.duration_s:
        order = (0, 1) if len(times[0]) % 2 == 0 else (1, 0)
        for index in order:
            pause(PAUSE_S)
            start = clock()
            works[index]()
            end = clock()
            times[index].append(end - start)
    return 1e3 * np.array(times[0], np.float64), 1e3 * np.array(times[1], np.float64)


def median_ratio(first: Float64, second: Float64, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Ratio:
    """Ratio of the medians of paired times (n,), with its interval; see the top of this file.

    Raises DataError unless there are equally many of both, at least two, and all are positive numbers.
    """
    n = len(first)
    finite = n == len(second) and n >= 2 and np.isfinite(first).all() and np.isfinite(second).all()
    if not finite or min(first.min(), second.min()) <= 0:
        raise DataError("times are not in pairs", found=f"{n} and {len(second)}", allowed="two pairs or more, all positive")
    ratio = float(np.median(first) / np.median(second))
    resampled = _blocks(n, resamples, seed)
    ratios = np.median(first[resampled], axis=1) / np.median(second[resampled], axis=1)
    low, high = (float(v) for v in np.quantile(ratios, ((1 - level) / 2, (1 + level) / 2)))
    return Ratio(ratio, min(low, ratio), max(high, ratio), level, n)


def _blocks(n: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Indices (resamples, n) of pairs, drawn in blocks on a circle."""
    length = max(1, round(n ** (1 / 3)))
    count = -(-n // length)
    starts = np.random.default_rng(seed).integers(0, n, (resamples, count))
    indices = (starts[:, :, None] + np.arange(length)) % n
    return indices.reshape(resamples, count * length)[:, :n]
