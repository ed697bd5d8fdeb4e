"""A sink that processes results in a thread of its own, fed by a bounded queue."""

import queue
import threading
from collections.abc import Callable

from calib.errors import UfovitError
from edge.camera.forced_exit import THREAD_PREFIX
from edge.camera.frame import Notify, Result, ignore

_POLL_S = 0.1


class BackgroundSink:
    """A sink that calls `process` with results, and `finish` last, in its own thread; inference continues if these fail.

    A result that does not fit into the queue of `capacity` is skipped and counted; with `block` the caller waits for room
    instead. `close` waits for at most `close_timeout_s` until the queue has been processed.
    """

    def __init__(
        self,
        name: str,
        process: Callable[[Result], None],
        finish: Callable[[], None] = lambda: None,
        *,
        capacity: int = 8,
        block: bool = False,
        notify: Notify = ignore,
        close_timeout_s: float = 10.0,
    ) -> None:
        self._name, self._process, self._finish, self._notify = name, process, finish, notify
        self._block, self._close_timeout_s = block, close_timeout_s
        self._queue: queue.Queue[Result] = queue.Queue(capacity)
        self._closing = threading.Event()
        self.skipped = 0
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_PREFIX}{name}", daemon=True)
        self._thread.start()

    def __call__(self, result: Result, /) -> None:
        """See `Sink`."""
        while self.failure is None and not self._closing.is_set():
            try:
                self._queue.put(result, block=self._block, timeout=_POLL_S)
                return
            except queue.Full:
                if not self._block:
                    self.skipped += 1
                    return

    def close(self) -> None:
        """See `Sink`: queued results are still processed, within the timeout."""
        self._closing.set()
        self._thread.join(self._close_timeout_s)
        if self._thread.is_alive():
            self._notify(f"{self._name}: did not finish within {self._close_timeout_s:g} s and was abandoned")
            self._close_timeout_s = 0.0

    def _run(self) -> None:
        try:
            while not (self._closing.is_set() and self._queue.empty()):
                try:
                    result = self._queue.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                self._process(result)
        except Exception as error:  # noqa: BLE001  # whatever a disk or a codec does, inference continues
            self._fail(error)
        try:
            self._finish()
        except Exception as error:  # noqa: BLE001  # likewise
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        first = self.failure is None
        self.failure = self.failure or error
        while not self._queue.empty():  # no other thread takes from it
            self._queue.get_nowait()
        if first and not isinstance(error, BrokenPipeError):  # the output has no reader left
            text = str(error) if isinstance(error, UfovitError) else f"{type(error).__name__}: {error}"
            self._notify(f"{self._name}: {text}\n  inference continues without it")
