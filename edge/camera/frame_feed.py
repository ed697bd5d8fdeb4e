"""What the loop takes frames from: the newest frame of a source that sets its own pace, or every frame of one that waits."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Protocol

from edge.camera.capture import MAX_BAD_FRAMES, Capture, too_many_bad_frames_error
from edge.camera.forced_exit import THREAD_PREFIX
from edge.camera.frame import BadFrame, Clock, Frame, Source, SourceLost, check_frame
from edge.camera.latest_frame import FeedStats

STALL_S = 5.0
"""A read that takes longer counts as a loss: the slowest cameras deliver one frame a second."""
_JOIN_S = 0.5
"""How long a thread may take to end before it is abandoned; it is a daemon."""
_OPENING_S = 30.0
"""Beyond the time for reconnecting, after which an attempt that hangs inside a driver or a name server is abandoned."""


class FrameFeed(Protocol):
    """Frames for the loop."""

    stats: FeedStats

    @property
    def ended(self) -> bool:
        """Whether no frame follows."""

    def next(self, wait_s: float) -> Frame | None:
        """The next frame; None if there is none within about `wait_s` seconds. Raises what ended the source."""

    def stop(self) -> None:
        """Release the source, at once; a second call does nothing."""


class LatestFrameFeed:
    """A thread reads the source as fast as it delivers; `next` gives the newest frame and never an older one.

    Args:
        capture: copied for every thread.
        source: opened.
        stall_s: a read that hangs for so long is left to its thread, and the source is opened again.
    """

    def __init__(self, capture: Capture, source: Source, stall_s: float = STALL_S) -> None:
        self._latest, self._stall_s, self._name = capture.latest, stall_s, source.name
        self.stats = capture.stats
        self._start(replace(capture, source=source))

    @property
    def ended(self) -> bool:
        """See `FrameFeed`."""
        return self._latest.ended

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


class EveryFrameFeed:
    """Every frame of a source that waits to be read, as fast as the network takes them: none is dropped."""

    def __init__(self, source: Source, clock: Clock = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self.stats = FeedStats()
        self.ended = False

    def next(self, wait_s: float) -> Frame | None:  # noqa: ARG002  # a file delivers at once
        """See `FrameFeed`."""
        stats = self.stats
        bad: BadFrame | None = None
        for _ in range(MAX_BAD_FRAMES):
            if self.ended:
                return None
            started = self._clock()
            try:
                pixels = self._source.read()
                if pixels is None:
                    self.ended = True
                    return None
                check_frame(pixels)
            except BadFrame as error:
                stats.bad += 1
                bad = error
                continue
            stats.dequeued_s = self._clock()
            stats.captured += 1
            return Frame(pixels, stats.captured - 1, stats.dequeued_s, 1000.0 * (stats.dequeued_s - started))
        self.ended = True
        raise too_many_bad_frames_error(self._source, bad)

    def stop(self) -> None:
        """See `FrameFeed`."""
        self.ended = True
        self._source.close()
