"""A long call into a C++ library that Ctrl-C can leave at once.

The call runs in a daemon thread while the caller waits where signals reach it. Leaving the wait does not end the call: it is
told to cancel and goes on by itself until it hears of it. Should the program end meanwhile, the thread must not come back
into a Python that is being taken down (that aborts the process), so its callbacks stop there for good: each of them begins
with `checkpoint()`.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 3.0
_exiting = threading.Event()
_parked = threading.Event()
_running: set[int] = set()


def run(work: Callable[[], T], cancelled: threading.Event | None = None) -> T:
    """The result of `work()`, or its exception.

    Args:
        work: the call. It must hold every object that the library still needs after the caller has left.
        cancelled: set when the wait is left. Without it the call cannot be cancelled: the wait is left when it is done.
    """
    done = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        _running.add(threading.get_ident())
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # whatever it is, the waiting thread raises it again
            errors.append(error)
        finally:
            _running.discard(threading.get_ident())
            done.set()
            checkpoint()

    threading.Thread(target=body, name="engine-build", daemon=True).start()
    try:
        while not done.wait(_POLL_SECONDS):
            pass
    except BaseException:
        if cancelled is None:
            done.wait()
        else:
            cancelled.set()
        raise
    if errors:
        raise errors[0]
    return results[0]


def checkpoint() -> None:
    """Return at once, or never when the program is ending. To be called first in every callback of the library."""
    if _exiting.is_set():
        _parked.set()
        threading.Event().wait()


@atexit.register
def _leave() -> None:
    if _running:
        _exiting.set()
        _parked.wait(_SETTLE_SECONDS)  # a thread that is silent for longer is deep in a step that outlasts the program
