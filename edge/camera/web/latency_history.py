"""Rate and latency over the last minutes, one row a second: results per second, p50 and p95 of each part of the latency."""

from __future__ import annotations

from collections import deque

import numpy as np

from edge.camera.frame import Clock, Latency

PARTS = ("capture", "preprocess", "inference", "postprocess", "age")
"""Fields of `Latency`, in the order of a row."""
KEPT_S = 300
"""Rows kept."""
WINDOW_S = 5.0
"""A row is computed over the results of so many seconds before it."""
SAMPLES = 1024
"""Results that a row is computed over at most: the newest of its window."""

Row = list[float | None]
"""[second, results per second, p50 and p95 of each of PARTS in ms]; None where the window holds no result."""


class LatencyHistory:
    """`add` is called in the inference thread and never blocks; everything else in one other thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock()
        self._arrived: deque[tuple[float, Latency]] = deque(maxlen=4 * SAMPLES)  # append and popleft are atomic: no lock
        self._window: deque[tuple[float, Latency]] = deque(maxlen=SAMPLES)
        self._count = 0
        self._counts: deque[tuple[float, int]] = deque([(self._started_s, 0)])
        self._second = 0
        self.rows: deque[Row] = deque(maxlen=KEPT_S)

    def add(self, latency: Latency) -> None:
        """Add one result."""
        self._count += 1
        self._arrived.append((self._clock(), latency))

    def close_second(self) -> Row | None:
        """The row of the second that just ended, added to `rows`; None until the next second is over."""
        now_s = self._clock()
        second = int(now_s - self._started_s)
        if second <= self._second:
            return None
        self._second = second
        self._drain()
        while self._window and self._window[0][0] < now_s - WINDOW_S:
            self._window.popleft()
        row: Row = [second, self._rate(now_s), *self._percentiles()]
        self.rows.append(row)
        return row

    def _drain(self) -> None:
        while True:
            try:
                self._window.append(self._arrived.popleft())
            except IndexError:
                return

    def _rate(self, now_s: float) -> float:
        """Results per second since the start of the window."""
        while len(self._counts) > 1 and self._counts[1][0] <= now_s - WINDOW_S:
            self._counts.popleft()
        start_s, before = self._counts[0]
        count = self._count
        self._counts.append((now_s, count))
        return round((count - before) / (now_s - start_s), 2)

    def _percentiles(self) -> list[float | None]:
        if not self._window:
            return [None] * (2 * len(PARTS))
        parts = np.array([[getattr(latency, f"{part}_ms") for part in PARTS] for _, latency in self._window])
        p50, p95 = np.percentile(parts, (50, 95), axis=0)
        pairs = np.stack([p50, p95], axis=1).ravel()  # (2 * parts,)
        return [round(float(value), 3) if np.isfinite(value) else None for value in pairs]
