"""Ends the process while one of its threads hangs inside a driver, a codec or a pipe that is not read.

A thread that returns from C++ while Python cleans up ends the process by `std::terminate`, with exit code 134; one that does
not return may keep it alive for seconds. So the process exits at once then; recordings are closed by that time.
"""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable

from calib.errors import UfovitError

THREAD_PREFIX = "ufovit-"
"""Of the names of the threads that may be abandoned."""
_FLUSH_S = 0.5


def run_with_forced_exit(run: Callable[[], int]) -> int:
    """Return the exit code of `run`, or raise what it raises; afterwards the process ends whatever its threads do."""
    code = 70  # of an error inside the toolkit
    try:
        code = run()
    except UfovitError as error:
        code = error.exit_code
        raise
    finally:
        if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
            atexit.register(exit_now, code)
    return code


def exit_now(code: int) -> None:
    """End the process. Streams are flushed, unless one of them is what hangs."""
    flusher = threading.Thread(target=_flush, daemon=True)
    flusher.start()
    flusher.join(_FLUSH_S)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
