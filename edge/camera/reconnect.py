"""Waiting: for a camera that went away, and for the time of the next picture. Clock and sleep are the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from calib.errors import InputError
from edge.camera.frame import Clock

Sleep = Callable[[float], None]
"""Waits so many seconds, or less when it is to stop."""


@dataclass(frozen=True)
class Reconnect:
    """How a source that was lost is opened again: after 0.5, 1, 2, 4, 8, 10, 10 ... seconds.

    Attributes:
        for_s: give up after so long without a picture; 0: at once.
        first_s, most_s: the first wait and the longest one; each is twice the one before.
    """

    for_s: float
    first_s: float = 0.5
    most_s: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.for_s) and self.for_s >= 0 and 0 < self.first_s <= self.most_s):
            raise InputError(
                "reconnecting takes no negative time", where="--reconnect-for", found=self.for_s, allowed="seconds, 0 or more"
            )

    def wait_s(self, attempt: int) -> float:
        """Seconds before attempt 0, 1, 2, ..."""
        return min(self.most_s, self.first_s * 2.0 ** min(attempt, 30))


class Pacer:
    """Lets one through per interval. Whoever is late by more than an interval is not let through in a burst."""

    def __init__(self, fps: float, clock: Clock, sleep: Sleep) -> None:
        self._interval = 1.0 / fps
        self._clock, self._sleep = clock, sleep
        self._due: float | None = None

    def left_s(self) -> float:
        """Seconds until the next one may pass; 0 or less: now."""
        return 0.0 if self._due is None else self._due - self._clock()

    def go(self) -> None:
        """One passes."""
        now = self._clock()
        late = self._due is None or now > self._due + self._interval
        self._due = (now if late or self._due is None else self._due) + self._interval

    def wait(self) -> None:
        """Wait until one may pass, and pass."""
        left = self.left_s()
        if left > 0:
            self._sleep(left)
        self.go()
