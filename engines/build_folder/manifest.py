"""manifest.json: the engine and every file that it was built from, with digests. Standard library only: a device reads it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from calib.artifact import json_artifact, write_artifact
from engines.build_folder.file_names import MANIFEST
from engines.build_folder.safe_files import REMAKE
from engines.build_spec import HardwareCompatibility
from engines.layer_records import TensorInfo as TensorInfo  # noqa: PLC0414  # the repeated name marks a re-export
from engines.precision_receipt import Receipt


@dataclass(frozen=True)
class FileRecord:
    """A file and its digest; `file` is relative to the manifest's folder."""

    file: str
    sha256: str


@dataclass(frozen=True)
class CalibrationRecord(FileRecord):
    """The calibration table, and the number and digest of its images."""

    images: int
    data_sha256: str


@dataclass(frozen=True)
class EngineRecord(FileRecord):
    """The engine file and how it was built.

    Attributes:
        backend: key of `engines.backends.BACKENDS`.
        backend_version: of its library; the engine loads in no other release unless it is `version_compatible`.
        compute_capabilities: GPUs that it runs on, "major.minor", empty for a CPU.
        version_compatible: it loads in later releases of the same major version too.
        hardware_compatibility: "ampere_plus" for every GPU of compute capability 8.0 or newer, "same_compute_capability" for
            every GPU of the recorded one, "none" where no compatibility was requested.
        timing_cache_sha256: of the cache that the builder measured or was given, None without one.
        device: name of the GPU that it was built on, "" where it was built without one.
    """

    bytes: int
    backend: str
    backend_version: str
    compute_capabilities: tuple[str, ...]
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    timing_cache_sha256: str | None = None
    device: str = ""


@dataclass(frozen=True)
class EngineManifest:
    """One engine, traceable to its checkpoint.

    Attributes:
        created: ISO 8601 time in UTC.
        checkpoint: None for random weights.
        certificate: that of the whole network, None for "fp32"; likewise `folded_onnx`, the FP32 graph after its repair.
        xnorm: the certificate of every XNorm, None where there is none.
        qdq_onnx: None unless the precision is "int8"; likewise `calibration`, and `refined_onnx`, the float graph that it
            quantizes.
        typed_onnx: the strongly typed graph, None where the backend built from one of the others.
        outputs: of the network, in its order; at least one.
        preprocess: preprocessing of an image, with its own sha256.
        task: the meaning of the outputs, a key of `edge.tasks.registry.TASKS`.
        labels: one name per class, in the order of the outputs; empty for a task without classes.
        batch: smallest, usual and largest batch size of the engine.
        int8_floor: share of the MACs that had to run in INT8, None for the target's own.
        bundle: the bundle that the engine was built from, which holds the graphs that this folder lacks; None elsewhere.
        random_weights: the weights are random, not trained: such an engine shows speed, never accuracy.
    """

    schema_version: ClassVar[int] = 3  # 2: with `task`; 3: `outputs`, several, in place of `output`

    model: str
    precision: str
    target: str
    task: str
    created: str
    checkpoint: FileRecord | None
    onnx: FileRecord
    qdq_onnx: FileRecord | None
    calibration: CalibrationRecord | None
    engine: EngineRecord
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    preprocess: dict[str, Any]
    labels: tuple[str, ...]
    receipt: Receipt
    certificate: FileRecord | None = None
    xnorm: FileRecord | None = None
    folded_onnx: FileRecord | None = None
    refined_onnx: FileRecord | None = None
    typed_onnx: FileRecord | None = None
    batch: tuple[int, int, int] = (1, 1, 1)
    int8_floor: float | None = None
    bundle: FileRecord | None = None
    random_weights: bool = False
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """MODEL of `ufovit build`, for messages: the name of the ONNX file, else of the model."""
        file = "" if self.checkpoint is None else self.checkpoint.file
        return file if file.lower().endswith(".onnx") else self.model


def write_manifest(folder: Path, manifest: EngineManifest) -> None:
    """Write manifest.json, atomically."""
    write_artifact(folder / MANIFEST, manifest)


MANIFEST_ARTIFACT = json_artifact(MANIFEST, EngineManifest, remake=REMAKE)


def recorded_files(manifest: EngineManifest) -> Iterator[tuple[str, str]]:
    """(file, sha256) of every file in the manifest, in the order of the flow, the engine last; some may be missing."""
    graphs = (manifest.folded_onnx, manifest.refined_onnx, manifest.calibration, manifest.qdq_onnx, manifest.typed_onnx)
    for record in (manifest.checkpoint, manifest.onnx, manifest.certificate, manifest.xnorm, *graphs, manifest.engine):
        if record is not None:
            yield record.file, record.sha256


def source_graph(manifest: EngineManifest) -> FileRecord:
    """The graph that the engine was built from, and that a device builds its own engine from."""
    return manifest.typed_onnx or manifest.onnx
