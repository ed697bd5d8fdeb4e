"""Check the digests and settings that the JSON artifacts of a build state of other files. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib.errors import ArtifactError
from engines.build_folder.file_names import ATTRIBUTION, DRIFT, EXPORT
from engines.build_folder.manifest import EngineManifest
from engines.build_folder.safe_files import REMAKE


@dataclass(frozen=True)
class Reference:
    """A field of an artifact, dotted where it is nested, and the values that fit the manifest."""

    file: str
    field: str
    allowed: tuple[Any, ...]


def references(manifest: EngineManifest) -> Iterator[Reference]:
    """All fields of a build's artifacts that refer to other files, whether or not the artifacts exist."""
    source, preprocess = manifest.onnx.sha256, manifest.preprocess.get("sha256", "")
    folded = manifest.folded_onnx or manifest.onnx
    judged = (manifest.engine, manifest.typed_onnx, manifest.qdq_onnx, manifest.onnx)
    yield Reference(EXPORT, "onnx_sha256", (source,))
    if manifest.xnorm is not None:
        yield Reference(manifest.xnorm.file, "onnx_sha256", (source,))
        yield Reference(manifest.xnorm.file, "folded_onnx_sha256", (folded.sha256, *(() if manifest.folded_onnx else (None,))))
    if manifest.calibration is not None:
        table = manifest.calibration
        yield Reference(table.file, "onnx_sha256", ((manifest.refined_onnx or folded).sha256,))
        yield Reference(table.file, "source_sha256", ("", folded.sha256))
        yield Reference(table.file, "data_sha256", (table.data_sha256,))
        yield Reference(table.file, "images", (table.images,))
        yield Reference(table.file, "preprocess_sha256", ("", preprocess))
    yield Reference(DRIFT, "reference.sha256", (source,))
    for file, field in ((DRIFT, "engine.sha256"), (ATTRIBUTION, "judged.sha256")):
        yield Reference(file, field, tuple(record.sha256 for record in judged if record is not None))
    yield Reference(ATTRIBUTION, "reference.sha256", (source,))
    yield Reference(DRIFT, "preprocess_sha256", (preprocess,))
    yield Reference(DRIFT, "random_weights", (manifest.random_weights,))


def check_reference(reference: Reference, fields: dict[str, Any], path: Path) -> None:
    """Raise ArtifactError unless a field of the artifact at `path`, if present, has an allowed value."""
    value: Any = fields
    for key in reference.field.split("."):
        if not isinstance(value, dict) or key not in value:
            return
        value = value[key]
    if value not in reference.allowed:
        raise ArtifactError(
            "artifacts of different builds in one folder",
            where=f"{path}, {reference.field}",
            found=value,
            allowed=" or ".join(str(allowed) for allowed in reference.allowed if allowed not in ("", None)),
            next_command=REMAKE,
        )
