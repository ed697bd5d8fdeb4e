"""The results of `ufovit bench` as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from edge.bench.latency import Latency
from edge.bench.machine import Machine
from edge.bench.memory import Memory
from edge.bench.results import BatchResult, BenchReport, ComparisonReport, MeasuredBuild
from edge.cli.console import wide

_MIB = 1 << 20
_FIGURES = ("p50", "p90", "p95", "p99", "mean", "CV")
_WIDTH = 132  # columns of a table in a file or a pipe


def print_bench(console: Console, report: BenchReport) -> None:
    """One build: a row for every batch size, then build, machine, memory and power."""
    compute = any(result.compute for result in report.results)
    energy = any(result.energy for result in report.results)
    columns = ["batch", *(f"{name} ms" if name != "CV" else name for name in _FIGURES), "images/s"]
    columns += ["compute p50 ms", "compute p99 ms"] if compute else []
    columns += ["W", "mJ/image"] if energy else []
    table = _table(columns)
    for result in report.results:
        row = [str(result.batch), *_figures(result.latency), f"{result.images_per_s:,.1f}"]
        row += _compute(result.compute) if compute else []
        row += _energy(result) if energy else []
        table.add_row(*row)
    wide(console, _WIDTH).print(table, highlight=False)
    rows = _build_rows("build", report.build) | _machine_rows(report.machine, report.threads)
    rows["input"] = f"{report.image}; {report.warm_up} warm-up runs of every batch size"
    rows["memory"] = _memory(report.memory)
    rails = {result.energy.rail: result.energy.source for result in report.results if result.energy}
    rows["power"] = "; ".join(f"{rail}, by {source}, idle power included" for rail, source in rails.items()) or report.power
    _print_rows(console, rows, report.notes)


def print_comparison(console: Console, report: ComparisonReport) -> None:
    """Two builds: a row for each at every batch size, with the ratio of the medians."""
    table = _table(["batch", "build", *(f"{name} ms" if name != "CV" else name for name in _FIGURES), "ratio of medians"])
    for result in report.results:
        ratio = result.ratio
        text = f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        table.add_row(str(result.batch), "BUILD", *_figures(result.first), text)
        table.add_row("", "OTHER", *_figures(result.second), "1")
    wide(console, _WIDTH).print(table, highlight=False)
    rows = _build_rows("BUILD", report.first) | _build_rows("OTHER", report.second)
    rows |= _machine_rows(report.machine, report.threads)
    pairs = ", ".join(dict.fromkeys(str(result.ratio.runs) for result in report.results))
    rows["input"] = f"{report.image}; {pairs} alternating pairs, A B B A, after {report.warm_up} warm-up runs of each"
    for result in report.results:
        rows[f"batch {result.batch}"] = _sentence(result.ratio.ratio, result.ratio.low, result.ratio.high)
    _print_rows(console, rows, report.notes)


def _sentence(ratio: float, low: float, high: float) -> str:
    if low <= 1 <= high:
        return "no measurable difference"
    faster, factor = ("BUILD", 1 / ratio) if ratio < 1 else ("OTHER", ratio)
    return f"{faster} is {factor:.2f} times as fast"


def _table(columns: list[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name in ("batch", "build") else "right", no_wrap=True)
    return table


def _figures(latency: Latency) -> list[str]:
    times = (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.mean_ms)
    return [*(f"{t:.3f}" for t in times), f"{latency.cv:.1%}"]


def _compute(latency: Latency | None) -> list[str]:
    return ["", ""] if latency is None else [f"{latency.p50_ms:.3f}", f"{latency.p99_ms:.3f}"]


def _energy(result: BatchResult) -> list[str]:
    energy = result.energy
    return ["", ""] if energy is None else [f"{energy.mean_w:.2f}", f"{1e3 * energy.joules_per_image:.2f}"]


def _build_rows(name: str, build: MeasuredBuild) -> dict[str, str]:
    what = f"{build.model} {build.precision}, target {build.target}, engine {build.engine_sha256[:16]}..."
    return {name: what, f"{name} ran on": build.ran_on}


def _machine_rows(machine: Machine, threads: int) -> dict[str, str]:
    threads_text = f"{threads} thread{'s' * (threads > 1)}" if threads else "threads on every core"
    where = f"{machine.processor}, {machine.cores} cores, {threads_text}"
    rows = {"machine": f"{where}; {machine.device}" if machine.device else where, "system": machine.system}
    return rows | {"libraries": ", ".join(f"{name} {version}" for name, version in machine.libraries.items())}


def _memory(memory: Memory) -> str:
    named = {
        "in RAM": memory.after_bytes,
        "before the build was opened": memory.before_bytes,
        "at peak": memory.peak_bytes,
    }
    parts = [f"{value / _MIB:,.0f} MiB {name}" for name, value in named.items() if value is not None]
    text = ", ".join(parts) or "not reported by this system"
    if memory.device_used_bytes is not None and memory.device_total_bytes is not None:
        used, total = memory.device_used_bytes / _MIB, memory.device_total_bytes / _MIB
        text += f"; on the device {used:,.0f} of {total:,.0f} MiB in use, by all programs"
    return text


def _print_rows(console: Console, rows: dict[str, str], notes: tuple[str, ...]) -> None:
    width = max(map(len, rows))
    for name, text in rows.items():
        console.print(f"{name:<{width}}  {text}", markup=False, highlight=False)
    for note in notes:
        console.print(f"{'note':<{width}}  {note}", markup=False, highlight=False)
