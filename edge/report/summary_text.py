"""Sentences and figures of a report that every task has, taken from the artifacts alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from edge.drift.drift_report import DriftReport
from edge.report.inputs import Evidence
from edge.tasks.report_parts import Figure, Value
from engines.build_folder.file_names import ANSWERS, ATTRIBUTION, DRIFT, EXPORT, GOLDEN, PICTURES
from engines.build_folder.manifest import CalibrationRecord, EngineManifest, EngineRecord, FileRecord


@dataclass(frozen=True)
class FileRow:
    """One line of provenance."""

    role: str
    name: str
    sha256: str
    note: str


def judged(manifest: EngineManifest, drift: DriftReport) -> str:
    """What was judged: the engine, or the graph that it was built from."""
    return f"{manifest.precision.upper()} {'engine' if drift.engine.sha256 == manifest.engine.sha256 else 'graph'}"


def common_figures(evidence: Evidence, truth: str) -> tuple[Figure, ...]:
    """The key figures that every task has; `truth` says whether the images have right answers."""
    manifest, drift = evidence.manifest, evidence.drift
    engine, receipt, precision = manifest.engine, manifest.receipt, manifest.precision
    not_finite: int = drift.comparison.not_finite
    key, share = f"receipt.actual.{precision}", receipt.actual.get(precision, 0.0)
    if precision == "int8":
        key, share = "receipt.int8_mac_fraction", receipt.int8_mac_fraction
    return (
        Figure("Images", (Value("images", drift.images, f"{drift.images:,}"),), f"{truth}, from {PurePath(drift.data).name}"),
        Figure(
            "Outputs with NaN or Inf",
            (Value("not_finite", not_finite, f"{not_finite:,}"),),
            "images whose outputs are not finite; any is a failure",
        ),
        Figure(
            "Engine size",
            (Value("engine.bytes", engine.bytes, f"{engine.bytes / 1e6:.1f} MB"),),
            f"{engine.bytes:,} bytes, {engine.file}",
        ),
        Figure(
            f"Work done in {precision.upper()}",
            (Value(key, share, f"{share:.2%}"),),
            "share of the multiply-accumulates, read from the engine itself",
        ),
    )


def provenance(evidence: Evidence) -> tuple[FileRow, ...]:
    """Every file and data set that led to the verdict; `gather` has recomputed the digests of files in the folder."""
    manifest, drift, build = evidence.manifest, evidence.drift, evidence.build
    certificate, table, attribution = evidence.certificate, evidence.table, evidence.attribution
    rows: list[FileRow] = []

    def add(role: str, file: FileRecord | EngineRecord | CalibrationRecord | None, note: str) -> None:
        if file is not None:
            rows.append(FileRow(role, file.file, file.sha256, note))

    def add_images(role: str, images: int, sha256: str) -> None:
        rows.append(FileRow(role, f"{images:,} images", sha256, "with their preprocessing"))

    add("checkpoint", manifest.checkpoint, "the trained weights")
    add("FP32 graph", manifest.onnx, f"opset {evidence.export.opset}")
    if certificate is not None:
        add_images("certification images", certificate.images, certificate.data_sha256)
        add("XNorm certificate", manifest.xnorm, f"{len(certificate.sites)} XNorms")
    add("folded graph", manifest.folded_onnx, "FP32, powers of two folded")
    methods = ", ".join(table.refinements) if table is not None else ""
    add("refined graph", manifest.refined_onnx, f"float; refined for INT8: {methods or 'unchanged'}")
    if manifest.calibration is not None and table is not None:
        add_images("calibration images", manifest.calibration.images, manifest.calibration.data_sha256)
        add("calibration table", manifest.calibration, f"method {table.method}")
    add("quantized graph", manifest.qdq_onnx, "with Q/DQ")
    add("strongly typed graph", manifest.typed_onnx, "FP16 and FP32")
    add("engine", manifest.engine, f"{manifest.engine.backend} {manifest.engine.backend_version}")
    rows.append(FileRow("judging images", drift.data, drift.data_sha256, f"{drift.images:,} images"))
    records = {EXPORT: "parity with torch", DRIFT: "comparison and verdict", ANSWERS: "both sides' answers"}
    if build.has(GOLDEN):
        records[GOLDEN] = "an image, and the input of the network for it"
    if evidence.pictures is not None:
        records[PICTURES] = "pictures of images whose answer flipped"
    if attribution is not None:
        records[ATTRIBUTION] = f"layer by layer, on {attribution.images:,} images"
    return (*rows, *(FileRow("record", file, build.sha256(file), note) for file, note in records.items()))


def build_facts(evidence: Evidence) -> dict[str, str]:
    """Facts about the build, as rows of text."""
    manifest, engine = evidence.manifest, evidence.manifest.engine
    capabilities = ", ".join(engine.compute_capabilities)
    return {
        "model": manifest.model,
        "precision": manifest.precision,
        "target": manifest.target + (f", GPUs of compute capability {capabilities}" if capabilities else ""),
        "built by": f"{engine.backend} {engine.backend_version}",
        "input": f"{manifest.input.name}: {manifest.input.dtype} {list(manifest.input.shape)}",
        "output": f"{manifest.output.name}: {manifest.output.dtype} {list(manifest.output.shape)}",
        "created": manifest.created,
    }


def plain(value: Any) -> str:
    """Format a JSON value for people."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
