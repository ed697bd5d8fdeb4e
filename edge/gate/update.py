"""Write a baseline from a build that passed: keep tolerances that were edited by hand, and list what changed."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from calib.artifact import write_artifact
from calib.errors import ArtifactError, VerdictError
from edge.gate.baseline import (
    Baseline,
    BaselineFigures,
    Identity,
    LatencyRatio,
    Origin,
    StepFigures,
    is_outdated,
    read_baseline,
)
from edge.gate.build_figures import BuildFigures, read_build
from edge.gate.gate_tolerances import STEP_QUANTITIES, common_tolerances, network_tolerances
from edge.tasks.gate_row import Recorded, Tolerance
from edge.tasks.registry import load_task
from engines.build_folder.folder import BuildFolder


def default_tolerances(identity: Identity, origin: Origin, measured: BaselineFigures) -> dict[str, Tolerance]:
    """The default tolerances of a baseline, the task's included."""
    answers = load_task(identity.task).default_tolerances(measured.answers, identity.images)
    common = common_tolerances(origin.backend) | (network_tolerances() if measured.network else {})
    absent = STEP_QUANTITIES if measured.steps is None else frozenset[str]()
    return answers | {name: tolerance for name, tolerance in common.items() if name not in absent}


def make_baseline(build: BuildFigures, latency: LatencyRatio | None = None, reviewed_by: str = "", note: str = "") -> Baseline:
    """Make a baseline with the default tolerances."""
    measured = replace(build.measured, latency=latency)
    tolerances = default_tolerances(build.identity, build.origin, measured)
    baseline = Baseline(build.identity, build.origin, measured, tolerances, "", reviewed_by, note)
    return replace(baseline, seal=baseline.digest())


def update_baseline(
    folder: BuildFolder, path: Path, *, force: bool = False, latency: LatencyRatio | None = None, by: str = "", note: str = ""
) -> list[str]:
    """Write a baseline of a build folder to `path`, atomically, and return what changed since the previous one.

    A tolerance or reason edited in the previous baseline is kept. Raises VerdictError for a build that did not pass, unless
    forced (the baseline then holds the verdict, and every gate on it reports that); ArtifactError for a damaged build, and for
    a previous baseline that is damaged, whose edited tolerances would be lost.
    """
    build = read_build(folder)
    if build.drift.verdict != "pass" and not force:
        raise VerdictError(
            "cannot make a baseline of a build that did not pass",
            where=folder.path,
            found=f"{build.drift.verdict}: {build.drift.reason}",
            next_command="fix the build, or stamp the baseline with --force",
        )
    figures = (*build.measured.answers.figures.values(), build.measured.share)
    if not all(figure is None or math.isfinite(figure) for figure in figures):
        raise ArtifactError("cannot make a baseline of figures that are not finite", where=folder.path, found=figures)
    baseline = make_baseline(build, latency, by, note)
    changes = ["new baseline"]
    if path.exists() and is_outdated(path):
        changes = ["new baseline, of a new version: tolerances of the old one are not kept"]
    elif path.exists():
        old = read_baseline(path)
        edited = {name: entry for name, entry in _edited(old).items() if name in baseline.tolerances}
        baseline = replace(baseline, tolerances=baseline.tolerances | edited)
        changes = list(_changes(old, baseline)) or ["nothing changed"]
    write_artifact(path, baseline)
    return changes


def _edited(old: Baseline) -> dict[str, Tolerance]:
    """The tolerances that were edited: those that differ from the defaults for the figures of that baseline."""
    default = default_tolerances(old.identity, old.origin, old.measured)
    return {name: entry for name, entry in old.tolerances.items() if entry != default[name]}


def _changes(old: Baseline, new: Baseline) -> Iterator[str]:
    for part in ("identity", "origin", "measured"):
        before, after = _flat(getattr(old, part)), _flat(getattr(new, part))
        for name in before | after:
            if before.get(name) != after.get(name):
                yield f"{name}: {_short(before.get(name))} -> {_short(after.get(name))}"
    for name in sorted(new.tolerances):
        if name in old.tolerances and old.tolerances[name] != new.tolerances[name]:
            yield f"tolerance of {name}: {old.tolerances[name].tolerance:g} -> {new.tolerances[name].tolerance:g}"
    yield from (f"tolerance of {name}: {entry.tolerance:g}, edited, kept" for name, entry in sorted(_edited(old).items()))


def _flat(part: Identity | Origin | BaselineFigures) -> dict[str, Any]:
    """The fields of a part of a baseline, including those of the task and of the steps."""
    flat: dict[str, Any] = {**vars(part)}
    steps: StepFigures | None = flat.pop("steps", None)
    recorded: Recorded = flat.pop("answers", Recorded())
    packed = {f"{side}_answers": answers for side, answers in recorded.answers.items()}
    return {**flat.pop("meaning", {}), **recorded.figures, **packed, **flat, **(vars(steps) if steps else {})}


def _short(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 20 else f"{text[:16]}..."
