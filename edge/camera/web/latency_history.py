"""Rate and latency over the last minutes, one row a second: results per second, p50 and p95 of each part of the latency."""

from __future__ import annotations

import math
from collections import deque

from edge.camera.frame import Clock, Latency
from edge.camera.latency_stats import PARTS as FIELDS
from edge.camera.latency_stats import LatencyStats

PARTS = tuple(name.removesuffix("_ms") for name in FIELDS)
"""In the order of a row."""
KEPT_S = 300
"""Rows kept."""
WINDOW_S = 5.0
"""A row is computed over the results of so many seconds before it, and at most over the newest of `LatencyStats`."""

Row = list[float | None]
"""[second, results per second, p50 and p95 of each of PARTS in ms]; None where the window holds no result."""


class LatencyHistory:
    """`add` is called in the inference thread; everything else in one other thread."""

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
        for name in FIELDS:
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
