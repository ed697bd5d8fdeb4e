"""Check the digests and settings that the JSON artifacts of a build state of other files. Standard library only."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calib.errors import ArtifactError, InputError
from calib.json_reader import parse_json, read_json
from engines.build_folder.file_names import (
    ATTRIBUTION,
    CALIBRATION,
    CERTIFICATE,
    DRIFT,
    EXPORT,
    FOLDED,
    FP16_PLAN,
    IMPORT,
    MEASURED_SPEED,
    MODEL,
    REFINED,
    SPEED,
    XNORM,
)
from engines.build_folder.manifest import EngineManifest
from engines.build_folder.safe_files import REMAKE

_STATED = (
    (EXPORT, "onnx_sha256", MODEL),
    (IMPORT, "onnx_sha256", MODEL),
    (CERTIFICATE, "onnx_sha256", MODEL),
    (CERTIFICATE, "repaired_onnx_sha256", FOLDED),
    (XNORM, "onnx_sha256", MODEL),
    (XNORM, "folded_onnx_sha256", FOLDED),
    (CALIBRATION, "onnx_sha256", REFINED),
)
"""Artifact, field, the file whose digest it states, before there is a manifest."""


def _references(manifest: EngineManifest) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """(artifact, field, values that fit the manifest) of all fields that refer to other files; nested fields are dotted."""
    source, preprocess = manifest.onnx.sha256, manifest.preprocess.get("sha256", "")
    folded = manifest.folded_onnx or manifest.onnx
    judged = (manifest.engine, manifest.typed_onnx, manifest.qdq_onnx, manifest.onnx)
    yield EXPORT, "onnx_sha256", (source,)
    yield IMPORT, "onnx_sha256", (source,)
    repaired = (folded.sha256, *(() if manifest.folded_onnx else (None,)))
    yield CERTIFICATE, "onnx_sha256", (source,)
    yield CERTIFICATE, "repaired_onnx_sha256", repaired
    if manifest.xnorm is not None:
        yield manifest.xnorm.file, "onnx_sha256", (source,)
        yield manifest.xnorm.file, "folded_onnx_sha256", repaired
    if manifest.calibration is not None:
        table = manifest.calibration
        yield table.file, "onnx_sha256", ((manifest.refined_onnx or folded).sha256,)
        yield table.file, "source_sha256", ("", folded.sha256)
        yield table.file, "data_sha256", (table.data_sha256,)
        yield table.file, "images", (table.images,)
        yield table.file, "preprocess_sha256", ("", preprocess)
    yield DRIFT, "reference.sha256", (source,)
    for file, field in ((DRIFT, "engine.sha256"), (ATTRIBUTION, "judged.sha256")):
        yield file, field, tuple(record.sha256 for record in judged if record is not None)
    yield ATTRIBUTION, "reference.sha256", (source,)
    yield FP16_PLAN, "onnx_sha256", (folded.sha256,)
    for file in (SPEED, MEASURED_SPEED):
        yield file, "engine_sha256", (manifest.engine.sha256,)
    yield DRIFT, "preprocess_sha256", (preprocess,)
    yield DRIFT, "random_weights", (manifest.random_weights,)


def check_references(manifest: EngineManifest, path: Path, data: bytes) -> None:
    """Raise ArtifactError unless the references of the artifact at `path` that are present fit the manifest."""
    stated = [(field, allowed) for file, field, allowed in _references(manifest) if file == path.name]
    fields = parse_json(data, path, remake=REMAKE) if stated else {}
    for field, allowed in stated:
        value: Any = fields
        for key in field.split("."):
            value = value.get(key, allowed[0]) if isinstance(value, dict) else allowed[0]
        if value not in allowed:
            raise ArtifactError(
                "artifacts of different builds in one folder",
                where=f"{path}, {field}",
                found=value,
                allowed=" or ".join(str(fitting) for fitting in allowed if fitting not in ("", None)),
                next_command=REMAKE,
            )


def agree_with_record(folder: Path, files: tuple[str, ...], recorded: Mapping[str, str]) -> bool:
    """Whether what the artifacts among `files` state of other files is what is recorded of them (file -> SHA-256).

    A record can be made to fit its files, one by one, and then holds artifacts that speak of others.
    """
    try:
        stated = [(other, read_json(folder / file).get(field)) for file, field, other in _STATED if file in files]
    except InputError:
        return False
    return all(digest in (None, recorded.get(file, digest)) for file, digest in stated)  # a device has no graphs
