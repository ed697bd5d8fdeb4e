"""Run a long call into a C++ library so that Ctrl-C interrupts the wait at once.

The call runs in a daemon thread while the caller waits in a thread that receives signals. Interrupting the wait requests
cancellation; the call continues until it notices. If the program exits meanwhile, the thread must not return into an
interpreter that is shutting down (that aborts the process), so every callback starts with `park_if_exiting()`, which then never
returns.
"""

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 3.0
_exiting = threading.Event()
_parked = threading.Event()
_running: set[int] = set()


def run_interruptible(call: Callable[[], T], cancelled: threading.Event | None = None) -> T:
    """Run `call()` in a thread and return its result or raise its exception.

    Args:
        call: the call. It must own every object that the library still needs after the wait was interrupted.
        cancelled: set when the wait is interrupted. Without it the call cannot be cancelled: an interrupt waits for its end.
    """
    future = Future[T]()

    def body() -> None:
        _running.add(threading.get_ident())
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  # the waiting thread raises it again
            future.set_exception(error)
        finally:
            _running.discard(threading.get_ident())
            park_if_exiting()

    threading.Thread(target=body, name="engine-build", daemon=True).start()
    try:
        while not future.done():
            wait([future], _POLL_SECONDS)
    except BaseException:
        if cancelled is None:
            wait([future])
        else:
            cancelled.set()
        raise
    return future.result()


def park_if_exiting() -> None:
    """Return at once, or never if the program is exiting. Call it first in every callback of the library."""
    if _exiting.is_set():
        _parked.set()
        threading.Event().wait()


@atexit.register
def _park_running_call() -> None:
    if _running:
        _exiting.set()
        _parked.wait(_SETTLE_SECONDS)  # a thread silent for longer is inside a step that outlasts the program
