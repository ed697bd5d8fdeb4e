"""The regression gate: a build against its baseline, one row per quantity, one verdict.

Answers to the same images are compared as the task says; what is no sample is compared with its limit. Nothing is skipped
without a reason that stands in the row; what is missing or not finite fails. The build's own verdict counts whatever the
baseline says. Why the tolerances are what they are: `gate_tolerances`, here and of the task. A build judged on an even subset
of the baseline's images (`ufovit build --eval-images`) is compared on these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from calib.errors import InputError
from edge.gate.baseline import REMAKE, Baseline, Identity, LatencyRatio, read_baseline
from edge.gate.build_figures import Build, read_build
from edge.gate.checks import Rows, own_verdict
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
    "random_weights": "drawn weights against trained ones",
    "checkpoint_sha256": "another checkpoint",
    "preprocess_sha256": "other preprocessing",
    "judged": "something else that answered",
}


@dataclass(frozen=True)
class GateReport:
    """What the gate says. `rows` is empty when it refuses, and `reason` then says why."""

    folder: str
    baseline: str
    verdict: GateVerdict
    reason: str
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


def gate(build: BuildFolder, baseline_path: Path, latency: LatencyRatio | None = None) -> GateReport:
    """Compare a build with a baseline. Raises InputError for what cannot be compared."""
    baseline = read_baseline(baseline_path)
    return compare_builds(read_build(build), baseline, baseline_path, latency)


def compare_builds(build: Build, baseline: Baseline, path: Path, latency: LatencyRatio | None = None) -> GateReport:
    """Compare a build with a baseline read from `path`. Raises InputError when they are not builds of the same."""
    chosen = shared_images(build.identity, baseline.identity, path)
    request = _request(build, baseline, chosen)
    _check_truth(build, request, path)
    rows = tuple(_rows(build, baseline, request, latency))
    verdict = verdict_of(rows)
    named = [f"{row.quantity}: {row.detail}" for row in rows if row.result == verdict]
    reason = "every quantity is within its tolerance" if verdict == "pass" else "; ".join(named)
    return GateReport(str(build.folder), str(path), verdict, reason, rows, tuple(_notes(build, baseline)))


def verdict_of(rows: tuple[Row, ...]) -> GateVerdict:
    """Fail if any row fails, else inconclusive if any is, else pass."""
    results = {row.result for row in rows}
    return "fail" if "fail" in results else "inconclusive" if "inconclusive" in results else "pass"


def shared_images(build: Identity, baseline: Identity, path: Path) -> Int64:
    """Positions (n,) of the build's images among the baseline's: all, or an even subset. Raises InputError for others."""
    remake = REMAKE.format(path)
    words = dict(_WORDS)
    pairs = {f.name: (getattr(build, f.name), getattr(baseline, f.name)) for f in fields(Identity) if f.name in words}
    if build.task == baseline.task:
        words |= load_task(build.task).identity_words
        names = sorted(build.meaning.keys() | baseline.meaning.keys())
        pairs |= {name: (build.meaning.get(name), baseline.meaning.get(name)) for name in names}
    different = [name for name, (found, allowed) in pairs.items() if found != allowed]
    if different:
        found, allowed = pairs[different[0]]
        raise InputError(
            f"the baseline is not of this build: {', '.join(words.get(name, name) for name in different)}",
            where=f"{path}, {different[0]}",
            found=found,
            allowed=allowed,
            next_command=remake,
        )
    chosen, digest = even_subset(baseline.data_sha256, baseline.images, build.images)
    if digest != build.data_sha256 or len(chosen) != build.images:
        raise InputError(
            "the baseline is not of this build: other data",
            where=f"{path}, data_sha256",
            found=f"{build.data_sha256}, {build.images} images",
            allowed=f"{baseline.data_sha256}, {baseline.images} images, or an even subset of them (--eval-images)",
            next_command=remake,
        )
    return chosen


def _request(build: Build, baseline: Baseline, chosen: Int64) -> GateRequest:
    return GateRequest(
        before=baseline.measured.answers,
        before_images=baseline.identity.images,
        chosen=chosen,
        now=build.measured.answers,
        sides=build.sides,
        tolerances=baseline.tolerances,
        random_weights=build.identity.random_weights,
    )


def _check_truth(build: Build, request: GateRequest, path: Path) -> None:
    """Raise InputError where the build's right answers cannot be those that the baseline was judged by."""
    changed = build.task.truth_changed(request)
    if changed is not None:
        figure, found, allowed = changed
        raise InputError(
            "the baseline is not of this build: the images are labelled otherwise",
            where=f"{path}, {figure}",
            found=found,
            allowed=allowed,
            next_command=REMAKE.format(path),
        )


def _rows(build: Build, baseline: Baseline, request: GateRequest, latency: LatencyRatio | None) -> Iterator[Row]:
    before, now, rows = baseline.measured, build.measured, Rows(baseline)
    yield own_verdict(build.drift)
    yield from build.task.gate_rows(request)
    yield from rows.scales(before.scales, now.scales)
    yield from rows.xnorm(before.xnorm, now.xnorm)
    yield rows.share(now.share, build.fallbacks)
    yield rows.size(now.engine_bytes)
    yield rows.latency(latency)


def _notes(build: Build, baseline: Baseline) -> Iterator[str]:
    """What differs without being judged, and what a reader of the verdict must know of the baseline."""
    was, now = baseline.origin, build.origin
    if was.verdict != "pass":
        yield f"THE BASELINE WAS FORCED: its own verdict was {was.verdict}"
    if build.identity.random_weights:
        yield "RANDOM WEIGHTS: no figure here says anything about accuracy"
    yield (
        f"the baseline was reviewed by {baseline.reviewed_by}"
        if baseline.reviewed_by
        else "nobody has signed the baseline's review"
    )
    if baseline.note:
        yield f"baseline: {baseline.note}"
    if build.identity.images != baseline.identity.images:
        yield (
            f"{build.identity.images} of the baseline's {baseline.identity.images} images, evenly spread: what is a sample has "
            f"a wider tolerance"
        )
    if now.calibration_data_sha256 != was.calibration_data_sha256:
        yield "the calibration images differ"
    if now.onnx_sha256 != was.onnx_sha256:
        yield "the FP32 graph differs in bytes"
    if (now.backend, now.backend_version) != (was.backend, was.backend_version):
        yield f"built with {now.backend} {now.backend_version}, the baseline with {was.backend} {was.backend_version}"
    if now.engine_sha256 == was.engine_sha256:
        yield "the engine is the baseline's, byte for byte"
