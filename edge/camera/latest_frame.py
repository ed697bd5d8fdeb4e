"""Hands the newest frame from the capture thread to the inference thread."""

import threading
from dataclasses import dataclass

from edge.camera.frame import Clock, Frame
from edge.images.preprocess import Uint8


@dataclass
class FeedStats:
    """What happened to a source so far.

    Attributes:
        captured, bad: frames that the source delivered, and unusable ones.
        dropped: frames that a newer one replaced before they were taken.
        lost, reconnected: how often the source went away and came back.
        lost_at: clock time since when no frames arrive; None while they do.
        dequeued_s: clock time at which the last frame was taken for the network.
    """

    captured: int = 0
    dropped: int = 0
    bad: int = 0
    lost: int = 0
    reconnected: int = 0
    lost_at: float | None = None
    dequeued_s: float = 0.0


class LatestFrame:
    """A slot for one frame: the newest.

    A frame that was not taken is replaced and counted as dropped. The time t at which the source delivered a frame and the
    time p at which it was taken are both read under the lock, so that the frame taken at p is the newest of all delivered
    until p:

        t(n) <= p(n) <= t(n + 1)    hence    p(n) - t(n) <= one interval of the source
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._error: BaseException | None = None
        self._closed = False
        self.stats = FeedStats()

    @property
    def ended(self) -> bool:
        """Whether the source ended, its last frame was taken, and the error of its end, if any, was raised."""
        with self._changed:
            return self._closed and self._frame is None and self._error is None

    def put(self, pixels: Uint8, capture_ms: float) -> None:
        """Replace the frame by a newer one."""
        with self._changed:
            if self._closed:
                return
            self.stats.dropped += self._frame is not None
            self._frame = Frame(pixels, self.stats.captured, self._clock(), capture_ms)
            self.stats.captured += 1
            self.on_put(self._frame)
            self._changed.notify_all()

    def on_put(self, frame: Frame) -> None:
        """Called under the lock for every frame: a hook for measurements."""

    def end(self, error: BaseException | None = None) -> None:
        """No frame follows. `error` is raised by `take` after the last frame; the first of several calls counts."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
            self._changed.notify_all()

    def take(self, wait_s: float = 0.0) -> Frame | None:
        """Take the newest frame; None if none arrives within `wait_s` seconds of real time. Raises the error of `end`."""
        with self._changed:
            if self._frame is None and not self._closed and wait_s > 0:
                self._changed.wait_for(lambda: self._frame is not None or self._closed, wait_s)
            frame, self._frame = self._frame, None
            if frame is not None:
                self.stats.dequeued_s = self._clock()
                return frame
            error, self._error = self._error, None
            if error is not None:
                raise error
            return None
