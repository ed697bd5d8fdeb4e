"""Reads one source into the `LatestFrame`, step by step, and opens a lost source again. A thread or a test calls `step`."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from calib.errors import UfovitError
from edge.camera.frame import Clock, Notify, ignore
from edge.camera.frame_source import BadFrame, Opener, Source, SourceLost, check_frame
from edge.camera.latest_frame import FeedStats, LatestFrame
from edge.camera.reconnect import Pacer, Reconnect, Sleep

MAX_BAD_FRAMES = 100
"""Unusable frames in a row after which a source counts as lost."""


@dataclass
class CaptureContext:
    """What all captures of one run share.

    Attributes:
        opener: opens the source again after a loss.
        latest: receives the frames.
        reconnect: the back-off policy.
        notify: receives messages about losses and returns.
        lost_at: clock time since when no frames arrive; None while they do.
    """

    opener: Opener
    latest: LatestFrame
    reconnect: Reconnect
    clock: Clock
    notify: Notify = ignore
    lost_at: float | None = None

    @property
    def stats(self) -> FeedStats:
        """What happened so far."""
        return self.latest.stats

    def note_loss(self, error: UfovitError) -> None:
        """Count a loss and report that the source will be opened again; nothing while it is lost already."""
        if self.lost_at is None:
            self.lost_at = self.clock()
            self.stats.lost += 1
            if self.reconnect.for_s:  # otherwise the end of the run reports it
                self.notify(f"{error}\n  trying again for {self.reconnect.for_s:g} s")

    def note_frame(self, source_name: str) -> None:
        """Count the return of a lost source and report it; nothing while frames arrive."""
        if self.lost_at is not None:
            self.stats.reconnected += 1
            self.notify(f"{source_name}: frames again after {self.clock() - self.lost_at:.1f} s")
            self.lost_at = None

    def give_up(self, error: UfovitError | None) -> None:
        """End the run: the source did not come back after `error`."""
        error, for_s = error or SourceLost("the source is lost"), self.reconnect.for_s
        if for_s:
            error = SourceLost(
                f"the source did not come back within {for_s:g} s",
                found=" ".join(str(error).split("\n")),
                next_command="connect it again, or wait longer with --reconnect-for",
            )
        self.latest.end(error)


class Capture:
    """Reads one source.

    Args:
        context: shared with earlier captures.
        source: opened; None: lost, to be opened again.
        sleep: waits, and returns at once after `stop`; None: a wait that `stop` interrupts.
        error: why there is no source.
    """

    def __init__(
        self, context: CaptureContext, source: Source | None, sleep: Sleep | None = None, error: SourceLost | None = None
    ) -> None:
        self._context = context
        self._source = source
        self._stopped = threading.Event()
        self._sleep: Sleep = sleep or self._wait
        self._pacer = self._new_pacer()
        self._error: UfovitError | None = error
        self._attempt = 0
        self._bad_in_row = 0
        self.reading_since: float | None = None

    def run(self) -> None:
        """Step until the end. Whoever takes frames receives what is raised."""
        try:
            while self.step():
                pass
        except BaseException as error:  # noqa: BLE001  # raised again by LatestFrame, in the inference thread
            if not self._stopped.is_set():
                self._context.latest.end(error)
        finally:
            self._close()

    def stop(self) -> None:
        """No further frame. A read that hangs continues in its own thread, which closes the source when the read returns."""
        self._stopped.set()

    def step(self) -> bool:
        """Read one frame, or try once to open the source again. False at the end."""
        if self._stopped.is_set():
            return False
        if self._source is None:
            return self._open_again()
        if self._pacer is not None:
            self._pacer.wait()
        try:
            return self._read(self._source)
        except SourceLost as error:
            self._close()
            if self._stopped.is_set():
                return False
            self._error = error
            self._context.note_loss(error)
            return True

    def _read(self, source: Source) -> bool:
        context, started = self._context, self._context.clock()
        self.reading_since = started
        try:
            pixels = source.read()
            if pixels is not None:
                pixels = check_frame(pixels)
        except BadFrame as bad:
            context.stats.bad += 1
            self._bad_in_row += 1
            if self._bad_in_row >= MAX_BAD_FRAMES:
                raise too_many_bad_frames_error(source, bad) from bad
            return not self._stopped.is_set()
        finally:
            self.reading_since = None
        if self._stopped.is_set():
            return False
        if pixels is None:
            context.latest.end()
            return False
        self._bad_in_row = self._attempt = 0
        context.note_frame(source.name)
        context.latest.put(pixels, 1000.0 * (context.clock() - started))
        return True

    def _open_again(self) -> bool:
        context = self._context
        if context.lost_at is None:
            context.lost_at = context.clock()
        remaining_s = context.lost_at + context.reconnect.for_s - context.clock()
        if remaining_s <= 0:
            context.give_up(self._error)
            return False
        self._sleep(min(remaining_s, context.reconnect.wait_s(self._attempt)))
        self._attempt += 1
        if self._stopped.is_set():
            return False
        try:
            self._source = context.opener()
        except UfovitError as error:  # not back yet, or back in another state: reported if it stays so
            self._error = error
            return True
        self._pacer = self._new_pacer()
        self._bad_in_row = 0
        return True

    def _new_pacer(self) -> Pacer | None:
        source = self._source
        if source is None or source.live or source.fps is None:
            return None
        return Pacer(source.fps, self._context.clock, self._sleep)

    def _wait(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()


def too_many_bad_frames_error(source: Source, last: BadFrame | None) -> SourceLost:
    """For a source of MAX_BAD_FRAMES unusable frames in a row."""
    return SourceLost(f"{MAX_BAD_FRAMES} unusable frames in a row", where=source.name, found=last)
