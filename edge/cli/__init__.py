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

import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
INTERNAL_ERROR = 70


def main() -> NoReturn:
    """Entry point of `ufovit`: run a command and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; messages go to stderr."""
    import typer

    from calib.errors import UfovitError
    from edge.cli.app import app

    # typer carries click inside itself or imports it, by release: its base of usage errors has one name in both
    usage_error = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        return int(app(arguments, standalone_mode=False, prog_name="ufovit") or 0)
    except typer.Exit as end:
        return int(end.exit_code)
    except UfovitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: finished steps are kept; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last line of defence: a user gets a sentence, never a traceback
        if isinstance(error, usage_error):
            error.show()  # type: ignore[attr-defined]  # ClickException has it
            return 2
        if debug:
            traceback.print_exc()
        print(f"internal error: {type(error).__name__}: {error}\n  next: run again with --debug and report it", file=sys.stderr)
        return INTERNAL_ERROR


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM ends like Ctrl-C: temporary files are removed on the way out."""
    raise KeyboardInterrupt
