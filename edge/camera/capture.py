"""Frames for the loop: the newest of a source that sets its own pace, or every one of a source that waits.

`Capture` reads step by step, in a thread or in a test, and opens a lost source again; a `FrameFeed` hands frames over.
"""

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from calib.errors import UfovitError
from edge.camera.forced_exit import THREAD_PREFIX
from edge.camera.frame import BadFrame, Clock, Frame, Notify, Opener, Source, SourceLost, check_frame, ignore
from edge.camera.latest_frame import LatestFrame
from edge.camera.reconnect import Pacer, Reconnect, Sleep

MAX_BAD_FRAMES = 100
"""Unusable frames in a row after which a source counts as lost."""
STALL_S = 5.0
"""A read that takes longer counts as a loss: the slowest cameras deliver one frame a second."""
_JOIN_S = 0.5
"""How long a thread may take to end before it is abandoned; it is a daemon."""
_OPENING_S = 30.0
"""Beyond the time for reconnecting, after which an attempt that hangs inside a driver or a name server is abandoned."""


@dataclass
class Capture:
    """Reads a source, in one thread. A copy by `dataclasses.replace` reads for the same `latest`, with a state of its own.

    Attributes:
        source: opened; None: to be opened.
        sleep: waits, and returns at once after `stop`; None: a wait that `stop` interrupts.
        error: why there is no source.
    """

    opener: Opener
    latest: LatestFrame
    reconnect: Reconnect
    clock: Clock
    notify: Notify = ignore
    source: Source | None = None
    sleep: Sleep | None = None
    error: UfovitError | None = None

    def __post_init__(self) -> None:
        self.stats = self.latest.stats
        self.reading_since: float | None = None
        self._stopped = threading.Event()
        self._wait: Sleep = self.sleep or self._stopped.wait
        self._attempt = self._bad_in_row = 0
        self._pacer = self._new_pacer()

    def run(self) -> None:
        """Step until the end. Whoever takes frames receives what is raised."""
        try:
            while self.step():
                pass
        except BaseException as error:  # noqa: BLE001  # raised again by LatestFrame, in the inference thread
            if not self._stopped.is_set():
                self.latest.end(error)
        finally:
            self._close()

    def stop(self) -> None:
        """No further frame. A read that hangs continues in its thread, which closes the source when it returns."""
        self._stopped.set()

    def step(self) -> bool:
        """Read one frame, or try once to open the source again. False at the end."""
        if self._stopped.is_set():
            return False
        if self.source is None:
            return self._open_again()
        self._pacer.wait()
        try:
            return self.read(self.source)
        except SourceLost as error:
            self._close()
            if self._stopped.is_set():
                return False
            self.error = error
            self.note_loss(error)
            return True

    def note_loss(self, error: UfovitError) -> None:
        """Count a loss and report that the source will be opened again; nothing while it is lost already."""
        if self.stats.lost_at is None:
            self.stats.lost_at = self.clock()
            self.stats.lost += 1
            if self.reconnect.for_s:  # otherwise the end of the run reports it
                self.notify(f"{error}\n  trying again for {self.reconnect.for_s:g} s")

    def read(self, source: Source) -> bool:
        """Read one frame and count it. False at the end. Raises SourceLost, also after MAX_BAD_FRAMES bad ones in a row."""
        started = self.reading_since = self.clock()
        try:
            pixels = source.read()
            if pixels is not None:
                pixels = check_frame(pixels)
        except BadFrame as bad:
            self.stats.bad += 1
            self._bad_in_row += 1
            if self._bad_in_row >= MAX_BAD_FRAMES:
                raise SourceLost(f"{MAX_BAD_FRAMES} unusable frames in a row", where=source.name, found=bad) from bad
            return True
        finally:
            self.reading_since = None
        if self._stopped.is_set():
            return False
        if pixels is None:
            self.latest.end()
            return False
        self._bad_in_row = self._attempt = 0
        if self.stats.lost_at is not None:
            self.stats.reconnected += 1
            self.notify(f"{source.name}: frames again after {self.clock() - self.stats.lost_at:.1f} s")
            self.stats.lost_at = None
        self.latest.put(pixels, 1000.0 * (self.clock() - started))
        return True

    def _open_again(self) -> bool:
        if self.stats.lost_at is None:
            self.stats.lost_at = self.clock()
        remaining_s = self.stats.lost_at + self.reconnect.for_s - self.clock()
        if remaining_s <= 0:
            error = self.error or SourceLost("the source is lost")
            if self.reconnect.for_s:
                error = SourceLost(
                    f"the source did not come back within {self.reconnect.for_s:g} s",
                    found=" ".join(str(error).split("\n")),
                    next_command="connect it again, or wait longer with --reconnect-for",
                )
            self.latest.end(error)
            return False
        self._wait(min(remaining_s, self.reconnect.wait_s(self._attempt)))
        self._attempt += 1
        if self._stopped.is_set():
            return False
        try:
            self.source = self.opener()
        except UfovitError as error:  # not back yet, or back in another state: reported if it stays so
            self.error = error
            return True
        self._pacer = self._new_pacer()
        self._bad_in_row = 0
        return True

    def _new_pacer(self) -> Pacer:
        source = self.source
        return Pacer(None if source is None or source.live else source.fps, self.clock, self._wait)

    def _close(self) -> None:
        source, self.source = self.source, None
        if source is not None:
            source.close()


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

    A read that hangs for `stall_s` is left to its thread, and a copy of `capture` opens the source again.
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
