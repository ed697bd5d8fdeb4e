"""Times of many runs, and what is said of them. numpy alone: a device measures too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calib.errors import InputError

Float64 = npt.NDArray[np.float64]
Clock = Callable[[], float]
"""Seconds from any origin, never backwards: `time.perf_counter`, or a test's own."""
FEW = 100
"""Runs below which the 99th percentile is little more than the slowest run."""


@dataclass(frozen=True)
class Latency:
    """Times of `runs` runs of one batch, milliseconds.

    Percentiles are interpolated linearly between neighbouring runs (numpy's default; Hyndman and Fan's type 7). `cv` is the
    coefficient of variation: the standard deviation of the sample (n - 1), in units of the mean.
    """

    runs: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    cv: float


def summarize(times_ms: Float64) -> Latency:
    """Figures of times (n,), milliseconds. Raises InputError for none, or for one that is no positive number."""
    if not len(times_ms) or not np.isfinite(times_ms).all() or times_ms.min() < 0 or times_ms.mean() <= 0:
        raise InputError("no times to summarize", found=f"{len(times_ms)} times", allowed="finite, not negative, not all zero")
    p50, p90, p95, p99 = (float(p) for p in np.percentile(times_ms, (50, 90, 95, 99)))
    mean = float(times_ms.mean())
    spread = float(times_ms.std(ddof=1)) if len(times_ms) > 1 else 0.0
    return Latency(len(times_ms), mean, p50, p90, p95, p99, float(times_ms.min()), float(times_ms.max()), spread / mean)


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        warm_up: runs that are not counted.
        runs: at least so many are.
        duration_s: and for at least so long.

    Raises InputError for negative numbers, or nothing to measure.
    """

    warm_up: int = 20
    runs: int = 200
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.runs < 1 or not 0 <= self.duration_s < float("inf"):
            raise InputError(
                "nothing to measure",
                found=f"{self.warm_up} runs to warm up, {self.runs} runs, {self.duration_s:g} s",
                allowed="no negative number, and at least one run",
            )


@dataclass(frozen=True)
class Timed:
    """Times (n,) of the runs, milliseconds, and the clock's readings at the begin of the first and the end of the last."""

    times_ms: Float64
    begin_s: float
    end_s: float

    def per_second(self, batch: int) -> float:
        """Images per second of batches of `batch`, one after the other, the loop's own time included."""
        return batch * len(self.times_ms) / (self.end_s - self.begin_s)


def time_runs(work: Callable[[], object], plan: Plan, clock: Clock) -> Timed:
    """Run `work` as the plan says, and take the time of every run that counts."""
    for _ in range(plan.warm_up):
        work()
    times: list[float] = []
    begin = end = clock()
    while len(times) < plan.runs or end - begin < plan.duration_s:
        start = clock()
        work()
        end = clock()
        times.append(end - start)
    if end <= begin:
        raise InputError("the clock did not move", found=f"{len(times)} runs", allowed="a clock that tells runs apart")
    return Timed(1e3 * np.array(times, np.float64), begin, end)
