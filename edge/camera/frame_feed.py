"""What the loop draws frames from: the newest of a source that goes its own pace, or each of one that waits."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from edge.camera.capture import MOST_BAD, Capture, Capturing, Counts
from edge.camera.forced_exit import PREFIX
from edge.camera.frame import Clock, Frame
from edge.camera.sources.source import BadFrame, Source, SourceLost, checked

STALL_S = 5.0
"""A read that takes longer is a loss: the slowest cameras give a picture every second."""
_PATIENCE_S = 0.5
"""How long a thread may take to end before it is left alone; it is a daemon."""
_OPENING_S = 30.0
"""Beyond the time for reconnecting: an attempt that hangs inside a driver or a name server is given up."""


class Frames(Protocol):
    """Frames for the loop."""

    @property
    def dropped(self) -> int:
        """Frames so far that a newer one replaced."""

    @property
    def given(self) -> int:
        """Frames so far."""

    @property
    def took_s(self) -> float:
        """Clock time at which `next` took the frame that it gave last: no newer one was there then."""

    @property
    def counts(self) -> Counts:
        """What happened to the source."""

    @property
    def ended(self) -> bool:
        """Whether no frame follows."""

    def next(self, wait_s: float) -> Frame | None:
        """The next frame for the network; None if there is none within about `wait_s` seconds, or none any more.

        Raises what ended the source: SourceLost for one that is gone for good, InputError for one that is damaged.
        """

    def stop(self) -> None:
        """Give the source back, at once; a second call does nothing."""


class NewestFrames:
    """A thread reads the source as fast as it gives; the network gets the newest frame and never an older one.

    Args:
        about: opener, slot, policy, clock.
        source: opened.
        stall_s: a read that hangs so long is left to its thread, and the source is opened anew.
    """

    def __init__(self, about: Capturing, source: Source, stall_s: float = STALL_S) -> None:
        self._about = about
        self._stall_s = stall_s
        self._name = source.name
        self._capture = Capture(about, source)
        self._thread = self._start()

    @property
    def dropped(self) -> int:
        """See `Frames`."""
        return self._about.slot.dropped

    @property
    def given(self) -> int:
        """See `Frames`."""
        return self._about.slot.given

    @property
    def took_s(self) -> float:
        """See `Frames`."""
        return self._about.slot.took_s

    @property
    def counts(self) -> Counts:
        """See `Frames`."""
        return self._about.counts

    @property
    def ended(self) -> bool:
        """See `Frames`."""
        return self._about.slot.ended

    def next(self, wait_s: float) -> Frame | None:
        """See `Frames`."""
        frame = self._about.slot.take(wait_s)
        if frame is None:
            self._look_for_a_stall()
        return frame

    def stop(self) -> None:
        """See `Frames`."""
        self._capture.stop()
        self._about.slot.end()
        self._thread.join(_PATIENCE_S)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._capture.run, name=f"{PREFIX}capture", daemon=True)
        thread.start()
        return thread

    def _look_for_a_stall(self) -> None:
        about, since = self._about, self._capture.reading_since
        if about.lost_at is not None and about.clock() - about.lost_at > about.reconnect.for_s + _OPENING_S:
            self._capture.stop()
            about.slot.end(SourceLost("the source is lost, and opening it again hangs", where=self._name))
        if since is None or about.clock() - since < self._stall_s:
            return
        why = SourceLost(f"the source stalled: no picture for {self._stall_s:g} s", where=self._name)
        self._capture.stop()  # its thread may be inside the driver; nobody waits for it
        about.note_loss(why)
        self._capture = Capture(about, None, why=why)
        self._thread = self._start()


class EveryFrame:
    """Each frame of a source that waits to be read, as fast as the network takes them: nothing is dropped."""

    dropped = 0

    def __init__(self, source: Source, clock: Clock = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self.counts = Counts()
        self.given = 0
        self.took_s = 0.0
        self.ended = False

    def next(self, wait_s: float) -> Frame | None:  # noqa: ARG002  # a file does not keep anybody waiting
        """See `Frames`."""
        bad: BadFrame | None = None
        for _ in range(MOST_BAD):
            if self.ended:
                return None
            started = self._clock()
            try:
                pixels = self._source.read()
                if pixels is None:
                    self.ended = True
                    return None
                checked(pixels)
            except BadFrame as error:
                self.counts.bad += 1
                bad = error
                continue
            self.took_s = self._clock()
            self.given += 1
            return Frame(pixels, self.given - 1, self.took_s, 1000.0 * (self.took_s - started))
        self.ended = True
        raise SourceLost(f"{MOST_BAD} unusable pictures in a row", where=self._source.name, found=bad)

    def stop(self) -> None:
        """See `Frames`."""
        self.ended = True
        self._source.close()
