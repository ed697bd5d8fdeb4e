"""Work on results away from the thread that infers: a bounded queue and a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from calib.errors import UfovitError
from edge.camera.forced_exit import PREFIX
from edge.camera.frame import Result

_TURN_S = 0.1


class Work(Protocol):
    """What is done with a result; always on the same thread."""

    def begin(self) -> None:
        """Called first."""

    def take(self, result: Result) -> None:
        """One result. What is raised ends this work, never the loop."""

    def end(self) -> None:
        """Called last, also after a failure."""


class Background:
    """A sink that does its work in its own thread.

    A result for which there is no room is skipped and counted; with `wait` the caller waits instead, for those who want each.

    Args:
        name: of the work, for messages.
        work: what is done.
        room: results that may wait.
        wait: whether the caller waits for room.
        say: told when the work fails; inference goes on without it.
        patience_s: how long `close` lets it finish what waits.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        *,
        room: int = 8,
        wait: bool = False,
        say: Callable[[str], None] = lambda _text: None,
        patience_s: float = 10.0,
    ) -> None:
        self._name, self._work, self._say = name, work, say
        self._wait, self._patience_s = wait, patience_s
        self._queue: queue.Queue[Result] = queue.Queue(room)
        self._closing = threading.Event()
        self.skipped = 0
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"{PREFIX}{name}", daemon=True)
        self._thread.start()

    def __call__(self, result: Result, /) -> None:
        """See `Sink`."""
        while self.failure is None and not self._closing.is_set():
            try:
                self._queue.put(result, timeout=_TURN_S if self._wait else None, block=self._wait)
                return
            except queue.Full:
                if not self._wait:
                    self.skipped += 1
                    return

    def close(self) -> None:
        """See `Sink`: what waits is still done, within the patience."""
        self._closing.set()
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self._say(f"{self._name}: did not finish within {self._patience_s:g} s and was left behind")
            self._patience_s = 0.0

    def _run(self) -> None:
        try:
            self._work.begin()
            while True:
                try:
                    result = self._queue.get(timeout=_TURN_S)
                except queue.Empty:
                    if self._closing.is_set():
                        break
                    continue
                self._work.take(result)
        except Exception as error:  # noqa: BLE001  # whatever a disk or a codec does, inference goes on
            self._fail(error)
        try:
            self._work.end()
        except Exception as error:  # noqa: BLE001  # likewise
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        first = self.failure is None
        self.failure = self.failure or error
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        if first and not isinstance(error, BrokenPipeError):  # whoever reads has gone: nobody is left to be told
            text = str(error) if isinstance(error, UfovitError) else f"{type(error).__name__}: {error}"
            self._say(f"{self._name}: {text}\n  inference goes on without it")
