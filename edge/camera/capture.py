"""Reads a source into the `LatestFrame`, step by step, and opens a lost one again. A thread or a test calls `step`."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from calib.errors import UfovitError
from edge.camera.frame import BadFrame, Clock, Notify, Opener, Source, SourceLost, check_frame, ignore
from edge.camera.latest_frame import LatestFrame
from edge.camera.reconnect import Pacer, Reconnect, Sleep

MAX_BAD_FRAMES = 100
"""Unusable frames in a row after which a source counts as lost."""


@dataclass
class Capture:
    """Reads a source, in one thread. A copy by `dataclasses.replace` reads for the same `latest`, with a state of its own.

    Attributes:
        opener: opens the source again after a loss.
        latest: receives the frames.
        reconnect: the back-off policy.
        notify: receives messages about losses and returns.
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
        if self._pacer is not None:
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

    def _new_pacer(self) -> Pacer | None:
        source = self.source
        if source is None or source.live or source.fps is None:
            return None
        return Pacer(source.fps, self.clock, self._wait)

    def _wait(self, seconds: float) -> None:
        if self.sleep is None:
            self._stopped.wait(seconds)
        else:
            self.sleep(seconds)

    def _close(self) -> None:
        source, self.source = self.source, None
        if source is not None:
            source.close()
