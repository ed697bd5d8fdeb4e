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
_SETTLE_SECONDS = 0.2
_exiting = threading.Event()
_running: set[int] = set()


def run(work: Callable[[], T], cancelled: threading.Event) -> T:
    """The result of `work()`, or its exception. Any exception that reaches the waiting caller sets `cancelled`."""
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

    threading.Thread(target=body, name="engine-build", daemon=True).start()
    try:
        while not done.wait(_POLL_SECONDS):
            pass
    except BaseException:
        cancelled.set()
        raise
    if errors:
        raise errors[0]
    return results[0]


def checkpoint() -> None:
    """Return at once, or never when the program is ending. To be called first in every callback of the library."""
    if _exiting.is_set():
        threading.Event().wait()


@atexit.register
def _leave() -> None:
    if _running:
        _exiting.set()
        threading.Event().wait(_SETTLE_SECONDS)  # lets a thread that is about to call back arrive at its checkpoint
