"""`ufovit bench`: latency, throughput, memory and power of a build on this machine, alone or against another build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from calib.artifact import write_artifact
from calib.errors import UsageError
from edge.cli.console import terminal_progress
from edge.cli.outputs import check_outputs
from edge.option_bounds import MEASURED_S, RUNS, THREADS, WARM_UP, check_bounds
from engines.build_folder.folder import BuildFolder
from engines.build_spec import LARGEST_BATCH, batch_size

if TYPE_CHECKING:
    from edge.bench.results import BenchReport, ComparisonReport
    from edge.progress import Progress
    from edge.runtime.open_build import OpenedBuild

_MOST_BATCHES = 32


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured, and how. Raises UsageError for options that contradict each other.

    Attributes:
        runner: auto, ort, openvino or trt
        batch: Batch sizes, 1 to 1,024 each. Default: 1,2,4,8; with --against 1
        warm_up: Warm-up runs of every batch size, 0 to 1,000,000, not counted
        runs: Least number of measured runs of every batch size, 1 to 1,000,000
        duration: Least duration of the measurement of every batch size, in seconds, 0 to 86,400
        threads: Threads of a runner on the CPU, 0 to 1,024; 0 for every core
        against: Another build, run alternately with this one
        against_runner: Runner of the other build. Default: the same as --runner
        json: Write the report here
        latency: Write the ratio to the other build here, for ufovit gate --latency FILE
        record: Keep the measured speed of an INT8 build beside the FP16 or FP32 build in its folder: summary and report then
            show it in place of the estimate
        require_signature: PEM file of a public key: refuse a build that its owner did not sign
    """

    runner: str = "auto"
    batch: str | None = None
    warm_up: int = 20
    runs: int = 200
    duration: float = 0.0
    threads: int = 0
    against: Path | None = None
    against_runner: str | None = None
    json: Path | None = None
    latency: Path | None = None
    record: bool = False
    require_signature: Path | None = None

    def __post_init__(self) -> None:
        check_bounds("--warm-up", self.warm_up, WARM_UP)
        check_bounds("--runs", self.runs, RUNS)
        check_bounds("--duration", self.duration, MEASURED_S)
        check_bounds("--threads", self.threads, THREADS)
        if self.against is None and (self.latency is not None or self.against_runner is not None or self.record):
            raise UsageError(
                "--latency, --record and --against-runner require two builds", where="--against", allowed="with --against OTHER"
            )

    def open(self, folder: Path, runner: str) -> OpenedBuild:
        """Open a build for a measurement."""
        from edge.drift.drift_report import DRIFT_ARTIFACT
        from edge.runtime.open_build import open_runner

        build = BuildFolder(folder, require_signature=self.require_signature)
        build.find(DRIFT_ARTIFACT)  # a build with a contradictory verdict is refused, although no verdict is shown
        return open_runner(build, runner, threads=self.threads)


_DEFAULT = BenchOptions()


def bench(folder: Path, /, *, options: BenchOptions = _DEFAULT) -> int:
    """Measure latency, throughput and memory of a build on this machine; on a Jetson, power and energy too.

    The image is the build's own golden image. With --against both builds run alternately, A B B A, and the ratio of their
    medians is printed with its 95 % interval; the other may be the FP32 build of the same network, or the same build with
    another --against-runner.

    Args:
        folder: A build folder
    """
    from edge.bench.latency import Plan
    from edge.bench.measure import Conditions, choose_batches, compare, measure_build
    from edge.bench.memory import resident
    from edge.bench.power import find_monitor
    from edge.cli.bench_tables import print_bench, print_comparison

    progress, before = terminal_progress(), resident()
    check_outputs(options.json, options.latency, inputs=(folder, options.against))
    conditions = Conditions(Plan(options.warm_up, options.runs, options.duration), options.threads)
    requested = parse_batches(options.batch)
    first = options.open(folder, options.runner)
    report: BenchReport | ComparisonReport
    with first.runner:
        if options.against is None:
            batches = choose_batches(requested, first.batch)
            report = measure_build(first, batches, conditions, monitor=find_monitor(), before=before, progress=progress)
            print_bench(progress, report)
        else:
            second = options.open(options.against, options.against_runner or options.runner)
            with second.runner:
                if options.latency is not None:
                    _check_for_gate(first, second)
                if options.record:
                    _check_for_record(first, second)
                batches = choose_batches(requested, first.batch, second.batch)
                report = compare(first, second, batches if requested else batches[:1], conditions, progress)
            print_comparison(progress, report)
            if options.latency is not None:
                _write_ratio(options.latency, report)
            if options.record:
                _record_speed(folder, report, progress)
    if options.json is not None:
        write_artifact(options.json, report)
    return 0


def parse_batches(text: str | None) -> tuple[int, ...] | None:
    """Batch sizes from "1,2,4", each once, in this order; None from None. Raises UsageError."""
    if text is None:
        return None
    sizes = [batch_size(part) for part in text.split(",", _MOST_BATCHES)]
    if not all(size and size <= LARGEST_BATCH for size in sizes) or len(sizes) > _MOST_BATCHES:
        allowed = f"at most {_MOST_BATCHES} integers from 1 to {LARGEST_BATCH:,} such as 1,2,4,8"
        raise UsageError("--batch must be a list of batch sizes", where="--batch", found=repr(text), allowed=allowed)
    return tuple(dict.fromkeys(size for size in sizes if size is not None))


def _check_for_gate(build: OpenedBuild, other: OpenedBuild) -> None:
    """Raise UsageError unless the ratio is that of an engine to the FP32 engine of the same model, as a gate compares it."""
    _require_engines("--latency", build, other)
    models = (build.manifest.model, other.manifest.model)
    if models[0] != models[1] or other.manifest.precision != "fp32":
        raise UsageError(
            "--latency compares a build with the FP32 build of the same model",
            where="--against",
            found=f"{models[0]} against {models[1]} {other.manifest.precision}",
            allowed="--against an FP32 build",
            next_command=f"ufovit build {build.manifest.source} fp32 --target {build.manifest.target}",
        )


def _check_for_record(build: OpenedBuild, other: OpenedBuild) -> None:
    """Raise UsageError unless an INT8 engine is compared with the FP16 or FP32 engine of the same model and target."""
    _require_engines("--record", build, other)
    first, second = build.manifest, other.manifest
    same = (first.model, first.target) == (second.model, second.target)
    if not same or first.precision != "int8" or second.precision == "int8":
        raise UsageError(
            "--record keeps the speed of an INT8 build beside the FP16 or FP32 build of the same model",
            where="--against",
            found=" against ".join(f"{m.model} {m.precision} for {m.target}" for m in (first, second)),
            allowed="BUILD in INT8, --against one in FP16 or FP32 for the same target",
            next_command=f"ufovit build {first.source} fp16 --target {first.target}",
        )


def _require_engines(option: str, *builds: OpenedBuild) -> None:
    """Raise UsageError for a build of which a graph runs in place of the engine."""
    for opened in builds:
        if not opened.itself:
            raise UsageError(
                f"{option} requires engines, but a graph runs in place of one",
                where=opened.manifest.engine.file,
                found=opened.ran_on,
                allowed="the engines themselves: --runner auto for builds of target cpu, --runner trt on their GPU",
            )


def _record_speed(folder: Path, report: ComparisonReport, progress: Progress) -> None:
    """Keep the measured speed in the build folder."""
    from edge.pipeline.rejudge import record_speed
    from engines.speed_estimate import MeasuredRatio, MeasuredSpeed

    ratios = tuple(
        MeasuredRatio(result.batch, 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low, ratio.runs)
        for result in report.results
        for ratio in (result.ratio,)
    )
    first, second, machine = report.first, report.second, report.machine
    where = f"{machine.device or machine.processor}, runner {first.runner}"
    measured = MeasuredSpeed(first.engine_sha256, second.engine_sha256, second.precision, where, report.created, ratios)
    record_speed(folder, measured, progress)


def _write_ratio(path: Path, report: ComparisonReport) -> None:
    from edge.gate.baseline import LatencyRatio

    ratio = report.results[0].ratio
    write_artifact(path, LatencyRatio(ratio.ratio, ratio.low, ratio.high, ratio.runs))
