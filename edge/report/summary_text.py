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
from engines.build_folder.manifest import EngineManifest


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
    rows = []
    if manifest.checkpoint is not None:
        rows.append(FileRow("checkpoint", manifest.checkpoint.file, manifest.checkpoint.sha256, "the trained weights"))
    rows.append(FileRow("FP32 graph", manifest.onnx.file, manifest.onnx.sha256, f"opset {evidence.export.opset}"))
    rows += _certified(evidence)
    if manifest.calibration is not None and evidence.table is not None:
        calibration = manifest.calibration
        images, method = f"{calibration.images:,} images", f"method {evidence.table.method}"
        rows += [
            FileRow("calibration images", images, calibration.data_sha256, "with their preprocessing"),
            FileRow("calibration table", calibration.file, calibration.sha256, method),
        ]
    if manifest.qdq_onnx is not None:
        rows.append(FileRow("quantized graph", manifest.qdq_onnx.file, manifest.qdq_onnx.sha256, "with Q/DQ"))
    if manifest.typed_onnx is not None:
        rows.append(FileRow("strongly typed graph", manifest.typed_onnx.file, manifest.typed_onnx.sha256, "FP16 and FP32"))
    engine = manifest.engine
    rows.append(FileRow("engine", engine.file, engine.sha256, f"{engine.backend} {engine.backend_version}"))
    rows.append(FileRow("judging images", drift.data, drift.data_sha256, f"{drift.images:,} images"))
    records = [(EXPORT, "parity with torch"), (DRIFT, "comparison and verdict"), (ANSWERS, "both sides' answers")]
    if build.has(GOLDEN):
        records.append((GOLDEN, "an image, and the input of the network for it"))
    if evidence.pictures is not None:
        records.append((PICTURES, "pictures of images whose answer flipped"))
    if evidence.attribution is not None:
        records.append((ATTRIBUTION, f"layer by layer, on {evidence.attribution.images:,} images"))
    rows += [FileRow("record", file, build.sha256(file), note) for file, note in records]
    return tuple(rows)


def _certified(evidence: Evidence) -> list[FileRow]:
    """The XNorm certificate, the images that it was measured on, and the graphs derived from it."""
    manifest, certificate, rows = evidence.manifest, evidence.certificate, []
    if manifest.xnorm is not None and certificate is not None:
        images = f"{certificate.images:,} images"
        rows += [
            FileRow("certification images", images, certificate.data_sha256, "with their preprocessing"),
            FileRow("XNorm certificate", manifest.xnorm.file, manifest.xnorm.sha256, f"{len(certificate.sites)} XNorms"),
        ]
    if manifest.folded_onnx is not None:
        folded = manifest.folded_onnx
        rows.append(FileRow("folded graph", folded.file, folded.sha256, "FP32, powers of two folded"))
    if manifest.refined_onnx is not None:
        refined, table = manifest.refined_onnx, evidence.table
        methods = ", ".join(table.refinements) if table is not None and table.refinements else "unchanged"
        rows.append(FileRow("refined graph", refined.file, refined.sha256, f"float; refined for INT8: {methods}"))
    return rows


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
