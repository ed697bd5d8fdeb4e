"""manifest.json: what an engine is, from what it was made, and whether the files still are what was recorded.

Stdlib only: a device reads manifests with numpy and TensorRT alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from calib.artifact import write_artifact
from calib.errors import InputError
from calib.files import sha256_bytes
from engines.build_folder.file_names import MANIFEST as MANIFEST  # noqa: PLC0414  # said twice: a re-export
from engines.build_folder.safe_files import REMAKE, compare, inside, is_there, parse_artifact, read_contained, sha256_contained
from engines.build_spec import HardwareCompatibility
from engines.layer_records import TensorInfo as TensorInfo  # noqa: PLC0414  # said twice: a re-export
from engines.precision_receipt import Receipt


@dataclass(frozen=True)
class FileRecord:
    """A file and its digest; `file` is relative to the manifest's folder."""

    file: str
    sha256: str


@dataclass(frozen=True)
class CalibrationRecord:
    """The calibration table, how many images it saw, and a digest of them."""

    file: str
    sha256: str
    images: int
    data_sha256: str


@dataclass(frozen=True)
class EngineRecord:
    """The engine file and what made it.

    Attributes:
        file, sha256, bytes: of the engine.
        backend: key of `engines.backends.BACKENDS`.
        backend_version: of its library; the engine loads in no other release unless it is `version_compatible`.
        compute_capabilities: GPUs that it runs on, "major.minor", empty for a CPU.
        version_compatible: it loads in later releases of the same major version too.
        hardware_compatibility: "ampere_plus" for every GPU of compute capability 8.0 or newer, "same_compute_capability" for
            every GPU of the one recorded, "none" where nothing of the kind was asked for.
        timing_cache_sha256: of the cache that the builder measured or was given, None without one.
        device: name of the GPU that it was built on, "" where it was built without one.
    """

    file: str
    sha256: str
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
        checkpoint: None for weights drawn at random.
        xnorm: the certificate of every XNorm, None for "fp32"; likewise `folded_onnx`, the FP32 graph that it left.
        qdq_onnx: None unless the precision is "int8"; likewise `calibration`, and `refined_onnx`, the float graph that it
            quantizes.
        typed_onnx: the strongly typed graph that the backend took, None where it took one of the others.
        preprocess: what an image goes through, with its own sha256.
        task: what the outputs mean, a key of `edge.tasks.registry.TASKS`.
        labels: one name per class, in the order of the outputs; empty for a task without classes.
        batch: smallest, usual and largest batch size of the engine.
        int8_floor: share of the MACs that had to run in INT8, None for the target's own.
        bundle: the bundle that the engine was built from, which holds the graphs that this folder lacks; None elsewhere.
        random_weights: true when the weights were drawn, not trained: such an engine shows speed, never accuracy.
        notes: sentences for a person.
    """

    schema_version: ClassVar[int] = 2  # 2: with `task`

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
    output: TensorInfo
    preprocess: dict[str, Any]
    labels: tuple[str, ...]
    receipt: Receipt
    xnorm: FileRecord | None = None
    folded_onnx: FileRecord | None = None
    refined_onnx: FileRecord | None = None
    typed_onnx: FileRecord | None = None
    batch: tuple[int, int, int] = (1, 1, 1)
    int8_floor: float | None = None
    bundle: FileRecord | None = None
    random_weights: bool = False
    notes: tuple[str, ...] = field(default=())


def write_manifest(folder: Path, manifest: EngineManifest) -> None:
    """Write manifest.json, atomically."""
    write_artifact(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> EngineManifest:
    """The manifest of a build folder, unchecked against the files. Raises InputError when it is missing or malformed."""
    path = folder / MANIFEST
    if not is_there(path):
        raise no_manifest(path)
    return parse_manifest(read_contained(path), path)


def parse_manifest(data: bytes, path: Path) -> EngineManifest:
    """The manifest that bytes hold; `path` is what errors name. Raises InputError."""
    return parse_artifact(data, path, EngineManifest)


def no_manifest(path: Path) -> InputError:
    """The error for a manifest that is not there."""
    return InputError("no manifest: the folder holds no finished build", where=path, next_command=REMAKE)


def read_engine(folder: Path) -> tuple[EngineManifest, bytes]:
    """The manifest and the engine's bytes, hashed as read: what is deserialized is what was checked.

    An engine is an executable artifact, so its digest is compared before anything else sees it. Raises InputError.
    """
    manifest = read_manifest(folder)
    return manifest, engine_bytes(folder, manifest)


def engine_bytes(folder: Path, manifest: EngineManifest) -> bytes:
    """The engine of a manifest, hashed as read. Raises InputError."""
    return read_recorded(folder, manifest.engine)


def read_recorded(folder: Path, record: FileRecord | EngineRecord) -> bytes:
    """A file that the manifest of a folder records, hashed as read. Raises InputError for another one."""
    path = inside(folder, record.file, MANIFEST)
    data = read_contained(path)
    compare(path, sha256_bytes(data), record.sha256, MANIFEST)
    return data


def recorded_files(manifest: EngineManifest) -> Iterator[tuple[str, str]]:
    """(file, sha256) of everything in the folder that the manifest records, in the order of the flow, the engine last."""
    graphs = (manifest.folded_onnx, manifest.refined_onnx, manifest.calibration, manifest.qdq_onnx, manifest.typed_onnx)
    for record in (manifest.onnx, manifest.xnorm, *graphs, manifest.engine):
        if record is not None:
            yield record.file, record.sha256


def verify(folder: Path, *, complete: bool = True) -> EngineManifest:
    """Check every file that the manifest records against its digest, and return the manifest.

    `engines.build_folder.verify.verify_folder` checks the other artifacts too, the manifest among them. A checkpoint is checked
    if it is in the folder. With `complete` false, only the engine must be present (a device gets no more); other files are
    checked where they are. Raises InputError naming the first file that differs.
    """
    manifest, _ = read_engine(folder)
    for file, sha256 in recorded_files(manifest):
        path = inside(folder, file, MANIFEST)
        if complete or is_there(path):
            compare(path, sha256_contained(path), sha256, MANIFEST)
    if manifest.checkpoint is not None:
        path = inside(folder, manifest.checkpoint.file, MANIFEST)
        if is_there(path):
            compare(path, sha256_contained(path), manifest.checkpoint.sha256, MANIFEST)
    return manifest


def source_graph(manifest: EngineManifest) -> FileRecord:
    """The graph that the engine of a manifest was built from, and that a device builds its own from."""
    return manifest.typed_onnx or manifest.onnx
