"""The regression gate: compare a build with its baseline, one row per quantity, one verdict.

Answers to the same images, or to some of them (`ufovit build --eval-images`), are compared by the task, every other
quantity by `checks`. What is missing or not finite fails.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from calib.errors import ArtifactError
from edge.drift.looks import look_sizes, look_subset
from edge.gate.baseline import REMAKE, Baseline, Identity, LatencyRatio, read_baseline
from edge.gate.build_figures import BuildFigures, read_build
from edge.gate.checks import common_rows
from edge.images.labelled_images import even_subset
from edge.tasks.gate_row import Row
from edge.tasks.registry import load_task
from edge.tasks.task import GateRequest, Int64
from engines.build_folder.folder import BuildFolder

GateVerdict = Literal["pass", "fail", "inconclusive", "refused"]
EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, "refused": 2}
_WORDS = {
    "model": "another model",
    "precision": "another precision",
    "target": "another target",
    "task": "another task",
    "random_weights": "random weights against trained ones",
    "checkpoint_sha256": "another checkpoint",
    "preprocess_sha256": "other preprocessing",
    "judged": "another judged file",
}


@dataclass(frozen=True)
class GateReport:
    """The result of the gate. `rows` is empty when it refuses to compare; `reason` then gives the cause."""

    folder: str
    baseline: str
    verdict: GateVerdict
    reason: str
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


def gate(build: BuildFolder, baseline_path: Path, latency: LatencyRatio | None = None) -> GateReport:
    """Compare a build with a baseline file. Raises InputError for what cannot be compared."""
    baseline = read_baseline(baseline_path)
    return compare_builds(read_build(build), baseline, baseline_path, latency)


def compare_builds(build: BuildFigures, baseline: Baseline, path: Path, latency: LatencyRatio | None = None) -> GateReport:
    """Compare a build with a baseline read from `path`. Raises ArtifactError when their identities differ."""
    request = GateRequest(
        before=baseline.measured.answers,
        before_images=baseline.identity.images,
        chosen=shared_images(build.identity, baseline.identity, path),
        now=build.measured.answers,
        sides=build.sides,
        tolerances=baseline.tolerances,
        random_weights=build.identity.random_weights,
    )
    if changed := build.task.truth_changed(request):
        figure, found, allowed = changed
        raise _foreign_error("the images are labelled otherwise", figure, (found, allowed), path)
    why = "The accuracy budget is absolute: a baseline may not soften it."
    own = Row("verdict", build.drift.verdict, "", build.drift.verdict, "pass", None, None, why, build.drift.reason)
    rows = (own, *build.task.gate_rows(request), *common_rows(baseline, build, latency))
    results = {row.result for row in rows}
    verdict: GateVerdict = "fail" if "fail" in results else "inconclusive" if "inconclusive" in results else "pass"
    named = [f"{row.quantity}: {row.detail}" for row in rows if row.result == verdict]
    reason = "every quantity is within its tolerance" if verdict == "pass" else "; ".join(named)
    return GateReport(str(build.folder), str(path), verdict, reason, rows, tuple(_notes(build, baseline)))


def shared_images(build: Identity, baseline: Identity, path: Path) -> Int64:
    """Positions (n,) of the build's images among the baseline's: all, an even subset, or those of a look.

    Raises ArtifactError for others.
    """
    words = dict(_WORDS)
    pairs = {f.name: (getattr(build, f.name), getattr(baseline, f.name)) for f in fields(Identity) if f.name in words}
    if build.task == baseline.task:
        words |= load_task(build.task).identity_words
        names = sorted(build.meaning.keys() | baseline.meaning.keys())
        pairs |= {name: (build.meaning.get(name), baseline.meaning.get(name)) for name in names}
    different = [name for name, (now, before) in pairs.items() if now != before]
    if different:
        what = ", ".join(words.get(name, name) for name in different)
        raise _foreign_error(what, different[0], pairs[different[0]], path)
    subsets = [even_subset(baseline.data_sha256, baseline.images, build.images)]
    sizes = look_sizes(baseline.images)
    if build.images in sizes:
        subsets.append(look_subset(baseline.data_sha256, baseline.images, sizes.index(build.images) + 1))
    chosen = next((chosen for chosen, digest in subsets if digest == build.data_sha256 and len(chosen) == build.images), None)
    if chosen is None:
        allowed = f"{baseline.data_sha256}, {baseline.images} images, or an even subset of them (--eval-images)"
        values = f"{build.data_sha256}, {build.images} images", allowed
        raise _foreign_error("other data", "data_sha256", values, path)
    return chosen


def _foreign_error(difference: str, field: str, values: tuple[object, object], path: Path) -> ArtifactError:
    """The error for a baseline of another build; `values` are the build's and the baseline's."""
    what, remake = f"the baseline is not of this build: {difference}", REMAKE.format(path)
    return ArtifactError(what, where=f"{path}, {field}", found=values[0], allowed=values[1], next_command=remake)


def _notes(build: BuildFigures, baseline: Baseline) -> Iterator[str]:
    """Differences that are not judged, and what a reader of the verdict must know about the baseline."""
    was, now = baseline.origin, build.origin
    if was.verdict != "pass":
        yield f"THE BASELINE WAS FORCED: its own verdict was {was.verdict}"
    if build.identity.random_weights:
        yield "RANDOM WEIGHTS: no figure here says anything about accuracy"
    by = baseline.reviewed_by
    yield f"the baseline was reviewed by {by}" if by else "the baseline has not been reviewed: reviewed_by is empty"
    if baseline.note:
        yield f"baseline: {baseline.note}"
    if build.identity.images != baseline.identity.images:
        images = f"{build.identity.images} of the baseline's {baseline.identity.images} images, evenly spread"
        yield f"{images}: figures of a sample have a wider tolerance"
    if now.calibration_data_sha256 != was.calibration_data_sha256:
        yield "the calibration images differ"
    if now.onnx_sha256 != was.onnx_sha256:
        yield "the FP32 graph differs in bytes"
    if (now.backend, now.backend_version) != (was.backend, was.backend_version):
        yield f"built with {now.backend} {now.backend_version}, the baseline with {was.backend} {was.backend_version}"
    if now.engine_sha256 == was.engine_sha256:
        yield "the engine is the baseline's, byte for byte"
