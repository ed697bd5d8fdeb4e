"""The regression gate: a build against its baseline, one row per quantity, one verdict.

Answers to the same images are compared one by one, by the interval of what was lost (`edge.drift.drop_interval`): a row fails
when the whole interval lies beyond what its tolerance allows, passes when all of it lies within, and is inconclusive otherwise.
What is no sample is held against its limit. Nothing is skipped without a reason that stands in the row; what is missing or
not finite fails. The build's own verdict counts whatever the baseline says. Why the tolerances are what they are:
`edge.gate.gate_tolerances`. A build judged on an even subset of the baseline's images (`ufovit build --eval-images`) is
compared on these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from calib.errors import InputError
from edge.drift.recompute_check import EQUAL
from edge.gate.baseline import REMAKE, Baseline, Identity, LatencyRatio, read_baseline, unpack_answers
from edge.gate.build_figures import Build, read_build
from edge.gate.checks import Row, Rows
from edge.gate.gate_tolerances import QUANTITIES
from edge.images.labelled_images import ImageSet
from edge.tasks.classification.logit_metrics import Int64
from edge.tasks.classification.logits import answers

GateVerdict = Literal["pass", "fail", "inconclusive", "refused"]
EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, "refused": 2}
_WORDS = {
    "model": "another model",
    "precision": "another precision",
    "target": "another target",
    "random_weights": "drawn weights against trained ones",
    "checkpoint_sha256": "another checkpoint",
    "labels_sha256": "other labels",
    "classes": "another number of classes",
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


def gate(folder: Path, baseline_path: Path, latency: LatencyRatio | None = None) -> GateReport:
    """Compare a build folder with a baseline. Raises InputError for what cannot be compared."""
    baseline = read_baseline(baseline_path, QUANTITIES)
    return compare_builds(read_build(folder), baseline, baseline_path, latency)


def compare_builds(build: Build, baseline: Baseline, path: Path, latency: LatencyRatio | None = None) -> GateReport:
    """Compare a build with a baseline read from `path`. Raises InputError when they are not builds of the same."""
    chosen = shared_images(build.identity, baseline.identity, path)
    _check_labels(build, baseline, path)
    rows = tuple(_rows(build, baseline, chosen, latency))
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
    pairs = {f.name: (getattr(build, f.name), getattr(baseline, f.name)) for f in fields(Identity) if f.name in _WORDS}
    different = [name for name, (found, allowed) in pairs.items() if found != allowed]
    if different:
        found, allowed = pairs[different[0]]
        raise InputError(
            f"the baseline is not of this build: {', '.join(_WORDS[name] for name in different)}",
            where=f"{path}, {different[0]}",
            found=found,
            allowed=allowed,
            next_command=remake,
        )
    everything = np.arange(baseline.images)
    whole = ImageSet("", ("",) * baseline.images, everything, baseline.data_sha256, lambda _i: np.zeros((1, 1, 1), np.uint8))
    taken = whole.take(build.images)
    if taken.sha256 != build.data_sha256 or len(taken) != build.images:
        raise InputError(
            "the baseline is not of this build: other data",
            where=f"{path}, data_sha256",
            found=f"{build.data_sha256}, {build.images} images",
            allowed=f"{baseline.data_sha256}, {baseline.images} images, or an even subset of them (--eval-images)",
            next_command=remake,
        )
    return taken.labels


def _check_labels(build: Build, baseline: Baseline, path: Path) -> None:
    """Raise InputError unless the baseline's answers are right as often, by the build's labels, as the baseline says.

    That the images' digest is the same should be enough; this is what shows that labels were changed behind it.
    """
    before, images = baseline.measured, baseline.identity.images
    if build.labels is None or before.top1 is None or build.identity.images != images:
        return
    found = float((unpack_answers(before.engine_answers, baseline.identity.classes, images) == build.labels).mean())
    if not math.isclose(found, before.top1, abs_tol=EQUAL):
        raise InputError(
            "the baseline is not of this build: the images are labelled otherwise",
            where=f"{path}, top1",
            found=f"{found:.4f} with this build's labels",
            allowed=f"{before.top1:.4f}",
            next_command=REMAKE.format(path),
        )


def _rows(build: Build, baseline: Baseline, chosen: Int64, latency: LatencyRatio | None) -> Iterator[Row]:
    before, now = baseline.measured, build.measured
    classes, images = baseline.identity.classes, baseline.identity.images
    reference_before = unpack_answers(before.reference_answers, classes, images)[chosen]
    engine_before = unpack_answers(before.engine_answers, classes, images)[chosen]
    reference, engine = answers(build.reference), answers(build.engine)
    rows = Rows(baseline, len(chosen))
    yield rows.own_verdict(build.drift)
    yield rows.reference(reference_before, reference)
    if build.labels is None or before.top1 is None:
        yield rows.unlabelled(build.labels is not None, before.top1 is not None)
    elif build.identity.random_weights:
        yield rows.skipped("accuracy", "drawn weights have no accuracy to lose")
    else:
        yield rows.paired("accuracy", engine_before == build.labels, _right(engine, build.labels), now.top1)
    yield rows.paired("agreement", engine_before == reference_before, _right(engine, reference), now.agreement)
    yield rows.sqnr(now.sqnr_db, build.reference, build.engine)
    yield from rows.scales(before.scales, now.scales)
    yield from rows.xnorm(before.xnorm, now.xnorm)
    yield rows.share(now.share, build.fallbacks)
    yield rows.size(now.engine_bytes)
    yield rows.latency(latency)


def _right(found: Int64, wanted: Int64) -> npt.NDArray[np.bool_]:
    right: npt.NDArray[np.bool_] = (found == wanted) & (found >= 0)
    return right


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
