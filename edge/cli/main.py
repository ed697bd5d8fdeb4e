"""`ufovit COMMAND`: call the command, and map every outcome to an exit code.

0    done and passed
1    a verdict failed: drift, receipt, parity
2    bad usage or bad input
3    not enough evidence for a verdict
4    something this machine lacks: a library, disk space, a permission
70   an error inside the toolkit; --debug prints the traceback
130  interrupted; finished steps are kept

A command is a function; its parameters and the fields of the frozen dataclasses among them are its arguments and options, and
their docstrings the help, as cyclopts reads them. A unit at the end of a field's name is left out of the option's.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any, NoReturn

import cyclopts

from calib.errors import InputError, MissingError, UfovitError, UsageError
from calib.printable import one_line
from edge.cli.console import discard_stdout, print_error, write_any_text

INTERRUPTED = 130
INTERNAL_ERROR = 70
_LACKING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_UNUSABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)
"""What is wrong with a path, not with the machine."""
_UNITS = ("_points", "_mib", "_db", "_s")
_BUILD_COMMANDS = ("build", "bundle", "calibrate", "certify", "drift", "gate", "report", "verify", "sign")
COMMANDS = (*_BUILD_COMMANDS, "checkpoint", "inspect", "bench", "camera", "doctor")


def _option_name(field: str) -> str:
    for unit in _UNITS:
        field = field.removesuffix(unit)
    return cyclopts.default_name_transform(field)


def _convert(kind: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    """Convert to a type; refuse 32.5 for an integer, which cyclopts would round."""
    kinds = {int: "an integer", float: "a number"}
    number = next((known for known in kinds if kind in (known, known | None)), None)
    if number is None:
        return cyclopts.convert(kind, tokens)
    try:
        return number(tokens[0].value)
    except ValueError:
        raise ValueError(f"found {tokens[0].value!r}, allowed {kinds[number]}") from None


def _default_text(value: Any) -> str | None:
    """A default as a user would type it; None where the help text names it or there is none."""
    if isinstance(value, tuple):
        return " ".join(value) or None
    return None if value is None or value is False else str(value)


def _version() -> str:
    try:
        return version("ufovit-edge")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "not installed"


app = cyclopts.App(
    name="ufovit",
    help="From a trained UFO-ViT to a verified INT8 TensorRT engine.",
    help_flags="--help",
    help_format="markdown",
    version=_version,
    result_action="return_value",
    default_parameter=cyclopts.Parameter(
        negative=(),
        allow_repeating=True,
        converter=_convert,
        name_transform=_option_name,
        show_default=_default_text,
    ),
)
for _command in COMMANDS:  # each is imported when it is called, or its help shown
    app.command(f"edge.cli.{_command}:{_command}", name=_command)


def main() -> NoReturn:
    """Entry point of `ufovit`: run a command and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    write_any_text()
    if sys.argv[1:2] in (["camera"], ["bench"]):
        # on a busy core threads would wait for each other at every image; numpy reads this when it is loaded
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; messages go to stderr."""
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        return _call(arguments)
    except KeyboardInterrupt:
        kept = ": finished steps are kept; the same command goes on from there" if arguments[:1] == ["build"] else ""
        print_error(f"interrupted{kept}")
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the output
        discard_stdout()
        return 1
    except Exception as error:  # noqa: BLE001  # the last line of defence: a user gets a sentence, never a traceback
        if debug:
            traceback.print_exc()
        return _explain(error, arguments)


def _call(arguments: list[str]) -> int:
    """Parse a command line and call its command. Raises UsageError for an invalid one, and what the command raises."""
    if arguments[:1] in ([], ["--help"]):  # the list of commands shows a sentence of each
        for command in COMMANDS:
            app[command]
        app.help_print([])
        return 0 if arguments else InputError.exit_code
    try:
        function, bound, unparsed = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise _usage_error(error, arguments) from error
    if "tokens" in unparsed:  # for a command that must know which options were given, even with their defaults
        bound.arguments["tokens"] = tuple(arguments[1:])
    return int(function(*bound.args, **bound.kwargs) or 0)


def _usage_error(error: cyclopts.CycloptsError, arguments: list[str]) -> UsageError:
    """The error of cyclopts in the toolkit's own words."""
    command, allowed = f"ufovit {arguments[0]}", None
    what = " ".join(str(error).split()).rstrip(".")
    if arguments[0] not in COMMANDS:
        command, allowed = "ufovit", ", ".join(COMMANDS)
        what = f"Unknown option: {arguments[0]}" if arguments[0].startswith("-") else what.partition(" Available")[0]
    elif isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        what = f"{name} requires an argument" if name in arguments else f"Missing argument: {name}"
    elif isinstance(error, cyclopts.UnusedCliTokensError):
        what = f"Got unexpected extra argument: {' '.join(error.unused_tokens or ())}"
    return UsageError(what, where=command, allowed=allowed, next_command=f"{command} --help")


def _explain(error: Exception, arguments: list[str]) -> int:
    """Print the error on stderr and return its exit code. One that names no file and no option happened in this command."""
    from edge.pipeline.preflight import BUILD_LIBRARIES, missing_library

    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in BUILD_LIBRARIES:
        error = missing_library(str(error.name))
    if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename is not None:
        error = InputError(str(error.strerror), where=error.filename, allowed="a path that can be opened")
    elif isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib, before Python 3.13
        error = InputError(os.strerror(errno.ELOOP), found=error, allowed="a path that can be opened")
    elif isinstance(error, MemoryError):
        error = MissingError(
            "not enough memory", found=str(error) or None, next_command="a machine with more, or smaller input"
        )
    if isinstance(error, UfovitError):
        what, _, details = str(error).partition("\n")
        subject = f"  where: {' '.join(['ufovit', arguments[0], *_subject(arguments)])}" if error.where is None else ""
        print_error("\n".join(filter(None, (f"error: {what}", subject, details))))
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _LACKING:
        print_error(f"error: {error.strerror}\n  where: {error.filename}")
        return MissingError.exit_code
    print_error(f"internal error: {type(error).__name__}: {error}\n  next: run again with --debug and report it")
    return INTERNAL_ERROR


def _subject(arguments: list[str]) -> list[str]:
    """The first argument of a command, without options: an option may hold a secret."""
    return [one_line(argument) for argument in arguments[1:2] if not argument.startswith("-")]


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM ends like Ctrl-C: temporary files are removed on the way out."""
    raise KeyboardInterrupt
