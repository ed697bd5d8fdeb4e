"""Everything a report stands on: read from one build folder, and refused unless the files belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.artifact import read_artifact
from calib.calibration_table import CalibrationTable, load_table
from calib.errors import InputError
from edge.attribution.attribution_record import Attribution, read_attribution
from edge.drift.compare import DriftReport
from edge.drift.recompute_check import check_stated
from edge.model.export_record import ExportRecord
from edge.stability.certificate import XNormCertificate
from edge.tasks.classification.flips import KEPT, FlippedImages, flipped, read_flips
from edge.tasks.classification.logits import Logits, read_logits
from engines.build_folder.file_names import ATTRIBUTION, DRIFT, EXPORT, FLIPS, LOGITS, XNORM
from engines.build_folder.manifest import EngineManifest, verify

REMAKE = "ufovit build"


@dataclass(frozen=True)
class Evidence:
    """The artifacts of one build.

    Attributes:
        folder: the build folder.
        manifest, drift, export, logits: as read.
        flips: pictures of images whose answer flipped, None where none were kept.
        table: the calibration table, None unless the precision is "int8".
        order: quantized activation tensors in network order, empty without a table.
        attribution: layer by layer, None where nobody asked for it.
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
    flips: FlippedImages | None = None
    attribution: Attribution | None = None


def gather(folder: Path) -> Evidence:
    """Read and cross-check a build folder; every recorded digest is recomputed. Raises InputError."""
    manifest = verify(folder)
    drift = read_artifact(folder / DRIFT, DriftReport, remake=REMAKE)
    export = read_export(folder / EXPORT)
    logits = read_logits(folder / LOGITS)
    table = load_table(folder / manifest.calibration.file) if manifest.calibration else None
    certificate = read_artifact(folder / manifest.xnorm.file, XNormCertificate, remake=REMAKE) if manifest.xnorm else None
    attribution = read_attribution(folder / ATTRIBUTION) if (folder / ATTRIBUTION).is_file() else None
    _check_sources(folder, manifest, drift, export, table, certificate, attribution)
    check_stated(folder, drift, logits, len(manifest.labels))
    flips = read_flips(folder / FLIPS) if (folder / FLIPS).is_file() else None
    if flips is not None:
        _check_flips(folder, drift, logits, flips)
    order = _network_order(folder, manifest, table) if table else ()
    return Evidence(folder, manifest, drift, export, logits, table, order, certificate, flips, attribution)


def read_export(path: Path) -> ExportRecord:
    """Read `export.json`. Raises InputError."""
    return read_artifact(path, ExportRecord, remake=REMAKE)


def _check_sources(
    folder: Path,
    manifest: EngineManifest,
    drift: DriftReport,
    export: ExportRecord,
    table: CalibrationTable | None,
    certificate: XNormCertificate | None,
    attribution: Attribution | None,
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
    if attribution is not None:
        pairs.append((ATTRIBUTION, "reference.sha256", attribution.reference.sha256, {manifest.onnx.sha256}))
        pairs.append((ATTRIBUTION, "judged.sha256", attribution.judged.sha256, judged))
    for file, name, found, allowed in pairs:
        if found not in allowed:
            raise InputError(
                "artifacts of different builds in one folder",
                where=f"{folder / file}, {name}",
                found=found,
                allowed=" or ".join(sorted(allowed)),
                next_command=REMAKE,
            )


def _check_flips(folder: Path, drift: DriftReport, logits: Logits, flips: FlippedImages) -> None:
    """Raise InputError unless the pictures are of images whose answer flipped, as many as are kept. Drawn weights keep none."""
    found = np.flatnonzero(flipped(logits.reference, logits.engine, logits.labels))
    chosen = set(flips.indices.tolist())
    expected = 0 if drift.random_weights else min(KEPT, len(found))
    if not len(chosen) == len(flips.indices) == expected or not chosen <= set(found.tolist()):
        raise InputError("the pictures are not those of the flips", where=folder / FLIPS, next_command=REMAKE)


def _network_order(folder: Path, manifest: EngineManifest, table: CalibrationTable) -> tuple[str, ...]:
    """The table's tensors in the order of the quantized graph; tensors that it leaves in float come last."""
    if manifest.qdq_onnx is None:
        return tuple(sorted(table.tensors))
    import onnx

    from calib.qdq_writer import read_qdq

    quantized = read_qdq(onnx.load(folder / manifest.qdq_onnx.file))
    first = [name for name, info in quantized.items() if info.kind == "activation" and name in table.tensors]
    return (*first, *sorted(table.tensors.keys() - set(first)))
