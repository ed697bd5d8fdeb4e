"""Everything a report stands on: read from one build folder, and refused unless the files belong together."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib.artifact import read_artifact
from calib.errors import InputError
from calib.table import CalibrationTable, load_table
from edge.artifacts import DRIFT, EXPORT, LOGITS, XNORM
from edge.drift.compare import DriftReport, compare
from edge.export_record import ExportRecord
from edge.xnorm.certificate import XNormCertificate
from engines.manifest import EngineManifest, verify

REMAKE = "ufovit build"


@dataclass(frozen=True)
class Logits:
    """What both sides answered: `reference`, `engine` float32 (n, classes); `labels` int64 (n,)."""

    reference: npt.NDArray[np.float32]
    engine: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """The artifacts of one build.

    Attributes:
        folder: the build folder.
        manifest, drift, export, logits: as read.
        table: the calibration table, None unless the precision is "int8".
        order: quantized activation tensors in network order, empty without a table.
        certificate: of every XNorm, None where the build made none.
    """

    folder: Path
    manifest: EngineManifest
    drift: DriftReport
    export: ExportRecord
    logits: Logits
    table: CalibrationTable | None
    order: tuple[str, ...]
    certificate: XNormCertificate | None = None


def gather(folder: Path) -> Evidence:
    """Read and cross-check a build folder; every recorded digest is recomputed. Raises InputError."""
    manifest = verify(folder)
    drift = read_artifact(folder / DRIFT, DriftReport, remake=REMAKE)
    export = read_export(folder / EXPORT)
    logits = read_logits(folder / LOGITS)
    table = load_table(folder / manifest.calibration.file) if manifest.calibration else None
    certificate = read_artifact(folder / manifest.xnorm.file, XNormCertificate, remake=REMAKE) if manifest.xnorm else None
    _check_sources(folder, manifest, drift, export, table, certificate)
    _check_answers(folder, manifest, drift, logits)
    order = _network_order(folder, manifest, table) if table else ()
    return Evidence(folder, manifest, drift, export, logits, table, order, certificate)


def read_export(path: Path) -> ExportRecord:
    """Read `export.json`. Raises InputError."""
    return read_artifact(path, ExportRecord, remake=REMAKE)


def read_logits(path: Path) -> Logits:
    """Read `logits.npz`. Raises InputError."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:  # np.load leaks a bad file it opened
            logits = Logits(arrays["reference"], arrays["engine"], arrays["labels"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError("not a file of logits", where=path, found=error, next_command=REMAKE) from error
    n, shape = len(logits.labels), logits.reference.shape
    if logits.labels.shape != (n,) or len(shape) != 2 or shape[0] != n or logits.engine.shape != shape:
        raise InputError(
            "logits and labels do not match",
            where=path,
            found=f"{shape}, {logits.engine.shape}, {logits.labels.shape}",
            next_command=REMAKE,
        )
    return logits


def _check_sources(
    folder: Path,
    manifest: EngineManifest,
    drift: DriftReport,
    export: ExportRecord,
    table: CalibrationTable | None,
    certificate: XNormCertificate | None,
) -> None:
    """Raise InputError when an artifact speaks of another file than the manifest does."""
    records = (manifest.engine, manifest.typed_onnx, manifest.qdq_onnx, manifest.onnx)
    judged = {record.sha256 for record in records if record is not None}
    pairs = [
        (EXPORT, "onnx_sha256", export.onnx_sha256, {manifest.onnx.sha256}),
        (DRIFT, "reference.sha256", drift.reference.sha256, {manifest.onnx.sha256}),
        (DRIFT, "engine.sha256", drift.engine.sha256, judged),
        (DRIFT, "preprocess_sha256", drift.preprocess_sha256, {str(manifest.preprocess.get("sha256", ""))}),
    ]
    if table is not None:
        calibrated = manifest.refined_onnx or manifest.folded_onnx or manifest.onnx
        pairs.append(("calibration.json", "onnx_sha256", table.onnx_sha256, {calibrated.sha256}))
    if certificate is not None and manifest.folded_onnx is not None:
        pairs.append((XNORM, "onnx_sha256", certificate.onnx_sha256, {manifest.onnx.sha256}))
        pairs.append((XNORM, "folded_onnx_sha256", str(certificate.folded_onnx_sha256), {manifest.folded_onnx.sha256}))
    for file, name, found, allowed in pairs:
        if found not in allowed:
            raise InputError(
                "artifacts of different builds in one folder",
                where=f"{folder / file}, {name}",
                found=found,
                allowed=" or ".join(sorted(allowed)),
                next_command=REMAKE,
            )


def _check_answers(folder: Path, manifest: EngineManifest, drift: DriftReport, logits: Logits) -> None:
    """Raise InputError when drift.json does not follow from the logits, or the classes have other names."""
    classes = len(manifest.labels)
    if logits.reference.shape != (drift.images, classes):
        raise InputError(
            "logits, drift and labels disagree on images or classes",
            where=folder / LOGITS,
            found=f"logits {logits.reference.shape}, {drift.images} images, {classes} labels",
            next_command=REMAKE,
        )
    if logits.labels.min() < 0 or logits.labels.max() >= classes:
        raise InputError("labels name no class", where=folder / LOGITS, allowed=f"0 to {classes - 1}", next_command=REMAKE)
    counted = compare(logits.reference, logits.engine, logits.labels)
    for name in ("confusion_reference", "confusion_engine", "flips", "not_finite"):
        if getattr(counted, name) != getattr(drift, name):
            raise InputError(
                "drift.json does not follow from the logits beside it",
                where=f"{folder / DRIFT}, {name}",
                next_command=REMAKE,
            )


def _network_order(folder: Path, manifest: EngineManifest, table: CalibrationTable) -> tuple[str, ...]:
    """The table's tensors in the order of the quantized graph; tensors that it leaves in float come last."""
    if manifest.qdq_onnx is None:
        return tuple(sorted(table.tensors))
    import onnx

    from calib.qdq import read_qdq

    quantized = read_qdq(onnx.load(folder / manifest.qdq_onnx.file))
    first = [name for name, info in quantized.items() if info.kind == "activation" and name in table.tensors]
    return (*first, *sorted(table.tensors.keys() - set(first)))
