"""`ufovit gate`: compare a build with a reviewed baseline, for CI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter
from rich.markup import escape

from calib.artifact import read_artifact, write_artifact
from calib.errors import UfovitError, UsageError
from calib.files import write_bytes
from edge.cli.console import TerminalProgress, terminal_progress
from edge.cli.outputs import check_outputs
from engines.build_folder.folder import BuildFolder

if TYPE_CHECKING:
    from edge.gate.baseline import LatencyRatio
    from edge.gate.compare_builds import GateReport

_STYLE = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "skipped": "dim", "refused": "bold red"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What to do with a build and a baseline. Raises UsageError for options that contradict each other.

    Attributes:
        update: Write the baseline from this build, and compare nothing
        force: With --update: accept a build that did not pass; the baseline is stamped
        reviewed_by: With --update: name of the reviewer
        note: With --update: a note for the next reviewer
        latency: JSON file, latency of the engine divided by that of FP32: {"schema_version": 1, "ratio", "low", "high", "runs"}
        junit: Write JUnit XML here
        markdown: Write a summary for a pull request here
        json: Write the report here
    """

    update: bool = False
    force: bool = False
    reviewed_by: str | None = None
    note: str | None = None
    latency: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        if self.update and any((self.junit, self.markdown, self.json)):
            allowed = "without --junit, --markdown, --json"
            raise UsageError(
                "--update writes a baseline and compares nothing", where="--update", found="an output option", allowed=allowed
            )
        if not self.update and (self.force or self.reviewed_by is not None or self.note is not None):
            what = "--force, --reviewed-by and --note apply to writing a baseline only"
            raise UsageError(what, where="--update", allowed="with --update")


_DEFAULT = GateOptions()


def gate(folder: Path, /, *, baseline: Path, options: GateOptions = _DEFAULT) -> int:
    """Verify a build folder and compare it with a baseline, each quantity within its own tolerance.

    Exit codes: 0 no regression, 1 a regression, 2 bad input or a baseline of another build, 3 too few images for a verdict.

    Args:
        folder: A build folder
        baseline: Baseline, a JSON file to keep under version control
    """
    from edge.gate.compare_builds import EXIT_CODES, GateReport
    from edge.gate.compare_builds import gate as compare

    progress, read = terminal_progress(), (folder, options.latency)
    if options.update:
        from edge.gate.update import update_baseline

        check_outputs(baseline, inputs=read)
        ratio, by, note = _latency_ratio(options), options.reviewed_by or "", options.note or ""
        for line in update_baseline(BuildFolder(folder), baseline, force=options.force, latency=ratio, by=by, note=note):
            progress.say(line)
        progress.say(f"baseline  {baseline}: review it before you commit it")
        return 0
    check_outputs(options.junit, options.markdown, options.json, inputs=(*read, baseline))
    try:
        report = compare(BuildFolder(folder), baseline, _latency_ratio(options))
    except UfovitError as error:
        _write(GateReport(str(folder), str(baseline), "refused", str(error)), options)
        raise
    _print(progress, report)
    _write(report, options)
    return EXIT_CODES[report.verdict]


def _latency_ratio(options: GateOptions) -> LatencyRatio | None:
    if options.latency is None:
        return None
    from edge.gate.baseline import LatencyRatio

    return read_artifact(options.latency, LatencyRatio, remake="measure engine and FP32 in turn")


def _write(report: GateReport, options: GateOptions) -> None:
    """Write the files that the options name."""
    from edge.gate.junit import junit_xml
    from edge.gate.markdown import markdown_summary

    if options.junit is not None:
        write_bytes(options.junit, junit_xml(report))
    if options.markdown is not None:
        write_bytes(options.markdown, markdown_summary(report).encode())
    if options.json is not None:
        write_artifact(options.json, report)


def _print(progress: TerminalProgress, report: GateReport) -> None:
    rows = []
    for row in report.rows:
        result = f"[{_STYLE[row.result]}]{row.result}[/]"
        rows.append([escape(row.quantity), result, *map(escape, (row.baseline, row.measured, row.allowed, row.detail))])
    columns = ("quantity", "result", "baseline", "now", "allowed", "found")
    progress.table(columns, rows, left=columns)
    for note in report.notes:
        progress.say(f"note     {note}")
    verdict = f"[{_STYLE[report.verdict]}]{report.verdict.upper()}[/]"
    progress.console.print(f"verdict  {verdict} {escape(report.reason)}", highlight=False)
