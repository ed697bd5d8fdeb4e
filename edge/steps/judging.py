"""Steps that judge and tell: drift, report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calib.artifact import read_artifact, write_artifact
from calib.files import atomic_path, sha256_file, write_bytes
from edge.artifacts import DRIFT, LOGITS, REPORT, TYPED
from edge.drift.compare import DriftReport, Source, compare, judge
from edge.progress import Advance
from edge.request import BuildInputs, BuildRequest
from edge.runtime.ort import BATCH


def drift(request: BuildRequest, inputs: BuildInputs, reference_path: Path, judged_path: Path, advance: Advance) -> None:
    """The built graph against the FP32 graph on the labelled images -> drift.json, logits.npz."""
    import onnx

    from edge.runtime.emulated import emulated_runner
    from edge.runtime.ort import OrtRunner

    images, info = inputs.eval_images, inputs.info
    emulated = judged_path.name == TYPED
    reference = OrtRunner(reference_path)
    judged = emulated_runner(onnx.load(judged_path), judged_path) if emulated else OrtRunner(judged_path)
    pairs = []
    for batch in images.batches(info.preprocess, BATCH):
        pairs.append((reference(batch), judged(batch)))
        advance(min(1.0, len(pairs) * BATCH / len(images)))
    logits = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    comparison = compare(logits[0], logits[1], images.labels)
    verdict, reason = judge(comparison, request.max_drop_points, random_weights=info.random_weights)
    report = DriftReport(
        reference=Source(reference_path.name, sha256_file(reference_path), "ONNX Runtime, CPU"),
        engine=Source(judged_path.name, sha256_file(judged_path), judged_on(request, emulated=emulated)),
        data=images.source,
        data_sha256=images.sha256,
        preprocess_sha256=info.preprocess.sha256,
        budget_points=request.max_drop_points,
        judged_by="numbers" if info.random_weights else "accuracy",
        random_weights=info.random_weights,
        verdict=verdict,
        reason=reason,
        **vars(comparison),
    )
    with atomic_path(request.out / LOGITS) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, reference=logits[0], engine=logits[1], labels=images.labels)
    write_artifact(request.out / DRIFT, report)


def judged_on(request: BuildRequest, *, emulated: bool) -> str:
    """What ran the side that is judged, said plainly where it is not the engine itself."""
    if request.engine_runs_here:
        return "ONNX Runtime, CPU: the engine itself"
    how = ", its FP16 roundings emulated" if emulated else ""
    return f"ONNX Runtime, CPU{how}: the graph that the engine was built from, not the engine itself"


def read_drift(path: Path) -> DriftReport:
    """Read `drift.json`. Raises InputError."""
    return read_artifact(path, DriftReport, remake="ufovit build")


def report(folder: Path, advance: Advance) -> None:
    """Everything in the folder -> report.html."""
    from edge.report import render

    write_bytes(folder / REPORT, render(folder, advance).encode())
