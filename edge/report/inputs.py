"""Read the artifacts of one build folder that a report is made from, and refuse files that do not belong together."""

from dataclasses import dataclass
from pathlib import Path

from calib.artifact import Artifact
from calib.calibration_table import TABLE_ARTIFACT, CalibrationTable
from calib.errors import ArtifactError
from edge.attribution.attribution_record import ATTRIBUTION_ARTIFACT, Attribution
from edge.drift.drift_report import DRIFT_ARTIFACT, DriftReport
from edge.drift.pictures import KEPT, PICTURES_ARTIFACT, KeptPictures
from edge.drift.recompute_check import check_stated
from edge.model.export_record import EXPORT_ARTIFACT, ExportRecord
from edge.onnx_import.import_record import IMPORT_ARTIFACT, ImportRecord
from edge.stability.certificate import CERTIFICATE_ARTIFACT, XNormCertificate
from edge.stability.network_certificate import NETWORK_ARTIFACT, NetworkCertificate
from edge.tasks.registry import read_answers, task_of
from edge.tasks.task import Sides, Task
from engines.build_folder.file_names import PICTURES, QUANTIZED
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest
from engines.build_folder.safe_files import REMAKE
from engines.build_folder.verify import verify_recorded
from engines.speed_estimate import MEASURED_SPEED_ARTIFACT, SPEED_ARTIFACT, MeasuredSpeed, SpeedEstimate


@dataclass(frozen=True)
class ReportInputs:
    """The artifacts of one build; None where the build has none.

    Attributes:
        order: quantized activation tensors in network order, empty without a calibration table.
        network: the certificate of the whole network; `certificate` is that of its XNorms.
        pictures: of the images whose answer changed most.
        speed: estimated; `measured` replaces the estimate of the build's own target.
    """

    build: BuildFolder
    manifest: EngineManifest
    drift: DriftReport
    export: ExportRecord | None
    imported: ImportRecord | None
    task: Task
    sides: Sides
    table: CalibrationTable | None
    order: tuple[str, ...]
    certificate: XNormCertificate | None = None
    network: NetworkCertificate | None = None
    pictures: KeptPictures | None = None
    attribution: Attribution | None = None
    speed: SpeedEstimate | None = None
    measured: MeasuredSpeed | None = None


@dataclass(frozen=True)
class BuiltInputs:
    """What a report shows of the files that are there before a build is judged; the fields are those of `ReportInputs`."""

    export: ExportRecord | None
    imported: ImportRecord | None
    table: CalibrationTable | None
    order: tuple[str, ...]
    certificate: XNormCertificate | None
    network: NetworkCertificate | None


def read_built(build: BuildFolder) -> BuiltInputs:
    """Read them. Raises ArtifactError for one that is missing, malformed or altered."""
    manifest, imported = build.manifest, build.find(IMPORT_ARTIFACT)
    export = build.read(EXPORT_ARTIFACT) if imported is None else None
    table = build.read(TABLE_ARTIFACT) if manifest.calibration else None
    certificate = build.read(CERTIFICATE_ARTIFACT) if manifest.xnorm else None
    order, network = _network_order(build, table) if table else (), build.find(NETWORK_ARTIFACT)
    return BuiltInputs(export, imported, table, order, certificate, network)


def gather(build: BuildFolder) -> ReportInputs:
    """Read a build and check the recorded digests. Raises ArtifactError unless its files belong together."""
    built, manifest, drift = read_built(build), build.manifest, build.read(DRIFT_ARTIFACT)
    task = task_of(manifest)
    sides = read_answers(build, task)
    attribution, pictures = build.find(ATTRIBUTION_ARTIFACT), build.find(PICTURES_ARTIFACT)
    check_stated(build.path, task, drift, sides)
    if pictures is not None:
        _check_pictures(build.path, drift, pictures, set(task.worst(sides).tolist()))
    verify_recorded(build)
    return ReportInputs(
        build,
        manifest,
        drift,
        task=task,
        sides=sides,
        pictures=pictures,
        attribution=attribution,
        speed=build.find(SPEED_ARTIFACT),
        measured=build.find(MEASURED_SPEED_ARTIFACT),
        **vars(built),
    )


def _check_pictures(folder: Path, drift: DriftReport, pictures: KeptPictures, changed: set[int]) -> None:
    """Raise ArtifactError unless the pictures are of KEPT `changed` images or all of fewer; of none for random weights."""
    indices = set(pictures.indices.tolist())
    expected = 0 if drift.random_weights else min(KEPT, len(changed))
    if not len(indices) == len(pictures.indices) == expected or not indices <= changed:
        raise ArtifactError("the pictures are not those of the flips", where=folder / PICTURES, next_command=REMAKE)


def _network_order(build: BuildFolder, table: CalibrationTable) -> tuple[str, ...]:
    """The table's tensors in the order of the quantized graph; tensors that the graph keeps in float come last."""
    quantized = build.read(QUANTIZED_ACTIVATIONS) if build.manifest.qdq_onnx else ()
    first = [name for name in quantized if name in table.tensors]
    return (*first, *sorted(table.tensors.keys() - set(first)))


def _activations(data: bytes, path: Path) -> tuple[str, ...]:
    from calib.graph import parse_graph
    from calib.qdq_writer import read_qdq

    return tuple(name for name, info in read_qdq(parse_graph(data, path)).items() if info.kind == "activation")


QUANTIZED_ACTIVATIONS = Artifact(QUANTIZED, _activations)
"""The activation tensors that the quantized graph has a scale for, in its order."""
