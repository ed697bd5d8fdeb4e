"""Waiting: back-off before a lost source is opened again, and pacing to a rate. Clock and sleep are the caller's."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from calib.errors import UsageError
from edge.camera.frame import Clock

Sleep = Callable[[float], object]
"""Waits so many seconds, or less when interrupted."""


@dataclass(frozen=True)
class Reconnect:
    """Exponential back-off for opening a lost source again: after 0.5, 1, 2, 4, 8, 10, 10 ... seconds.

    `for_s`: give up after so long without a frame; 0: at once. Raises UsageError for a negative or infinite time.
    """

    for_s: float
    first_s: float = 0.5
    max_s: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.for_s) and self.for_s >= 0 and 0 < self.first_s <= self.max_s):
            raise UsageError(
                "the time for reconnecting must not be negative",
                where="--reconnect-for",
                found=self.for_s,
                allowed="seconds, 0 or more",
            )

    def wait_s(self, attempt: int) -> float:
        """Seconds to wait before attempt 0, 1, 2, ..."""
        return min(self.max_s, self.first_s * 2.0 ** min(attempt, 30))


class Pacer:
    """Paces calls to `fps`, None: never waits. After a delay it resumes at the normal rate instead of catching up."""

    def __init__(self, fps: float | None, clock: Clock, sleep: Sleep) -> None:
        self._interval_s = 0.0 if fps is None else 1.0 / fps
        self._clock, self._sleep = clock, sleep
        self._due_s = -math.inf

    def remaining_s(self) -> float:
        """Seconds until the next call is due; 0: now."""
        return max(0.0, self._due_s - self._clock())

    def advance(self) -> None:
        """Note a call: the next one is due an interval later."""
        now_s = self._clock()
        late = now_s > self._due_s + self._interval_s
        self._due_s = (now_s if late else self._due_s) + self._interval_s

    def wait(self) -> None:
        """Sleep until the next call is due, and note it."""
        remaining_s = self.remaining_s()
        if remaining_s > 0:
            self._sleep(remaining_s)
        self.advance()
