"""Latency percentiles and rate over the last results, and a row of them per second for the page, all in bounded memory."""

import math
import threading
from collections import deque
from dataclasses import astuple, dataclass, fields

import numpy as np

from edge.camera.frame import Clock, Latency

WINDOW = 1024
"""Results that percentiles are computed over."""
RATE_S = 3.0
"""Seconds that a rate is computed over."""
PARTS = tuple(field.name for field in fields(Latency))
KEPT_S = 300
"""Rows that a history keeps."""
WINDOW_S = 5.0
"""A row is computed over the results of so many seconds before it, and at most over the newest of `LatencyStats`."""

Row = list[float | None]
"""[second, results per second, p50 and p95 of each of PARTS in ms]; None where the window holds no result."""


@dataclass(frozen=True)
class Percentiles:
    """Of one field of `Latency` over the last results, milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class LatencyStats:
    """The latencies of the last `window` results; thread-safe."""

    def __init__(self, window: int = WINDOW) -> None:
        self._kept: deque[tuple[float, tuple[float, ...]]] = deque(maxlen=window)
        self._lock = threading.Lock()
        self.count = 0

    def add(self, latency: Latency, now_s: float = 0.0) -> None:
        """Add one result at a clock time."""
        with self._lock:
            self._kept.append((now_s, astuple(latency)))
            self.count += 1

    def percentiles(self, since_s: float = -math.inf) -> dict[str, Percentiles]:
        """Field of `Latency` -> its percentiles (linear interpolation) over results added since; empty if there are none."""
        with self._lock:
            kept = [latency for added_s, latency in self._kept if added_s >= since_s]
        if not kept:
            return {}
        values = np.percentile(kept, (50, 95, 99, 100), axis=0)
        return {part: Percentiles(*(float(v) for v in values[:, i])) for i, part in enumerate(PARTS)}


class Rate:
    """Events per second over the last `RATE_S` seconds."""

    def __init__(self, seconds: float = RATE_S) -> None:
        self._times: deque[float] = deque(maxlen=4096)
        self._seconds = seconds

    def add(self, now: float) -> float:
        """Add an event at a clock time, and return the rate; 0 after the first event."""
        self._times.append(now)
        while len(self._times) > 2 and self._times[0] < now - self._seconds:
            self._times.popleft()
        span = now - self._times[0]
        return (len(self._times) - 1) / span if span > 0 else 0.0


class LatencyHistory:
    """Rows of the last minutes. `add` is called in the inference thread; everything else in one other thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock()
        self._stats = LatencyStats()
        self._counts: deque[tuple[float, int]] = deque([(self._started_s, 0)])
        self._second = 0
        self.rows: deque[Row] = deque(maxlen=KEPT_S)

    def add(self, latency: Latency) -> None:
        """Add one result."""
        self._stats.add(latency, self._clock())

    def close_second(self) -> Row | None:
        """The row of the second that just ended, added to `rows`; None until the next second is over."""
        now_s = self._clock()
        second = int(now_s - self._started_s)
        if second <= self._second:
            return None
        self._second = second
        row: Row = [second, self._rate(now_s)]
        percentiles = self._stats.percentiles(now_s - WINDOW_S)
        for name in PARTS:
            part = percentiles.get(name)
            row += [None, None] if part is None else [finite(part.p50_ms, 3), finite(part.p95_ms, 3)]
        self.rows.append(row)
        return row

    def _rate(self, now_s: float) -> float:
        """Results per second since the start of the window."""
        while len(self._counts) > 1 and self._counts[1][0] <= now_s - WINDOW_S:
            self._counts.popleft()
        start_s, before = self._counts[0]
        count = self._stats.count
        self._counts.append((now_s, count))
        return round((count - before) / (now_s - start_s), 2)


def finite(value: float, digits: int) -> float | None:
    """A number with so many decimal places, None for NaN and infinities, which JSON cannot represent."""
    return round(value, digits) if math.isfinite(value) else None
