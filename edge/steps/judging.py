"""Steps that judge and tell: drift, report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.artifact import read_artifact, write_artifact
from calib.files import atomic_path, sha256_file, write_bytes
from edge.artifacts import DRIFT, LOGITS, REPORT, TYPED
from edge.drift.compare import DriftReport, Source, compare, judge
from edge.drift.measures import Floats, Int64
from edge.preprocess import Float32
from edge.progress import Advance
from edge.report.flips import Uint8, worst_flips, write_flips
from edge.request import BuildInputs, BuildRequest
from edge.runtime.ort import BATCH
from engines.artifacts import FLIPS
from engines.spec import BatchRange

THIS_GPU = "this machine's GPU"


@dataclass(frozen=True)
class Judged:
    """What is judged on what, besides the answers.

    Attributes:
        reference, engine: the two sides.
        data: where the images come from; `data_sha256` is a digest of them, labels included.
        preprocess_sha256: what they went through.
        budget_points: accuracy budget in percentage points.
        random_weights: whether the weights were drawn.
    """

    reference: Source
    engine: Source
    data: str
    data_sha256: str
    preprocess_sha256: str
    budget_points: float
    random_weights: bool


def drift(request: BuildRequest, inputs: BuildInputs, reference_path: Path, judged_path: Path, advance: Advance) -> None:
    """The built engine, or the graph that it was built from, against the FP32 graph on the labelled images."""
    from edge.runtime.ort import OrtRunner

    images, info = inputs.eval_images, inputs.info
    reference = OrtRunner(reference_path)
    pairs = []
    sizes = request.batch if judged_path.suffix == ".engine" else BatchRange(1, 1, BATCH)
    with _judged_runner(request, judged_path) as judged:
        for batch in images.batches(info.preprocess, batch_size(sizes)):
            pairs.append((reference(batch), answer(judged, batch, sizes.min)))
            advance(min(1.0, len(pairs) * batch_size(sizes) / len(images)))
    logits = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    about = Judged(
        reference=Source(reference_path.name, sha256_file(reference_path), "ONNX Runtime, CPU"),
        engine=Source(judged_path.name, sha256_file(judged_path), judged_on(request, emulated=judged_path.name == TYPED)),
        data=images.source,
        data_sha256=images.sha256,
        preprocess_sha256=info.preprocess.sha256,
        budget_points=request.max_drop_points,
        random_weights=info.random_weights,
    )
    conclude(request.out, about, logits[0], logits[1], images.labels, images.pixels)


def batch_size(batch: BatchRange) -> int:
    """Images per run of an engine with these batch sizes."""
    return max(batch.min, min(BATCH, batch.max))


def answer(runner: Callable[[Float32], Float32], images: Float32, smallest: int) -> Float32:
    """Logits (n, classes) of images (n, 3, S, S); copies of the last one fill the batch up to the engine's smallest."""
    missing = max(0, smallest - len(images))
    return runner(np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]))[: len(images)]


def conclude(
    out: Path, about: Judged, reference: Floats, engine: Floats, labels: Int64, pixels: Callable[[int], Uint8]
) -> DriftReport:
    """Compare logits (n, classes) of n images with labels (n,), judge, and write drift.json, logits.npz and flips.npz.

    `pixels` gives the image uint8 (H, W, C) of an index; few are asked for, and none of drawn weights.
    """
    comparison = compare(reference, engine, labels)
    judged_by, verdict, reason = judge(comparison, about.budget_points, random_weights=about.random_weights)
    report = DriftReport(
        **vars(about),
        judged_by=judged_by,
        verdict=verdict,
        reason=reason,
        **vars(comparison),
    )
    with atomic_path(out / LOGITS) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, reference=reference, engine=engine, labels=labels)
    shown = worst_flips(reference, engine, labels)[: 0 if about.random_weights else None]
    write_flips(out / FLIPS, shown, pixels)
    write_artifact(out / DRIFT, report)
    return report


def _judged_runner(request: BuildRequest, path: Path) -> AbstractContextManager[Callable[[Float32], Float32]]:
    """What answers for the build: the engine where this machine can run it, else its graph on the CPU."""
    if path.suffix == ".engine":
        from edge.runtime.engine import open_engine

        return open_engine(request.out)
    from edge.runtime.ort import OrtRunner

    if path.name != TYPED:
        return nullcontext(OrtRunner(path))
    import onnx

    from edge.runtime.emulated import emulated_runner

    return nullcontext(emulated_runner(onnx.load(path), path))


def judged_on(request: BuildRequest, *, emulated: bool) -> str:
    """What ran the side that is judged, said plainly where it is not the engine itself."""
    if request.engine_runs_here:
        return "ONNX Runtime, CPU: the engine itself" if request.target.backend == "ort" else f"{THIS_GPU}: the engine itself"
    how = ", its FP16 roundings emulated" if emulated else ""
    return f"ONNX Runtime, CPU{how}: the graph that the engine was built from, not the engine itself"


def read_drift(path: Path) -> DriftReport:
    """Read `drift.json`. Raises InputError."""
    return read_artifact(path, DriftReport, remake="ufovit build")


def report(folder: Path, advance: Advance) -> None:
    """Everything in the folder -> report.html."""
    from edge.report import render

    write_bytes(folder / REPORT, render(folder, advance).encode())
