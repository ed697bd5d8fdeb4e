"""Time repeated runs and summarize their latency. numpy alone, so that a device can measure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calib.errors import DataError, InputError, UsageError

Float64 = npt.NDArray[np.float64]
Clock = Callable[[], float]
"""Monotonic seconds from any origin: `time.perf_counter`, or a test's own."""
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
    """Summary of times (n,), milliseconds. Raises DataError for no times, and for negative or non-finite ones."""
    if not len(times_ms) or not np.isfinite(times_ms).all() or times_ms.min() < 0 or times_ms.mean() <= 0:
        raise DataError("no times to summarize", found=f"{len(times_ms)} times", allowed="finite, not negative, not all zero")
    p50, p90, p95, p99 = (float(p) for p in np.percentile(times_ms, (50, 90, 95, 99)))
    mean = float(times_ms.mean())
    spread = float(times_ms.std(ddof=1)) if len(times_ms) > 1 else 0.0
    return Latency(len(times_ms), mean, p50, p90, p95, p99, float(times_ms.min()), float(times_ms.max()), spread / mean)


@dataclass(frozen=True)
class Plan:
    """Number of warm-up runs, least number and duration of measured runs. Raises UsageError for negative values or no runs."""

    warm_up: int = 20
    runs: int = 200
    duration_s: float = 0.0

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.runs < 1 or not 0 <= self.duration_s < float("inf"):
            raise UsageError(
                "nothing to measure",
                found=f"{self.warm_up} warm-up runs, {self.runs} runs, {self.duration_s:g} s",
                allowed="no negative number, and at least one run",
            )


@dataclass(frozen=True)
class Timed:
    """Times (n,) of the runs, milliseconds, and the clock at the start of the first and the end of the last."""

    times_ms: Float64
    begin_s: float
    end_s: float

    def per_second(self, batch: int) -> float:
        """Images per second of batches of `batch`, one after the other, the loop overhead included."""
        return batch * len(self.times_ms) / (self.end_s - self.begin_s)


def time_runs(work: Callable[[], object], plan: Plan, clock: Clock) -> Timed:
    """Run `work` according to the plan, and time every measured run."""
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
        raise InputError("the clock did not advance", found=f"{len(times)} runs", allowed="a clock that tells runs apart")
    return Timed(1e3 * np.array(times, np.float64), begin, end)
