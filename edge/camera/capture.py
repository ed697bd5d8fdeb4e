"""Reads one source into the slot, step by step; what is lost is opened again. A thread calls `step`, or a test does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from calib.errors import UfovitError
from edge.camera.frame import Clock
from edge.camera.latest_frame import Slot
from edge.camera.reconnect import Pacer, Reconnect, Sleep
from edge.camera.sources.source import BadFrame, Opener, Source, SourceLost, checked

MOST_BAD = 100
"""Unusable pictures in a row, after which a source counts as lost."""


@dataclass
class Counts:
    """What happened to a source so far: unusable pictures, losses, and how often it came back."""

    bad: int = 0
    lost: int = 0
    reconnected: int = 0


@dataclass
class Capturing:
    """What every capture of one run shares.

    Attributes:
        opener: opens the source anew after a loss.
        slot: where frames go.
        reconnect: the policy.
        say: told about losses and returns.
        counts: what happened.
        lost_at: clock time since when there is no picture; None while there are.
    """

    opener: Opener
    slot: Slot
    reconnect: Reconnect
    clock: Clock
    say: Callable[[str], None] = lambda _text: None
    counts: Counts = field(default_factory=Counts)
    lost_at: float | None = None

    def note_loss(self, why: UfovitError) -> None:
        """Count a loss and say that it is being mended; nothing while the source is away already."""
        if self.lost_at is None:
            self.lost_at = self.clock()
            self.counts.lost += 1
            if self.reconnect.for_s:  # else the end of the run says it
                self.say(f"{why}\n  trying again for {self.reconnect.for_s:g} s")


class Capture:
    """One source being read.

    Args:
        about: shared with the captures before it.
        source: opened; None: lost, to be opened again.
        sleep: waits, and returns at once after `stop`; None: a wait that `stop` ends.
        why: of the loss, where there is no source.
    """

    def __init__(
        self, about: Capturing, source: Source | None, sleep: Sleep | None = None, why: SourceLost | None = None
    ) -> None:
        self._about = about
        self._source = source
        self._stopped = threading.Event()
        self._sleep: Sleep = sleep or self._pause
        self._pacer = self._new_pacer()
        self._why: UfovitError | None = why
        self._attempt = 0
        self._bad_in_row = 0
        self.reading_since: float | None = None

    def run(self) -> None:
        """Step until the end. What is raised reaches whoever takes frames."""
        try:
            while self.step():
                pass
        except BaseException as error:  # noqa: BLE001  # raised again by the slot, on the thread that infers
            if not self._stopped.is_set():
                self._about.slot.end(error)
        finally:
            self._close()

    def stop(self) -> None:
        """No further frame. A read that hangs goes on hanging on its own thread, which closes the source when it comes back."""
        self._stopped.set()

    def step(self) -> bool:
        """Read one picture, or try once to open the source again. False at the end."""
        if self._stopped.is_set():
            return False
        if self._source is None:
            return self._open_again()
        if self._pacer is not None:
            self._pacer.wait()
        try:
            return self._read(self._source)
        except SourceLost as error:
            return self._lose(error)

    def _read(self, source: Source) -> bool:
        about, started = self._about, self._about.clock()
        self.reading_since = started
        try:
            pixels = source.read()
            if pixels is not None:
                pixels = checked(pixels)
        except BadFrame as bad:
            about.counts.bad += 1
            self._bad_in_row += 1
            if self._bad_in_row >= MOST_BAD:
                raise SourceLost(f"{MOST_BAD} unusable pictures in a row", where=source.name, found=bad) from bad
            return not self._stopped.is_set()
        finally:
            self.reading_since = None
        if self._stopped.is_set():
            return False
        if pixels is None:
            about.slot.end()
            return False
        self._note_picture(source)
        about.slot.put(pixels, 1000.0 * (about.clock() - started))
        return True

    def _note_picture(self, source: Source) -> None:
        about = self._about
        self._bad_in_row = self._attempt = 0
        if about.lost_at is not None:
            about.counts.reconnected += 1
            about.say(f"{source.name}: pictures again, after {about.clock() - about.lost_at:.1f} s")
            about.lost_at = None

    def _lose(self, error: UfovitError) -> bool:
        about = self._about
        self._close()
        if self._stopped.is_set():
            return False
        self._why = error
        about.note_loss(error)
        return True

    def _open_again(self) -> bool:
        about = self._about
        if about.lost_at is None:
            about.lost_at = about.clock()
        left = about.lost_at + about.reconnect.for_s - about.clock()
        if left <= 0:
            about.slot.end(self._gone())
            return False
        self._sleep(min(left, about.reconnect.wait_s(self._attempt)))
        self._attempt += 1
        if self._stopped.is_set():
            return False
        try:
            self._source = about.opener()
        except UfovitError as error:  # not back yet, or back in another state: the last word if it stays so
            self._why = error
            return True
        self._pacer = self._new_pacer()
        self._bad_in_row = 0
        return True

    def _gone(self) -> UfovitError:
        why, for_s = self._why or SourceLost("the source is lost"), self._about.reconnect.for_s
        if not for_s:
            return why
        return SourceLost(
            f"the source did not come back within {for_s:g} s",
            found=" ".join(str(why).split("\n")),
            next_command="connect it again, or wait longer with --reconnect-for",
        )

    def _new_pacer(self) -> Pacer | None:
        source = self._source
        if source is None or source.live or source.fps is None:
            return None
        return Pacer(source.fps, self._about.clock, self._sleep)

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()
