"""Ending the program while one of its threads hangs inside a driver, a codec or a pipe that nobody reads.

Python and the libraries clean up behind `main`. A thread that comes back from C++ in the middle of that ends the process by
`std::terminate`, with exit code 134, and one that does not come back may keep it for seconds. So where a thread is left, the
process ends at once, with the code that it has earned. What matters, recordings above all, is closed by then.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable

from calib.errors import UfovitError

PREFIX = "ufovit-"
"""Of the names of the threads that may be left."""
_FLUSH_S = 0.5


def leaving(work: Callable[[], int]) -> int:
    """The exit code of `work`, or what it raises; afterwards the process may end whatever its threads do."""
    code = 70  # of an error inside the toolkit
    try:
        code = work()
    except UfovitError as error:
        code = error.exit_code
        raise
    finally:
        if threads_left():
            atexit.register(end_now, code)
    return code


def threads_left() -> list[str]:
    """Names of this package's threads that are still there."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(PREFIX)]


def end_now(code: int) -> None:
    """End the process. Streams are flushed, unless one of them is what hangs."""
    flusher = threading.Thread(target=_flush, daemon=True)
    flusher.start()
    flusher.join(_FLUSH_S)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
