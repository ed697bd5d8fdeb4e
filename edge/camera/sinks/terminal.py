"""What a person sees on the terminal: a live view, plain lines where the output is none, and the summary."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge.camera.frame import Clock, Result
from edge.camera.latency_stats import Percentiles, Timings
from edge.camera.loop import Summary

Notes = Callable[[], list[tuple[str, str]]]
"""Rows that others have to add: audit, recording, page."""

PLAIN_EVERY_S = 2.0
_BAR = 24
_TITLES = {
    "capture_ms": "capture",
    "preprocess_ms": "preprocess",
    "inference_ms": "inference",
    "postprocess_ms": "postprocess",
    "age_ms": "age of the answer",
}


class LiveView:
    """A sink that shows the newest result four times a second, drawn by a thread of its own."""

    def __init__(self, console: Console, title: str, notes: Notes = list) -> None:
        self._title, self._notes = title, notes
        self._timings = Timings()
        self._result: Result | None = None
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4, transient=True)
        self._live.start()

    def __call__(self, result: Result, /) -> None:
        """See `Sink`."""
        self._timings.add(result.latency)
        self._result = result

    def close(self) -> None:
        """See `Sink`."""
        self._live.stop()

    def render(self) -> RenderableType:
        """The view as it is now."""
        grid = Table.grid(padding=(0, 2))
        grid.add_row(Text(self._title, style="bold"))
        result = self._result
        if result is None:
            grid.add_row(Text("waiting for the first picture ..."))
        else:
            grid.add_row(answers_table(result))
            grid.add_row(Text(counts_line(result)))
            grid.add_row(latency_table(self._timings.percentiles()))
        for name, text in self._notes():
            grid.add_row(Text(f"{name}: {text}"))
        grid.add_row(Text("Ctrl-C ends", style="dim"))
        return grid


class PlainLines:
    """Work of a `Background`: a line every two seconds."""

    def __init__(self, say: Callable[[str], None], notes: Notes = list, clock: Clock = time.monotonic) -> None:
        self._say, self._notes, self._clock = say, notes, clock
        self._next: float | None = None

    def begin(self) -> None:
        """See `Work`."""

    def take(self, result: Result) -> None:
        """See `Work`."""
        now = self._clock()
        if self._next is not None and now < self._next:
            return
        self._next = now + PLAIN_EVERY_S
        answers = ", ".join(f"{answer.label} {answer.probability:.1%}" for answer in result.top)
        latency = result.latency
        line = f"{answers} | {counts_line(result)} | inference {latency.inference_ms:.1f} ms, age {latency.age_ms:.1f} ms"
        self._say(" | ".join([line, *(f"{name}: {text}" for name, text in self._notes())]))

    def end(self) -> None:
        """See `Work`."""


def answers_table(result: Result) -> Table:
    """The most probable classes with bars."""
    table = Table.grid(padding=(0, 2))
    for answer in result.top:
        filled = round(_BAR * answer.probability)
        bar = Text("█" * filled, style="green").append("░" * (_BAR - filled), style="dim")
        table.add_row(Text(answer.label), bar, Text(f"{answer.probability:6.1%}"))
    return table


def counts_line(result: Result) -> str:
    """Rate and counts."""
    height, width = result.frame.pixels.shape[:2]
    return f"{result.fps:.1f} results/s, {result.number + 1} results, {result.dropped} frames dropped, picture {width}x{height}"


def latency_table(percentiles: dict[str, Percentiles]) -> Table:
    """Where the time goes."""
    table = Table("ms", "p50", "p95", "p99", "max")
    for part, values in percentiles.items():
        cells = (values.p50_ms, values.p95_ms, values.p99_ms, values.max_ms)
        table.add_row(_TITLES[part], *(f"{value:.2f}" for value in cells))
    return table


def print_summary(console: Console, summary: Summary, notes: list[tuple[str, str]]) -> None:
    """What the run came to."""
    rows = [
        ("ended", summary.ended),
        ("results", f"{summary.results} in {summary.seconds:.1f} s, {summary.fps:.1f} per second"),
        ("frames", f"{summary.given} from the source, {summary.dropped} dropped for newer ones, {summary.bad} unusable"),
    ]
    if summary.lost:
        rows.append(("source", f"lost {summary.lost} times, back {summary.reconnected} times"))
    if summary.not_finite:
        rows.append(("network", f"{summary.not_finite} frames answered with NaN or infinity: no results"))
    table = Table.grid(padding=(0, 2))
    for name, text in [*rows, *notes]:
        table.add_row(Text(name), Text(text, overflow="fold"))
    console.print(table)
    if summary.latency:
        console.print(latency_table(summary.latency))
        console.print(
            "age: from the source giving the frame away until its answer is there; of the last results", highlight=False
        )
