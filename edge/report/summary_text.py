"""The sentences and figures of a report, taken from the artifacts and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.files import sha256_file
from edge.drift.compare import DriftReport, Labelled
from edge.numeric_tolerances import SQNR_CAP_DB
from edge.report.inputs import Evidence
from engines.build_folder.file_names import ATTRIBUTION, DRIFT, EXPORT, FLIPS, GOLDEN, LOGITS
from engines.build_folder.manifest import EngineManifest


@dataclass(frozen=True)
class Value:
    """One number: its key in the artifact, the exact value, and the text a person reads."""

    key: str
    raw: Any
    text: str


@dataclass(frozen=True)
class Figure:
    """A key figure: one or more values under one label, what they mean, and what stands between them."""

    label: str
    values: tuple[Value, ...]
    meaning: str
    between: str = " → "


@dataclass(frozen=True)
class FileRow:
    """One line of provenance."""

    role: str
    name: str
    sha256: str
    note: str


def headline(manifest: EngineManifest, drift: DriftReport) -> str:
    """What the verdict means, in one plain sentence, of what was judged: the engine, or the graph it was built from."""
    engine = f"{manifest.precision.upper()} {'engine' if drift.engine.sha256 == manifest.engine.sha256 else 'graph'}"
    if drift.not_finite:
        return f"The {engine} gives outputs that are no numbers."
    if drift.judged_by == "numbers":
        return {
            "pass": f"The {engine} computes nearly the same numbers as the FP32 network; accuracy could not be judged.",
            "fail": f"The {engine} does not compute what the FP32 network computes.",
            "inconclusive": f"Nothing can be said of the {engine}.",
        }[drift.verdict]
    if drift.judged_by == "agreement":
        return {
            "pass": f"The {engine} changes so few answers that it keeps within the budget, whatever the right ones are.",
            "fail": f"The {engine} changes more answers than the accuracy budget allows.",
            "inconclusive": f"These images are too few to say whether the {engine} changes more answers than allowed.",
        }[drift.verdict]
    return {
        "pass": f"The {engine} answers as well as the FP32 model, within the accuracy budget.",
        "fail": f"The {engine} loses more accuracy than the budget allows.",
        "inconclusive": f"These images are too few to say whether the {engine} keeps within the accuracy budget.",
    }[drift.verdict]


def advice(drift: DriftReport) -> str:
    """What to do next, empty after a pass."""
    blind = drift.judged_by == "agreement"
    if blind and drift.verdict == "fail" and not drift.not_finite:
        return (
            "Do not deploy this engine on this evidence. Without labels every changed answer counts as a loss, though some may "
            "be gains: judge it on labelled images (--data). See below which layers and ranges stand out."
        )
    if blind and drift.verdict == "inconclusive":
        return (
            "Judge it on labelled images (--data), on more images, or allow a larger drop (--max-drop) if that is acceptable."
        )
    return {
        "pass": "",
        "fail": "Do not deploy this engine. See below which classes, layers and ranges stand out; compare with FP16.",
        "inconclusive": "Judge it on more labelled images (--data), or allow a larger drop (--max-drop) if that is acceptable.",
    }[drift.verdict]


def key_figures(evidence: Evidence) -> tuple[Figure, ...]:
    """The figures at the top of the report; drawn weights have none of accuracy, whatever chance gave."""
    drift, labelled = evidence.drift, evidence.drift.labelled
    accuracy: tuple[Figure, ...] = ()
    if drift.judged_by == "accuracy" and labelled is not None:
        accuracy = _accuracy_figures(labelled, drift.budget_points)
    elif drift.judged_by == "agreement":
        accuracy = _change_figures(drift)
    return accuracy + _number_figures(evidence.drift) + _engine_figures(evidence.manifest)


def _accuracy_figures(labelled: Labelled, budget_points: float) -> tuple[Figure, ...]:
    interval, flips = labelled.interval, labelled.flips
    return (
        Figure(
            "Top-1 accuracy, before and after",
            (_share("top1_reference", labelled.top1_reference), _share("top1_engine", labelled.top1_engine)),
            "share of images answered rightly by the FP32 model and by what was judged",
        ),
        Figure(
            "Drop",
            (_points("drop_points", labelled.drop_points),),
            "percentage points lost; negative means better answers than before",
        ),
        Figure(
            f"{interval.level:.0%} interval of the drop",
            (
                Value("interval.low_points", interval.low_points, f"{interval.low_points:+.2f}"),
                _points("interval.high_points", interval.high_points),
            ),
            "where the true drop lies, given this many images",
            " to ",
        ),
        _budget(budget_points),
        Figure(
            "Answers that flipped",
            (
                Value("flips.right_to_wrong", flips.right_to_wrong, f"{flips.right_to_wrong:,} to wrong"),
                Value("flips.wrong_to_right", flips.wrong_to_right, f"{flips.wrong_to_right:,} to right"),
            ),
            "images whose answer turned wrong, and turned right",
            ", ",
        ),
    )


def _change_figures(drift: DriftReport) -> tuple[Figure, ...]:
    """Of images without labels."""
    interval = drift.changed_interval
    return (
        Figure(
            f"{interval.level:.0%} interval of the changed answers",
            (
                Value("changed_interval.low_points", interval.low_points, f"{interval.low_points:.2f}"),
                Value("changed_interval.high_points", interval.high_points, f"{interval.high_points:.2f} points"),
            ),
            "where the true share of changed answers lies; no more accuracy than that can be lost",
            " to ",
        ),
        _budget(drift.budget_points),
    )


def _budget(points: float) -> Figure:
    return Figure("Budget", (Value("budget_points", points, f"{points:g} points"),), "largest drop allowed")


def _number_figures(drift: DriftReport) -> tuple[Figure, ...]:
    return (
        Figure("Agreement", (_share("agreement", drift.agreement),), "share of images with the same answer before and after"),
        Figure(
            "SQNR of the logits",
            (Value("sqnr_db", drift.sqnr_db, "identical" if drift.sqnr_db >= SQNR_CAP_DB else f"{drift.sqnr_db:.1f} dB"),),
            "signal to quantization noise; 6 dB more halve the error",
        ),
        Figure(
            "Smallest cosine",
            (Value("cosine_min", drift.cosine_min, f"{drift.cosine_min:.4f}"),),
            "the image whose logits turned most; 1 is the same direction",
        ),
        Figure("Images", (Value("images", drift.images, f"{drift.images:,}"),), _labelled_from(drift)),
        Figure(
            "Outputs with NaN or Inf",
            (Value("not_finite", drift.not_finite, f"{drift.not_finite:,}"),),
            "images that got no number for an answer; any is a failure",
        ),
    )


def _labelled_from(drift: DriftReport) -> str:
    return f"{'without labels' if drift.labelled is None else 'labelled'}, from {PurePath(drift.data).name}"


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


def near_ties(margin: npt.NDArray[np.float64], changed: npt.NDArray[np.bool_]) -> int:
    """How many changed answers are among the tenth of images of which the reference was least sure."""
    return int((changed & (margin <= np.quantile(margin, 0.1))).sum())


def provenance(evidence: Evidence) -> tuple[FileRow, ...]:
    """Every file and data set behind the verdict; the digests of files in the folder were recomputed by `gather`."""
    manifest, drift, folder = evidence.manifest, evidence.drift, evidence.folder
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
    made = [(EXPORT, "parity with torch"), (DRIFT, "comparison and verdict"), (LOGITS, "both sides' answers")]
    if (folder / GOLDEN).is_file():
        made.append((GOLDEN, "an image, and what the network was fed for it"))
    if evidence.flips is not None:
        made.append((FLIPS, "pictures of images whose answer flipped"))
    if evidence.attribution is not None:
        made.append((ATTRIBUTION, f"layer by layer, on {evidence.attribution.images:,} images"))
    rows += [FileRow("record", file, sha256_file(folder / file), note) for file, note in made]
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


def _points(key: str, value: float) -> Value:
    return Value(key, value, f"{value:+.2f} points")
