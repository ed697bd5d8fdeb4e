"""Everything a report stands on: read from one build folder, and refused unless the files belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calib.artifact import read_artifact
from calib.calibration_table import CalibrationTable, load_table
from calib.errors import InputError
from edge.attribution.attribution_record import Attribution, read_attribution
from edge.drift.drift_report import DriftReport
from edge.drift.pictures import KEPT, KeptPictures, read_pictures
from edge.drift.recompute_check import check_stated
from edge.model.export_record import ExportRecord
from edge.stability.certificate import XNormCertificate
from edge.tasks.registry import task_of
from edge.tasks.task import Sides, Task
from engines.build_folder.file_names import ANSWERS, ATTRIBUTION, DRIFT, EXPORT, PICTURES, XNORM
from engines.build_folder.manifest import EngineManifest, verify
from engines.build_folder.safe_files import read_contained

REMAKE = "ufovit build"


@dataclass(frozen=True)
class Evidence:
    """The artifacts of one build.

    Attributes:
        folder: the build folder.
        manifest, drift, export: as read.
        task: what the answers mean; `sides` are those of reference and engine.
        pictures: of images whose answer changed most, None where none were kept.
        table: the calibration table, None unless the precision is "int8".
        order: quantized activation tensors in network order, empty without a table.
        attribution: layer by layer, None where nobody asked for it.
        certificate: of every XNorm, None where the build made none.
    """

    folder: Path
    manifest: EngineManifest
    drift: DriftReport
    export: ExportRecord
    task: Task
    sides: Sides
    table: CalibrationTable | None
    order: tuple[str, ...]
    certificate: XNormCertificate | None = None
    pictures: KeptPictures | None = None
    attribution: Attribution | None = None


def gather(folder: Path) -> Evidence:
    """Read and cross-check a build folder; every recorded digest is recomputed. Raises InputError."""
    manifest = verify(folder)
    drift = read_artifact(folder / DRIFT, DriftReport, remake=REMAKE)
    export = read_export(folder / EXPORT)
    task = task_of(manifest)
    sides = task.parse_answers(read_contained(folder / ANSWERS), folder / ANSWERS)
    table = load_table(folder / manifest.calibration.file) if manifest.calibration else None
    certificate = read_artifact(folder / manifest.xnorm.file, XNormCertificate, remake=REMAKE) if manifest.xnorm else None
    attribution = read_attribution(folder / ATTRIBUTION) if (folder / ATTRIBUTION).is_file() else None
    _check_sources(folder, manifest, drift, export, table, certificate, attribution)
    check_stated(folder, task, drift, sides)
    pictures = read_pictures(folder / PICTURES) if (folder / PICTURES).is_file() else None
    if pictures is not None:
        _check_pictures(folder, drift, pictures, set(task.worst(sides).tolist()))
    order = _network_order(folder, manifest, table) if table else ()
    return Evidence(folder, manifest, drift, export, task, sides, table, order, certificate, pictures, attribution)


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


def _check_pictures(folder: Path, drift: DriftReport, pictures: KeptPictures, changed: set[int]) -> None:
    """Raise InputError unless the pictures are of images that `changed`, as many as are kept. Drawn weights keep none."""
    chosen = set(pictures.indices.tolist())
    expected = 0 if drift.random_weights else min(KEPT, len(changed))
    if not len(chosen) == len(pictures.indices) == expected or not chosen <= changed:
        raise InputError("the pictures are not those of the flips", where=folder / PICTURES, next_command=REMAKE)


def _network_order(folder: Path, manifest: EngineManifest, table: CalibrationTable) -> tuple[str, ...]:
    """The table's tensors in the order of the quantized graph; tensors that it leaves in float come last."""
    if manifest.qdq_onnx is None:
        return tuple(sorted(table.tensors))
    import onnx

    from calib.qdq_writer import read_qdq

    quantized = read_qdq(onnx.load(folder / manifest.qdq_onnx.file))
    first = [name for name, info in quantized.items() if info.kind == "activation" and name in table.tensors]
    return (*first, *sorted(table.tensors.keys() - set(first)))
