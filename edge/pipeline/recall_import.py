"""What an earlier build of the same file recorded of its import: a build that imports nothing again need not read the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import InputError
from calib.files import canonical_json, sha256_bytes
from edge.onnx_import.data_files import source_sha256
from edge.onnx_import.import_record import IMPORT_ARTIFACT
from edge.onnx_import.imported import ImportedFile
from edge.pipeline.workspace import toolkit_sha256
from engines.build_folder.file_names import IMPORT
from engines.build_folder.step_record import read_record
from engines.hardware import versions

if TYPE_CHECKING:
    from edge.onnx_import import ImportOptions


def import_reads(source: str, options: ImportOptions) -> dict[str, Any]:
    """What decides how the file with the digest `source` is imported, as plain JSON values."""
    constants = {name: sha256_bytes(canonical_json(value.tolist())) for name, value in options.constant_inputs.items()}
    return {
        "source": source,
        "input_shapes": {name: list(shape) for name, shape in options.input_shapes.items()},
        "constant_inputs": constants,
        "outputs": list(options.outputs),
        "versions": versions("onnx", "onnxscript", "onnxsim", "onnxruntime"),
    }


def import_key(source: str, options: ImportOptions) -> str:
    """Digest of the same and of the toolkit: equal keys, equal imports."""
    return sha256_bytes(canonical_json({**import_reads(source, options), "toolkit": toolkit_sha256()}))


def recall_import(path: Path, options: ImportOptions, folder: Path) -> ImportedFile | None:
    """The import of a file as the build in `folder` recorded it; None where there is none, or one of something else."""
    if not (folder / IMPORT).is_file():
        return None
    try:
        data = (folder / IMPORT).read_bytes()
        if read_record(folder)["import"].writes[IMPORT] != sha256_bytes(data):
            return None
        record = IMPORT_ARTIFACT.parse(data, folder / IMPORT)
        source = source_sha256(path, (change.node for change in record.changes if change.kind == "external_data"))
    except (InputError, OSError, KeyError):
        return None
    if record.key != import_key(source, options):
        return None
    return ImportedFile(path, source, record.input, record.outputs, options)
