"""Measure an opened build, alone or alternately with another one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from calib.errors import UsageError
from edge.bench.compare_builds import interleave, median_ratio
from edge.bench.energy import PowerSampler
from edge.bench.latency import FEW, Clock, Latency, Plan, summarize, time_runs
from edge.bench.machine import Machine, this_machine
from edge.bench.memory import Resident, measure_memory
from edge.bench.power import PowerMonitor
from edge.bench.results import BatchResult, BenchReport, ComparisonReport, PairResult, measured_build
from edge.progress import Progress
from edge.runtime.open_build import OpenedBuild
from edge.runtime.trt_runner import TrtRunner
from engines.build_spec import BatchRange

DEFAULT_BATCHES = (1, 2, 4, 8)
_COPIES = (
    "latency is from array to array, copies included; compute is the engine alone between two CUDA events, copies excluded"
)


@dataclass(frozen=True)
class Conditions:
    """How to measure; `pause` waits a number of seconds before every run of a comparison.

    `threads` is that of a runner on the CPU, as it was opened; 0 for every core.
    """

    plan: Plan
    threads: int = 0
    clock: Clock = time.perf_counter
    pause: Callable[[float], object] = time.sleep


def choose_batches(requested: Sequence[int] | None, *ranges: BatchRange) -> tuple[int, ...]:
    """Batch sizes to measure: the requested ones, which must be in every range, else those of DEFAULT_BATCHES that are.

    Raises UsageError for a size that a build does not support, and where no size is in every range.
    """
    low, high = max(r.min for r in ranges), min(r.max for r in ranges)
    if low > high:
        raise UsageError(
            "the builds have no batch size in common", where="--against", found=", ".join(f"{r.min} to {r.max}" for r in ranges)
        )
    for batch in requested or ():
        if not low <= batch <= high:
            remedy = "choose another --batch; an engine's range is that of ufovit build --batch MIN,OPT,MAX"
            allowed = f"{low} to {high}"
            what = "the build does not support this batch size"
            raise UsageError(what, where="--batch", found=batch, allowed=allowed, next_command=remedy)
    return tuple(requested or (b for b in DEFAULT_BATCHES if low <= b <= high)) or (low,)


def measure_build(
    opened: OpenedBuild,
    batches: Sequence[int],
    conditions: Conditions,
    *,
    monitor: PowerMonitor | str,
    before: Resident,
    progress: Progress,
) -> BenchReport:
    """Measure every batch size in turn.

    `monitor` measures power, or says why nothing does; it is closed at the end. `before` is the memory of this process before
    the build was opened.
    """
    plan, machine, results = conditions.plan, this_machine(opened.runner), []
    with PowerSampler(monitor, conditions.clock) as power:
        for batch in batches:
            with progress.task(f"batch {batch}"):
                timed = time_runs(partial(opened.runner, opened.golden_images(batch)), plan, conditions.clock)
                energy = power.energy(timed.begin_s, timed.end_s, batch * len(timed.times_ms))
                latency, compute = summarize(timed.times_ms), _compute(opened, plan.runs)
                results.append(BatchResult(batch, latency, compute, timed.per_second(batch), energy))
    return BenchReport(
        build=measured_build(opened),
        machine=machine,
        threads=conditions.threads,
        warm_up=plan.warm_up,
        results=tuple(results),
        memory=measure_memory(before, opened.runner),
        power=power.why,
        notes=_notes(machine, plan, opened),
    )


def compare(
    first: OpenedBuild, second: OpenedBuild, batches: Sequence[int], conditions: Conditions, progress: Progress
) -> ComparisonReport:
    """Measure two builds alternately, on one image. Raises UsageError if they take images of different sizes."""
    shapes = [opened.golden.tensor.shape for opened in (first, second)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            "the builds take images of different sizes",
            where="--against",
            found=" and ".join(str(shape) for shape in shapes),
            allowed="two builds of one --image-size",
        )
    plan, machine, results = conditions.plan, this_machine(first.runner), []
    for batch in batches:
        with progress.task(f"batch {batch}"):
            images = first.golden_images(batch)
            works = (partial(first.runner, images), partial(second.runner, images))
            times = interleave(*works, plan, conditions.clock, conditions.pause)
            results.append(PairResult(batch, median_ratio(*times), summarize(times[0]), summarize(times[1])))
    return ComparisonReport(
        first=measured_build(first),
        second=measured_build(second),
        machine=machine,
        threads=conditions.threads,
        warm_up=plan.warm_up,
        results=tuple(results),
        notes=_notes(machine, plan, first, second),
    )


def _compute(opened: OpenedBuild, runs: int) -> Latency | None:
    """Latency of the engine alone, for the batch that was just run; None on a CPU."""
    if not isinstance(opened.runner, TrtRunner):
        return None
    return summarize(np.array(opened.runner.compute_times_ms(runs), np.float64))


def _notes(machine: Machine, plan: Plan, *builds: OpenedBuild) -> tuple[str, ...]:
    notes = list(dict.fromkeys(note for opened in builds for note in opened.notes))
    if any(isinstance(opened.runner, TrtRunner) for opened in builds):
        notes.append(_COPIES)
    if any(opened.manifest.random_weights for opened in builds):
        notes.append("RANDOM WEIGHTS: speed, never accuracy")
    if plan.runs < FEW and not plan.duration_s:
        notes.append(f"p99 of {plan.runs} runs is little more than the slowest of them")
    if machine.busy:
        notes.append(
            f"the machine was busy (load {machine.load:.1f} on {machine.cores} cores): compare ratios, not milliseconds"
        )
    return tuple(notes)
