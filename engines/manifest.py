"""manifest.json: what an engine is, from what it was made, and whether the files still are what was recorded.

Stdlib only: a device reads manifests with numpy and TensorRT alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from calib.artifact import read_artifact, write_artifact
from calib.errors import InputError
from calib.files import sha256_bytes, sha256_file
from engines.receipt import Receipt

MANIFEST = "manifest.json"
REMAKE = "ufovit build"


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
    """The engine file and what made it; compute capabilities are "major.minor", empty for a CPU."""

    file: str
    sha256: str
    bytes: int
    backend: str
    backend_version: str
    compute_capabilities: tuple[str, ...]


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape (-1 for a symbolic batch) and numpy dtype name of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


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
        labels: one name per class, in the order of the logits.
        random_weights: true when the weights were drawn, not trained: such an engine shows speed, never accuracy.
        notes: sentences for a person.
    """

    model: str
    precision: str
    target: str
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
    random_weights: bool = False
    notes: tuple[str, ...] = field(default=())


def write_manifest(folder: Path, manifest: EngineManifest) -> None:
    """Write manifest.json, atomically."""
    write_artifact(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> EngineManifest:
    """The manifest of a build folder, unchecked against the files. Raises InputError when it is missing or malformed."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError("no manifest: the folder holds no finished build", where=path, next_command=REMAKE)
    return read_artifact(path, EngineManifest, remake=REMAKE)


def read_engine(folder: Path) -> tuple[EngineManifest, bytes]:
    """The manifest and the engine's bytes, hashed as read: what is deserialized is what was checked.

    An engine is an executable artifact, so its digest is compared before anything else sees it. Raises InputError.
    """
    manifest = read_manifest(folder)
    path = _inside(folder, manifest.engine.file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError("engine cannot be read", where=path, found=error.strerror, next_command=REMAKE) from error
    _compare(path, sha256_bytes(data), manifest.engine.sha256)
    return manifest, data


def verify(folder: Path, *, complete: bool = True) -> EngineManifest:
    """Check every recorded file against its digest and return the manifest.

    A checkpoint outside the folder is checked if it is still there. With `complete` false, only the engine must be present
    (a device gets no more); other files are checked where they are. Raises InputError naming the first file that differs.
    """
    manifest, _ = read_engine(folder)
    graphs = (manifest.onnx, manifest.folded_onnx, manifest.refined_onnx, manifest.qdq_onnx, manifest.typed_onnx)
    for record in (*graphs, manifest.xnorm, manifest.calibration):
        if record is not None:
            path = _inside(folder, record.file)
            if path.is_file():
                _compare(path, sha256_file(path), record.sha256)
            elif complete:
                raise InputError("a recorded file is missing", where=path, next_command=REMAKE)
    if manifest.checkpoint is not None:
        path = folder / manifest.checkpoint.file
        if path.is_file():
            _compare(path, sha256_file(path), manifest.checkpoint.sha256)
    return manifest


def _inside(folder: Path, name: str) -> Path:
    if not name or PurePath(name).name != name:
        raise InputError("manifest names a file outside its folder", where=folder / MANIFEST, found=name)
    return folder / name


def _compare(path: Path, found: str, recorded: str) -> None:
    if found != recorded:
        raise InputError(
            "file is not the one that was recorded",
            where=path,
            found=f"sha256 {found[:16]}...",
            allowed=f"sha256 {recorded[:16]}... of {MANIFEST}",
            next_command=REMAKE,
        )
