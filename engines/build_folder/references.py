"""Check the digests and settings that the JSON artifacts of a build state of other files. Standard library only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calib.errors import ArtifactError
from calib.json_reader import parse_json
from engines.build_folder.file_names import ATTRIBUTION, DRIFT, EXPORT
from engines.build_folder.manifest import EngineManifest
from engines.build_folder.safe_files import REMAKE


def _references(manifest: EngineManifest) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """(artifact, field, values that fit the manifest) of all fields that refer to other files; nested fields are dotted."""
    source, preprocess = manifest.onnx.sha256, manifest.preprocess.get("sha256", "")
    folded = manifest.folded_onnx or manifest.onnx
    judged = (manifest.engine, manifest.typed_onnx, manifest.qdq_onnx, manifest.onnx)
    yield EXPORT, "onnx_sha256", (source,)
    if manifest.xnorm is not None:
        yield manifest.xnorm.file, "onnx_sha256", (source,)
        yield manifest.xnorm.file, "folded_onnx_sha256", (folded.sha256, *(() if manifest.folded_onnx else (None,)))
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
