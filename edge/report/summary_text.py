"""The sentences and figures of a report that every task has, taken from the artifacts and nothing else."""

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
    """What was judged, in two words: the engine, or the graph it was built from."""
    return f"{manifest.precision.upper()} {'engine' if drift.engine.sha256 == manifest.engine.sha256 else 'graph'}"


def common_figures(evidence: Evidence, truth: str) -> tuple[Figure, ...]:
    """The key figures that every task has; `truth` says whether the images came with right answers."""
    drift = evidence.drift
    not_finite: int = drift.comparison.not_finite
    return (
        Figure("Images", (Value("images", drift.images, f"{drift.images:,}"),), f"{truth}, from {PurePath(drift.data).name}"),
        Figure(
            "Outputs with NaN or Inf",
            (Value("not_finite", not_finite, f"{not_finite:,}"),),
            "images that got no number for an answer; any is a failure",
        ),
        *_engine_figures(evidence.manifest),
    )


def _engine_figures(manifest: EngineManifest) -> tuple[Figure, ...]:
    engine = manifest.engine
    return (
        Figure(
            "Engine size",
            (Value("engine.bytes", engine.bytes, f"{engine.bytes / 1e6:.1f} MB"),),
            f"{engine.bytes:,} bytes, {engine.file}",
        ),
        _work(manifest),
    )


def provenance(evidence: Evidence) -> tuple[FileRow, ...]:
    """Every file and data set behind the verdict; the digests of files in the folder were recomputed by `gather`."""
    manifest, drift, build = evidence.manifest, evidence.drift, evidence.build
    rows = []
    if manifest.checkpoint is not None:
        rows.append(FileRow("checkpoint", manifest.checkpoint.file, manifest.checkpoint.sha256, "the trained weights"))
    rows.append(FileRow("FP32 graph", manifest.onnx.file, manifest.onnx.sha256, f"opset {evidence.export.opset}"))
    rows += _certified(evidence)
    if manifest.calibration is not None and evidence.table is not None:
        seen, method = f"{manifest.calibration.images:,} images", evidence.table.method
        rows += [
            FileRow("calibration images", seen, manifest.calibration.data_sha256, "with their preprocessing"),
            FileRow("calibration table", manifest.calibration.file, manifest.calibration.sha256, f"method {method}"),
        ]
    if manifest.qdq_onnx is not None:
        rows.append(FileRow("quantized graph", manifest.qdq_onnx.file, manifest.qdq_onnx.sha256, "with Q/DQ"))
    if manifest.typed_onnx is not None:
        rows.append(FileRow("strongly typed graph", manifest.typed_onnx.file, manifest.typed_onnx.sha256, "FP16 and FP32"))
    engine = manifest.engine
    rows.append(FileRow("engine", engine.file, engine.sha256, f"{engine.backend} {engine.backend_version}"))
    rows.append(FileRow("judging images", drift.data, drift.data_sha256, f"{drift.images:,} images"))
    made = [(EXPORT, "parity with torch"), (DRIFT, "comparison and verdict"), (ANSWERS, "both sides' answers")]
    if build.has(GOLDEN):
        made.append((GOLDEN, "an image, and what the network was fed for it"))
    if evidence.pictures is not None:
        made.append((PICTURES, "pictures of images whose answer flipped"))
    if evidence.attribution is not None:
        made.append((ATTRIBUTION, f"layer by layer, on {evidence.attribution.images:,} images"))
    rows += [FileRow("record", file, build.sha256(file), note) for file, note in made]
    return tuple(rows)


def _certified(evidence: Evidence) -> list[FileRow]:
    """The certificate of every XNorm, what it was measured on, and the graph that it left."""
    manifest, certificate, rows = evidence.manifest, evidence.certificate, []
    if manifest.xnorm is not None and certificate is not None:
        seen = f"{certificate.images:,} images"
        rows += [
            FileRow("certification images", seen, certificate.data_sha256, "with their preprocessing"),
            FileRow("XNorm certificate", manifest.xnorm.file, manifest.xnorm.sha256, f"{len(certificate.sites)} XNorms"),
        ]
    if manifest.folded_onnx is not None:
        rows.append(
            FileRow("folded graph", manifest.folded_onnx.file, manifest.folded_onnx.sha256, "FP32, powers of two folded")
        )
    if manifest.refined_onnx is not None:
        file, table = manifest.refined_onnx, evidence.table
        made = ", ".join(table.refinements) if table is not None and table.refinements else "as it was"
        rows.append(FileRow("refined graph", file.file, file.sha256, f"float; refined for INT8: {made}"))
    return rows


def build_facts(evidence: Evidence) -> dict[str, str]:
    """What was built for what, as rows of text."""
    manifest, engine = evidence.manifest, evidence.manifest.engine
    serves = ", ".join(engine.compute_capabilities)
    return {
        "model": manifest.model,
        "precision": manifest.precision,
        "target": manifest.target + (f", GPUs of compute capability {serves}" if serves else ""),
        "built by": f"{engine.backend} {engine.backend_version}",
        "input": f"{manifest.input.name}: {manifest.input.dtype} {list(manifest.input.shape)}",
        "output": f"{manifest.output.name}: {manifest.output.dtype} {list(manifest.output.shape)}",
        "created": manifest.created,
    }


def plain(value: Any) -> str:
    """A JSON value as a person reads it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _work(manifest: EngineManifest) -> Figure:
    """The share of the work done in the precision that was asked for."""
    receipt, asked = manifest.receipt, manifest.precision
    key, share = f"receipt.actual.{asked}", receipt.actual.get(asked, 0.0)
    if asked == "int8":
        key, share = "receipt.int8_mac_fraction", receipt.int8_mac_fraction
    return Figure(
        f"Work done in {asked.upper()}", (_share(key, share),), "share of the multiply-accumulates, read from the engine itself"
    )


def _share(key: str, value: float) -> Value:
    return Value(key, value, f"{value:.2%}")
