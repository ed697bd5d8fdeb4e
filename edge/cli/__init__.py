"""The command line: `ufovit COMMAND`. One file per command; this one turns every end into an exit code.

0    done and passed
1    a verdict failed: drift, receipt, parity
2    bad usage or bad input
3    not enough evidence to say
4    something that this machine lacks: a library, disk space, a permission
70   an error inside the toolkit; --debug shows where
130  interrupted; finished steps are kept
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

from calib.errors import InputError, MissingError, UfovitError

INTERRUPTED = 130
INTERNAL_ERROR = 70
_LACKING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def main() -> NoReturn:
    """Entry point of `ufovit`: run a command and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    if sys.argv[1:2] in (["camera"], ["bench"]):
        # on a busy core threads would wait for each other, picture by picture; numpy reads this when it is loaded
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; messages go to stderr."""
    import typer

    from edge.cli.main import app

    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = int(app(arguments, standalone_mode=False, prog_name="ufovit") or 0)
    except typer.Exit as end:
        code = int(end.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # newer typer returns 130 instead
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last line of defence: a user gets a sentence, never a traceback
        if debug:
            traceback.print_exc()
        return _explain(error)
    if code == INTERRUPTED:
        kept = ": finished steps are kept; the same command goes on from there" if arguments[:1] == ["build"] else ""
        print(f"interrupted{kept}", file=sys.stderr)
    return code


def _explain(error: Exception) -> int:
    """Say on stderr what went wrong; the exit code that it stands for."""
    import typer

    from edge.pipeline.preflight import BUILD_LIBRARIES, missing_library

    # typer carries click inside itself or imports it, by release: its base of usage errors has one name in both
    usage_error = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    if isinstance(error, usage_error):
        error.show()  # type: ignore[attr-defined]  # ClickException has it
        return InputError.exit_code
    if isinstance(error, UfovitError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in BUILD_LIBRARIES:
        print(f"error: {missing_library(str(error.name))}", file=sys.stderr)
        return MissingError.exit_code
    if isinstance(error, OSError) and error.errno in _LACKING:
        print(f"error: {error.strerror}\n  where: {error.filename}", file=sys.stderr)
        return MissingError.exit_code
    print(f"internal error: {type(error).__name__}: {error}\n  next: run again with --debug and report it", file=sys.stderr)
    return INTERNAL_ERROR


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM ends like Ctrl-C: temporary files are removed on the way out."""
    raise KeyboardInterrupt
