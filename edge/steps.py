"""The work of each step of a build; `edge.pipeline` decides which of them run. Heavy libraries are imported when used."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calib.artifact import read_artifact, write_artifact
from calib.errors import InputError, VerdictError
from calib.files import atomic_path, sha256_bytes, sha256_file, write_bytes
from edge.artifacts import CALIBRATION, DRIFT, LOGITS, MODEL, QUANTIZED, REPORT, TYPED
from edge.drift.compare import DriftReport, Source, compare, judge
from edge.progress import Advance
from edge.request import BuildInputs, BuildRequest
from edge.tolerances import TYPED_FP16_SQNR_DB

if TYPE_CHECKING:
    from onnx import ModelProto

    from calib.scheme import QuantPlan
    from engines.build import BuiltEngine
    from engines.manifest import EngineManifest, EngineRecord

CHECK_IMAGES = 32
"""Images on which export and typing are checked."""
BATCH = 32
"""Images per run on the CPU."""


def export(request: BuildRequest, inputs: BuildInputs, model_path: Path, record_path: Path, advance: Advance) -> None:
    """Checkpoint -> ONNX, checked against torch."""
    from edge.export import export as export_onnx
    from edge.model.checkpoint import load_checkpoint, random_network

    info = inputs.info
    if info.random_weights and not info.file:
        network = random_network(info.config, request.seed)
    else:
        network, loaded = load_checkpoint(Path(info.file), model=info.config.name, image_size=info.config.image_size)
        if loaded.sha256 != info.sha256:  # the manifest would name a checkpoint that these weights do not come from
            raise InputError(
                "checkpoint changed during the build",
                where=info.file,
                next_command="run the same command again",
            )
    advance(0.1)
    (images,) = inputs.calib_images.take(CHECK_IMAGES).batches(info.preprocess, CHECK_IMAGES)
    write_artifact(record_path, export_onnx(network, model_path, images))


def calibrate(request: BuildRequest, inputs: BuildInputs, model_path: Path, table_path: Path, advance: Advance) -> None:
    """Calibration images -> calibration table."""
    import onnx

    from calib.collect import CollectConfig, collect
    from calib.table import save_table

    images, preprocess = inputs.calib_images, inputs.info.preprocess
    table = collect(
        model_path,
        images.batches(preprocess, BATCH),
        quantization_plan(request, onnx.load(model_path)),
        data_sha256=data_digest(images.sha256, preprocess.sha256),
        config=CollectConfig(method=request.method, threads=2),
        progress=lambda done: advance(done / len(images)),
    )
    save_table(table_path, table)


def quantization_plan(request: BuildRequest, model: ModelProto) -> QuantPlan:
    """What the request has quantized in a float graph. Raises InputError for a `keep_float` pattern that matches nothing."""
    from calib.scheme import QuantScheme, plan_quantization

    return plan_quantization(model, QuantScheme(exclude=request.keep_float))


def quantize(request: BuildRequest, model_path: Path, table_path: Path, quantized_path: Path, advance: Advance) -> None:
    """Float graph and table -> Q/DQ graph, linted. Raises VerdictError when a layer would not run in INT8."""
    import onnx

    from calib.lint import lint
    from calib.qdq import insert_qdq, serialize
    from calib.table import load_table

    model, table = onnx.load(model_path), load_table(table_path)
    quantized = insert_qdq(model, table, quantization_plan(request, model))
    advance(0.5)
    findings = [f for f in lint(quantized) if f.severity != "note"]
    if findings:
        raise VerdictError(
            "the quantized graph would not run in INT8",
            where=quantized_path,
            found="; ".join(f"{f.node}: {f.message}" for f in findings[:5]) + f" ({len(findings)} in all)",
        )
    write_bytes(quantized_path, serialize(quantized))


def type_fp16(inputs: BuildInputs, graph_path: Path, typed_path: Path, advance: Advance) -> None:
    """Graph -> strongly typed FP16 graph, every XNorm in an FP32 island; checked on images on the CPU."""
    import onnx

    from calib.metrics import sqnr_db
    from calib.qdq import serialize
    from edge.runtime.ort import OrtRunner
    from edge.xnorm.sites import find_sites, island
    from engines.typed import typed_graph

    model = onnx.load(graph_path)
    sites = find_sites(model, expected=inputs.info.config.xnorm_sites)
    typed = serialize(typed_graph(model, keep_fp32=island(sites)))
    advance(0.5)
    (images,) = inputs.calib_images.take(CHECK_IMAGES).batches(inputs.info.preprocess, CHECK_IMAGES)
    with atomic_path(typed_path) as temporary:
        temporary.write_bytes(typed)
        found = sqnr_db(OrtRunner(graph_path)(images), OrtRunner(temporary)(images))
        if not found >= TYPED_FP16_SQNR_DB:
            raise VerdictError(
                "the FP16 graph does not compute what the FP32 graph computes",
                where=graph_path,
                found=f"SQNR of the logits {found:.1f} dB",
                allowed=f"at least {TYPED_FP16_SQNR_DB:g} dB",
                next_command="ufovit build with precision fp32, and compare the layers' ranges in its report",
            )


def data_digest(images_sha256: str, preprocess_sha256: str) -> str:
    """One digest for images as the network sees them: their content and their preprocessing."""
    return sha256_bytes(f"{images_sha256} {preprocess_sha256}".encode())


def drift(request: BuildRequest, inputs: BuildInputs, reference_path: Path, judged_path: Path, advance: Advance) -> None:
    """The built graph against the FP32 graph on the labelled images -> drift.json, logits.npz."""
    from edge.runtime.ort import OrtRunner

    images, info = inputs.eval_images, inputs.info
    reference, judged = OrtRunner(reference_path), OrtRunner(judged_path)
    pairs = []
    for batch in images.batches(info.preprocess, BATCH):
        pairs.append((reference(batch), judged(batch)))
        advance(min(1.0, len(pairs) * BATCH / len(images)))
    logits = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    comparison = compare(logits[0], logits[1], images.labels)
    verdict, reason = judge(comparison, request.max_drop_points, random_weights=info.random_weights)
    report = DriftReport(
        reference=Source(reference_path.name, sha256_file(reference_path), "ONNX Runtime, CPU"),
        engine=Source(judged_path.name, sha256_file(judged_path), judged_on(request)),
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


def judged_on(request: BuildRequest) -> str:
    """What ran the side that is judged, said plainly where it is not the engine itself."""
    if request.engine_runs_here:
        return "ONNX Runtime, CPU: the engine itself"
    return "ONNX Runtime, CPU: the graph that the engine was built from, not the engine itself"


def read_drift(path: Path) -> DriftReport:
    """Read `drift.json`. Raises InputError."""
    return read_artifact(path, DriftReport, remake="ufovit build")


def engine(request: BuildRequest, inputs: BuildInputs, graph_path: Path, advance: Advance) -> None:
    """Graph -> engine and manifest. Raises VerdictError when the receipt is below its floor; then neither is written."""
    from engines.build import build
    from engines.manifest import EngineRecord, write_manifest
    from engines.spec import BuildSpec

    built = build(BuildSpec(graph_path, request.target, request.precision, request.batch, request.int8_floor), advance)
    write_bytes(request.out / request.engine_file, built.data)
    record = EngineRecord(
        file=request.engine_file,
        sha256=sha256_bytes(built.data),
        bytes=len(built.data),
        backend=built.backend,
        backend_version=built.version,
        compute_capabilities=built.compute_capabilities,
    )
    write_manifest(request.out, describe(request, inputs, graph_path, built, record))


def describe(
    request: BuildRequest, inputs: BuildInputs, graph_path: Path, built: BuiltEngine, record: EngineRecord
) -> EngineManifest:
    """The manifest of a built engine."""
    from engines.manifest import CalibrationRecord, EngineManifest, FileRecord

    def recorded(file: str) -> FileRecord:
        return FileRecord(file, sha256_file(request.out / file))

    info, table = inputs.info, inputs.calib_images
    int8 = request.precision == "int8"
    calibration = (
        CalibrationRecord(
            file=CALIBRATION,
            sha256=sha256_file(request.out / CALIBRATION),
            images=len(table),
            data_sha256=data_digest(table.sha256, info.preprocess.sha256),
        )
        if int8
        else None
    )
    notes = [judged_on(request)]
    if info.random_weights:
        notes.insert(0, "RANDOM WEIGHTS: this engine shows size and numbers, never accuracy")
    return EngineManifest(
        model=info.config.name,
        precision=request.precision,
        target=request.target.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        checkpoint=FileRecord(Path(info.file).name, info.sha256) if info.file else None,
        onnx=recorded(MODEL),
        qdq_onnx=recorded(QUANTIZED) if int8 else None,
        typed_onnx=recorded(graph_path.name) if graph_path.name == TYPED else None,
        calibration=calibration,
        engine=record,
        input=built.input,
        output=built.output,
        preprocess={**info.preprocess.as_json(), "sha256": info.preprocess.sha256},
        labels=info.labels,
        receipt=built.receipt,
        random_weights=info.random_weights,
        notes=tuple(notes),
    )


def report(folder: Path, advance: Advance) -> None:
    """Everything in the folder -> report.html."""
    from edge.report import render

    write_bytes(folder / REPORT, render(folder, advance).encode())
