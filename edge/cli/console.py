"""Progress, messages and tables on the terminal; plain lines when the output is a file or a pipe."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table

from calib.printable import printable
from edge.progress import Advance

_PLAIN_EVERY = 0.25  # a plain line at each quarter of a step


def terminal_progress() -> TerminalProgress:
    """Progress and messages on stdout; long lines are left to the terminal to wrap, so that they can be copied."""
    return TerminalProgress(SafeConsole(soft_wrap=True))


def write_any_text() -> None:
    """Let stdout and stderr write what their encoding lacks as escapes, as in the C locale, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(text: str) -> None:
    """Print a message on stderr."""
    print(printable(text), file=sys.stderr)


def discard_stdout() -> None:
    """Redirect stdout to nowhere, after its reader closed it: else Python reports the closed pipe when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class SafeConsole(Console):
    """A console that shows the escapes of hidden characters and of those that steer a terminal, whatever is printed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `Console`; rich's own control codes are kept."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class TerminalProgress:
    """Bars on a terminal, a line at the start, each quarter and the end of a step elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, markup=False)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str], width: int = 160, fold: bool = True
    ) -> None:
        """Print rows of markup without lines between them; the columns not named in `left` are justified to the right.

        `width` is that of a file or a pipe, which has none. Long cells are folded, else cut.
        """
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in columns:
            justify: JustifyMethod = "left" if name in left else "right"
            table.add_column(name, justify=justify, no_wrap=not fold, overflow="fold" if fold else "ellipsis")
        for row in rows:
            table.add_row(*row)
        console = self.console if self.console.is_terminal else SafeConsole(file=self.console.file, width=width)
        console.print(table, highlight=False)

    @contextlib.contextmanager
    def task(self, title: str) -> Iterator[Advance]:
        """Show a step's progress until the block ends."""
        started = time.monotonic()
        with self._bar(title) if self.console.is_terminal else self._lines(title) as advance:
            yield advance
        self.say(f"  {title}: done in {time.monotonic() - started:.1f} s")

    @contextlib.contextmanager
    def _bar(self, title: str) -> Iterator[Advance]:
        columns = (TextColumn("  {task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=1.0)
            yield lambda share: bar.update(task, completed=share)

    @contextlib.contextmanager
    def _lines(self, title: str) -> Iterator[Advance]:
        self.say(f"  {title} ...")
        next_share = _PLAIN_EVERY

        def advance(share: float) -> None:
            nonlocal next_share
            if next_share <= share < 1:
                self.say(f"  {title}: {share:.0%}")
                next_share = (share // _PLAIN_EVERY + 1) * _PLAIN_EVERY

        yield advance
