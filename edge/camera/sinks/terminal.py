"""Terminal output: a live view, plain lines where stdout is not a terminal, and the summary."""

import time
from collections.abc import Callable
from dataclasses import astuple

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge.camera.frame import Clock, Notify, Result
from edge.camera.latency_stats import LatencyStats, Percentiles
from edge.camera.loop import Summary

Notes = Callable[[], list[tuple[str, str]]]
"""Rows of audit, recording and page."""

PLAIN_INTERVAL_S = 2.0
_BAR = 24
_TITLES = {"age_ms": "age of the answer"}


class LiveView:
    """A sink that shows the newest result four times a second, in a thread of its own."""

    def __init__(self, console: Console, title: str, notes: Notes = list) -> None:
        self._title, self._notes = title, notes
        self._latency_stats = LatencyStats()
        self._result: Result | None = None
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4, transient=True)
        self._live.start()

    def __call__(self, result: Result, /) -> None:
        """See `Sink`."""
        self._latency_stats.add(result.latency)
        self._result = result

    def close(self) -> None:
        """See `Sink`."""
        self._live.stop()

    def render(self) -> RenderableType:
        """The current view."""
        grid = Table.grid(padding=(0, 2))
        grid.add_row(Text(self._title, style="bold"))
        result = self._result
        if result is None:
            grid.add_row(Text("waiting for the first frame ..."))
        else:
            grid.add_row(answers_table(result))
            grid.add_row(Text(counts_line(result)))
            grid.add_row(latency_table(self._latency_stats.percentiles()))
        for name, text in self._notes():
            grid.add_row(Text(f"{name}: {text}"))
        grid.add_row(Text("Ctrl-C to end", style="dim"))
        return grid


class PlainLines:
    """Writes a line every two seconds."""

    def __init__(self, write: Notify, notes: Notes = list, clock: Clock = time.monotonic) -> None:
        self._write, self._notes, self._clock = write, notes, clock
        self._next: float | None = None

    def process(self, result: Result) -> None:
        """Write the line of one result, if it is due."""
        now = self._clock()
        if self._next is not None and now < self._next:
            return
        self._next = now + PLAIN_INTERVAL_S
        answers = ", ".join(f"{line.name} {line.text}".rstrip() for line in result.answer.lines())
        latency = result.latency
        line = f"{answers} | {counts_line(result)} | inference {latency.inference_ms:.1f} ms, age {latency.age_ms:.1f} ms"
        self._write(" | ".join([line, *(f"{name}: {text}" for name, text in self._notes())]))


def answers_table(result: Result) -> Table:
    """The lines of the answer, with bars."""
    table = Table.grid(padding=(0, 2))
    for line in result.answer.lines():
        filled = round(_BAR * (line.share or 0.0))
        bar = Text("█" * filled, style="green").append("░" * (_BAR - filled), style="dim")
        table.add_row(Text(line.name), Text() if line.share is None else bar, Text(f"{line.text:>6}"))
    return table


def counts_line(result: Result) -> str:
    """Rate and counts of the run, size of the picture."""
    height, width = result.frame.pixels.shape[:2]
    return f"{result.fps:.1f} results/s, {result.number + 1} results, {result.dropped} frames dropped, picture {width}x{height}"


def latency_table(percentiles: dict[str, Percentiles]) -> Table:
    """Percentiles of every part of the latency."""
    table = Table("ms", "p50", "p95", "p99", "max")
    for part, values in percentiles.items():
        table.add_row(_TITLES.get(part, part.removesuffix("_ms")), *(f"{value:.2f}" for value in astuple(values)))
    return table


def print_summary(console: Console, summary: Summary, notes: list[tuple[str, str]]) -> None:
    """Print the totals of a run."""
    rows = [
        ("ended", summary.ended),
        ("results", f"{summary.results} in {summary.seconds:.1f} s, {summary.fps:.1f} per second"),
        ("frames", f"{summary.given} from the source, {summary.dropped} dropped for newer ones, {summary.bad} unusable"),
    ]
    if summary.lost:
        rows.append(("source", f"lost {summary.lost} times, back {summary.reconnected} times"))
    if summary.not_finite:
        rows.append(("network", f"{summary.not_finite} frames output NaN or infinity: not counted as results"))
    table = Table.grid(padding=(0, 2))
    for name, text in [*rows, *notes]:
        table.add_row(Text(name), Text(text, overflow="fold"))
    console.print(table)
    if summary.latency:
        console.print(latency_table(summary.latency))
        console.print(
            "age: from the source delivering the frame until its answer is complete; over the last results", highlight=False
        )
