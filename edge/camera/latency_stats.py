"""Latency percentiles over the last results, and the rate over the last seconds, in bounded memory."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import astuple, dataclass, fields

import numpy as np

from edge.camera.frame import Latency

WINDOW = 1024
"""Results that percentiles are computed over."""
RATE_S = 3.0
"""Seconds that a rate is computed over."""
PARTS = tuple(field.name for field in fields(Latency))


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
        self._ring = np.zeros((window, len(PARTS)))
        self._added_s = np.zeros(window)
        self._count = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Results so far."""
        return self._count

    def add(self, latency: Latency, now_s: float = 0.0) -> None:
        """Add one result at a clock time."""
        place = self._count % len(self._ring)
        with self._lock:
            self._ring[place], self._added_s[place] = astuple(latency), now_s
            self._count += 1

    def percentiles(self, since_s: float = -math.inf) -> dict[str, Percentiles]:
        """Field of `Latency` -> its percentiles (linear interpolation) over results added since; empty if there are none."""
        with self._lock:
            kept = self._ring[: self._count][self._added_s[: self._count] >= since_s]  # a copy
        if not len(kept):
            return {}
        values = np.percentile(kept, (50, 95, 99, 100), axis=0)
        return {part: Percentiles(*(float(v) for v in values[:, i])) for i, part in enumerate(PARTS)}


class Rate:
    """Events per second over the last `RATE_S` seconds."""

    def __init__(self, seconds: float = RATE_S, most: int = 4096) -> None:
        self._times: deque[float] = deque(maxlen=most)
        self._seconds = seconds

    def add(self, now: float) -> float:
        """Add an event at a clock time, and return the rate; 0 after the first event."""
        self._times.append(now)
        while len(self._times) > 2 and self._times[0] < now - self._seconds:
            self._times.popleft()
        span = now - self._times[0]
        return (len(self._times) - 1) / span if span > 0 else 0.0
