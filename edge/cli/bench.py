"""`ufovit bench`: how fast a build answers on this machine, alone or against another one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calib.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from edge.bench.measure import Conditions
    from edge.bench.results import BenchReport, ComparisonReport
    from edge.runtime.open_build import OpenedBuild

_MOST_BATCHES = 32


def bench(  # noqa: PLR0913, PLR0917  # one parameter per option of the command
    folder: Annotated[Path, typer.Argument(help="A build folder", metavar="BUILD", show_default=False)],
    runner: Annotated[str, typer.Option(help="auto, ort, openvino or trt")] = "auto",
    batch: Annotated[
        str | None, typer.Option(help="Batch sizes. Default: 1,2,4,8; with --against 1", show_default=False)
    ] = None,
    warm_up: Annotated[int, typer.Option(help="Runs of every batch size that are not counted")] = 20,
    runs: Annotated[int, typer.Option(help="Runs that are counted, at least")] = 200,
    duration: Annotated[float, typer.Option(help="Seconds for every batch size, at least")] = 0.0,
    threads: Annotated[int, typer.Option(help="Threads of a runner on the CPU; 0 for every core")] = 0,
    against: Annotated[
        Path | None, typer.Option(help="Another build, run in turn with this one", metavar="OTHER", show_default=False)
    ] = None,
    against_runner: Annotated[
        str | None, typer.Option(help="The other's runner. Default: this one's", show_default=False)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report here", metavar="FILE", show_default=False)] = None,
    latency: Annotated[
        Path | None,
        typer.Option(help="Write the ratio to OTHER here, for ufovit gate --latency FILE", metavar="FILE", show_default=False),
    ] = None,
    require_signature: Annotated[
        Path | None,
        typer.Option(
            help="PEM file of a public key: refuse what its owner did not sign", metavar="PUBLIC_KEY", show_default=False
        ),
    ] = None,
) -> int:
    """Measure latency, throughput and memory of a build on this machine; on a Jetson, power and energy too.

    The image is the build's own golden image. With --against both are run in turn, A B B A, and the ratio of their medians is
    told with its 95 % interval; OTHER may be the FP32 build of the same network, or BUILD itself with another --against-runner.
    """
    from rich.console import Console

    from calib.artifact import write_artifact
    from edge.bench.latency import Plan
    from edge.bench.measure import Conditions

    if against is None and (latency is not None or against_runner is not None):
        raise InputError("--latency and --against-runner are about two builds", allowed="with --against OTHER")
    console, conditions = Console(soft_wrap=True), Conditions(Plan(warm_up, runs, duration), threads)
    asked = _Asked(
        folder, runner, against, against_runner or runner, parse_batches(batch), require_signature, latency is not None
    )
    report: BenchReport | ComparisonReport
    if against is None:
        report = _alone(console, asked, conditions)
    else:
        report = both = _in_turn(console, asked, conditions)
        if latency is not None:
            from edge.gate.baseline import LatencyRatio

            found = both.results[0].ratio
            write_artifact(latency, LatencyRatio(found.ratio, found.low, found.high, found.runs))
    if json is not None:
        write_artifact(json, report)
    return 0


@dataclass(frozen=True)
class _Asked:
    """What is measured: a build and its runner, perhaps another and its; batch sizes, None for the usual ones; and whether the
    ratio is for a gate."""

    folder: Path
    runner: str
    other: Path | None
    other_runner: str
    batches: tuple[int, ...] | None
    public_key: Path | None
    for_gate: bool


def parse_batches(text: str | None) -> tuple[int, ...] | None:
    """Batch sizes from "1,2,4", each once, in this order; None from None. Raises InputError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts) or len(parts) > _MOST_BATCHES:
        raise InputError("batch sizes are not understood", found=repr(text), allowed="numbers such as 1,2,4,8, none of them 0")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _alone(console: Console, asked: _Asked, conditions: Conditions) -> BenchReport:
    from edge.bench.measure import choose_batches, measure_build
    from edge.bench.memory import resident
    from edge.bench.power import find_monitor
    from edge.cli.bench_tables import print_bench
    from edge.cli.console import TerminalProgress
    from edge.runtime.open_build import open_runner
    from engines.build_folder.folder import BuildFolder

    before = resident()
    folder = BuildFolder(asked.folder, require_signature=asked.public_key)
    opened = open_runner(folder, asked.runner, threads=conditions.threads)
    with opened.runner:
        batches = choose_batches(asked.batches, opened.batch)
        report = measure_build(
            opened, batches, conditions, monitor=find_monitor(), before=before, progress=TerminalProgress(console)
        )
    print_bench(console, report)
    return report


def _check_for_gate(build: OpenedBuild, other: OpenedBuild) -> None:
    """A gate compares the time of an engine in units of that of FP32. Raises InputError for any other ratio."""
    for opened in (build, other):
        if not opened.itself:
            raise InputError(
                "--latency is about engines, and here a graph runs",
                where=opened.manifest.engine.file,
                found=opened.ran_on,
                allowed="the engines themselves: --runner ort for builds of target cpu, --runner trt on their GPU",
            )
    models = (build.manifest.model, other.manifest.model)
    if models[0] != models[1] or other.manifest.precision != "fp32":
        raise InputError(
            "--latency is about a build and the FP32 build of the same model",
            found=f"{models[0]} against {models[1]} {other.manifest.precision}",
            allowed="--against an FP32 build",
            next_command=f"ufovit build {models[0]} fp32 --target {build.manifest.target}",
        )


def _in_turn(console: Console, asked: _Asked, conditions: Conditions) -> ComparisonReport:
    from edge.bench.measure import choose_batches, compare
    from edge.cli.bench_tables import print_comparison
    from edge.cli.console import TerminalProgress
    from edge.runtime.open_build import open_runner
    from engines.build_folder.folder import BuildFolder

    pairs = ((asked.folder, asked.runner), (asked.other or asked.folder, asked.other_runner))
    with ExitStack() as opened:
        builds = []
        for folder, runner in pairs:
            verified = BuildFolder(folder, require_signature=asked.public_key)
            build = open_runner(verified, runner, threads=conditions.threads)
            opened.enter_context(build.runner)
            builds.append(build)
        if asked.for_gate:
            _check_for_gate(*builds)
        fitting = choose_batches(asked.batches, *(build.batch for build in builds))
        batches = fitting if asked.batches else fitting[:1]
        report = compare(builds[0], builds[1], batches, conditions, TerminalProgress(console))
    print_comparison(console, report)
    return report
