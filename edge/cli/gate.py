"""`ufovit gate`: has this build lost anything against a reviewed one?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from edge.gate.compare_builds import GateReport

_STYLE = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "skipped": "dim", "refused": "bold red"}


def gate(  # noqa: PLR0913, PLR0917  # one parameter per option of the command
    folder: Annotated[Path, typer.Argument(help="A build folder", show_default=False)],
    baseline: Annotated[
        Path, typer.Option(help="The baseline, a JSON file to be kept under version control", show_default=False)
    ],
    update: Annotated[bool, typer.Option("--update", help="Write the baseline from this build, and compare nothing")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --update: of a build that did not pass; stamped")] = False,
    reviewed_by: Annotated[str | None, typer.Option(help="With --update: who has looked at it", show_default=False)] = None,
    note: Annotated[
        str | None, typer.Option(help="With --update: what the next reader should know", show_default=False)
    ] = None,
    latency: Annotated[
        Path | None,
        typer.Option(
            help='Time of the engine in units of FP32\'s: {"schema_version": 1, "ratio", "low", "high", "runs"}',
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here", metavar="FILE", show_default=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a summary for a pull request here", metavar="FILE", show_default=False)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report here", metavar="FILE", show_default=False)] = None,
) -> int:
    """Verify a build folder and compare it with a baseline, each quantity within its own tolerance.

    Exit codes: 0 nothing was lost, 1 something was, 2 bad input or a baseline of something else, 3 too few images to say.
    """
    from rich.console import Console

    from calib.artifact import read_artifact
    from calib.errors import InputError, UfovitError
    from edge.gate.baseline import LatencyRatio
    from edge.gate.compare_builds import EXIT_CODES, GateReport
    from edge.gate.compare_builds import gate as compare
    from edge.gate.update import update_baseline
    from engines.build_folder.folder import BuildFolder

    console = Console(soft_wrap=True)
    outputs = {"junit": junit, "markdown": markdown, "json": json}
    if update and any(outputs.values()):
        raise InputError("--update compares nothing", found="an output option", allowed="without --junit, --markdown, --json")
    if not update and (force or reviewed_by is not None or note is not None):
        raise InputError("--force, --reviewed-by and --note are about a baseline to be written", allowed="with --update")
    try:
        remake = "measure engine and FP32 in turn"
        ratio = read_artifact(latency, LatencyRatio, remake=remake) if latency is not None else None
        build = BuildFolder(folder)
        if update:
            for line in update_baseline(build, baseline, force=force, latency=ratio, by=reviewed_by or "", note=note or ""):
                console.print(line, markup=False, highlight=False)
            console.print(f"baseline  {baseline}: look at it before you commit it", markup=False, highlight=False)
            return 0
        report = compare(build, baseline, ratio)
    except UfovitError as error:
        if not update:
            _write(GateReport(str(folder), str(baseline), "refused", str(error)), outputs)
        raise
    _print(console, report)
    _write(report, outputs)
    return EXIT_CODES[report.verdict]


def _write(report: GateReport, outputs: dict[str, Path | None]) -> None:
    """The files that were asked for."""
    from calib.artifact import write_artifact
    from calib.files import write_bytes
    from edge.gate.junit import junit_xml
    from edge.gate.markdown import markdown_summary

    if outputs["junit"] is not None:
        write_bytes(outputs["junit"], junit_xml(report))
    if outputs["markdown"] is not None:
        write_bytes(outputs["markdown"], markdown_summary(report).encode())
    if outputs["json"] is not None:
        write_artifact(outputs["json"], report)


def _print(console: Console, report: GateReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from edge.cli.console import wide

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("quantity", "result", "baseline", "now", "allowed", "found"):
        table.add_column(column, overflow="fold")
    for row in report.rows:
        result = f"[{_STYLE[row.result]}]{row.result}[/]"
        table.add_row(row.quantity, result, *map(escape, (row.baseline, row.measured, row.allowed, row.detail)))
    wide(console, 160).print(table, highlight=False)
    for note in report.notes:
        console.print(f"note     {note}", markup=False, highlight=False)
    console.print(f"verdict  [{_STYLE[report.verdict]}]{report.verdict.upper()}[/] {escape(report.reason)}", highlight=False)
