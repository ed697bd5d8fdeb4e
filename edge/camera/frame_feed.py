"""What the loop takes frames from: the newest frame of a source that sets its own pace, or every frame of one that waits."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import replace

from edge.camera.capture import Capture
from edge.camera.forced_exit import THREAD_PREFIX
from edge.camera.frame import Clock, Frame, Source, SourceLost
from edge.camera.latest_frame import LatestFrame
from edge.camera.reconnect import Reconnect

STALL_S = 5.0
"""A read that takes longer counts as a loss: the slowest cameras deliver one frame a second."""
_JOIN_S = 0.5
"""How long a thread may take to end before it is abandoned; it is a daemon."""
_OPENING_S = 30.0
"""Beyond the time for reconnecting, after which an attempt that hangs inside a driver or a name server is abandoned."""


class FrameFeed(ABC):
    """Frames for the loop, handed over by `latest`."""

    def __init__(self, latest: LatestFrame) -> None:
        self._latest, self.stats = latest, latest.stats

    @property
    def ended(self) -> bool:
        """Whether no frame follows."""
        return self._latest.ended

    @abstractmethod
    def next(self, wait_s: float) -> Frame | None:
        """The next frame; None if there is none within about `wait_s` seconds. Raises what ended the source."""

    @abstractmethod
    def stop(self) -> None:
        """Release the source, at once; a second call does nothing."""


class LatestFrameFeed(FrameFeed):
    """A thread reads the source as fast as it delivers; `next` gives the newest frame and never an older one.

    Args:
        capture: copied for every thread.
        source: opened.
        stall_s: a read that hangs for so long is left to its thread, and the source is opened again.
    """

    def __init__(self, capture: Capture, source: Source, stall_s: float = STALL_S) -> None:
        super().__init__(capture.latest)
        self._stall_s, self._name = stall_s, source.name
        self._start(replace(capture, source=source))

    def next(self, wait_s: float) -> Frame | None:
        """See `FrameFeed`."""
        frame = self._latest.take(wait_s)
        if frame is None:
            self._check_stall()
        return frame

    def stop(self) -> None:
        """See `FrameFeed`."""
        self._capture.stop()
        self._latest.end()
        self._thread.join(_JOIN_S)

    def _start(self, capture: Capture) -> None:
        self._capture = capture
        self._thread = threading.Thread(target=capture.run, name=f"{THREAD_PREFIX}capture", daemon=True)
        self._thread.start()

    def _check_stall(self) -> None:
        capture, lost_at, since = self._capture, self.stats.lost_at, self._capture.reading_since
        now = capture.clock()
        if lost_at is not None and now - lost_at > capture.reconnect.for_s + _OPENING_S:
            capture.stop()
            self._latest.end(SourceLost("the source is lost, and opening it again hangs", where=self._name))
        if since is not None and now - since >= self._stall_s:
            error = SourceLost(f"the source stalled: no frame for {self._stall_s:g} s", where=self._name)
            capture.stop()  # its thread may be inside the driver; nothing waits for it
            capture.note_loss(error)
            self._start(replace(capture, source=None, error=error))


class EveryFrameFeed(FrameFeed):
    """Every frame of a source that waits to be read, as fast as the network takes them: none is dropped."""

    def __init__(self, source: Source, clock: Clock = time.monotonic) -> None:
        super().__init__(LatestFrame(clock))
        self._source, self._capture = source, Capture(lambda: source, self._latest, Reconnect(0.0), clock)

    def next(self, wait_s: float) -> Frame | None:  # noqa: ARG002  # a file delivers at once
        """See `FrameFeed`."""
        while (frame := self._latest.take()) is None and not self.ended:
            try:
                self._capture.read(self._source)
            except SourceLost:
                self._latest.end()
                raise
        return frame

    def stop(self) -> None:
        """See `FrameFeed`."""
        self._latest.end()
        self._source.close()
