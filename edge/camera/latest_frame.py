"""One place for one frame: the newest."""

from __future__ import annotations

import threading

from edge.camera.frame import Clock, Frame
from edge.images.preprocess import Uint8


class Slot:
    """Where the thread that captures leaves the newest frame for the thread that infers.

    A frame that nobody took is replaced and counted. The time t at which the source gave a frame away and the time p at which
    the loop took it are both read under the lock, so that what is taken at p is the newest of all that were given until p:

        t(n) <= p(n) <= t(n + 1)    hence    p(n) - t(n) <= one interval of the source
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._given = 0
        self._dropped = 0
        self._took_s = 0.0

    @property
    def given(self) -> int:
        """Frames so far."""
        return self._given

    @property
    def dropped(self) -> int:
        """Frames so far that a newer one replaced."""
        return self._dropped

    @property
    def took_s(self) -> float:
        """Clock time at which the last frame was taken."""
        return self._took_s

    @property
    def ended(self) -> bool:
        """Whether the source ended, its last frame was taken, and the error of its end, if any, was raised."""
        with self._changed:
            return self._ended and self._frame is None and self._error is None

    def put(self, pixels: Uint8, capture_ms: float) -> None:
        """Leave the newest frame."""
        with self._changed:
            if self._ended:
                return
            self._dropped += self._frame is not None
            self._frame = Frame(pixels, self._given, self._clock(), capture_ms)
            self._given += 1
            self.noted(self._frame)
            self._changed.notify_all()

    def noted(self, frame: Frame) -> None:
        """Called under the lock for every frame: for whoever measures."""

    def end(self, error: BaseException | None = None) -> None:
        """No frame follows. `error` is raised by `take` after the last frame; of several calls the first counts."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def take(self, wait_s: float = 0.0) -> Frame | None:
        """The newest frame, once; None if there is none within `wait_s` seconds of real time. Raises the error of `end`."""
        with self._changed:
            if self._frame is None and not self._ended and wait_s > 0:
                self._changed.wait_for(lambda: self._frame is not None or self._ended, wait_s)
            frame, self._frame = self._frame, None
            if frame is not None:
                self._took_s = self._clock()
            if frame is None and self._error is not None:
                error, self._error = self._error, None
                raise error
            return frame
