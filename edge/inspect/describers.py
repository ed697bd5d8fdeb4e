"""Any artifact, readable by a person on a terminal: what kind of file it is decides who describes it.

Descriptions are gathered as plain text (`Description`) and turned into rich renderables at the end; text that comes from a
file is never read as markup.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import InputError
from edge.inspect.description import Description, size_text
from engines.build_folder.safe_files import read_contained

if TYPE_CHECKING:
    from rich.console import Group

BY_NAME = {
    "manifest.json": ("engines.build_folder.manifest.MANIFEST_ARTIFACT", "describe_json.describe_manifest"),
    "xnorm.json": ("edge.inspect.describe_xnorm.FULL_CERTIFICATE", "describe_xnorm.describe_certificate"),
    "calibration.json": ("calib.calibration_table.TABLE_ARTIFACT", "describe_json.describe_table"),
    "drift.json": ("edge.drift.drift_report.DRIFT_ARTIFACT", "describe_json.describe_drift"),
    "attribution.json": ("edge.attribution.attribution_record.ATTRIBUTION_ARTIFACT", "describe_json.describe_attribution"),
    "flips.npz": ("edge.drift.pictures.PICTURES_ARTIFACT", "describe_json.describe_flips"),
    "golden.npz": ("edge.images.golden_pair.GOLDEN_ARTIFACT", "describe_json.describe_golden"),
    "export.json": ("edge.model.export_record.EXPORT_ARTIFACT", "describe_json.describe_export"),
    "steps.json": ("engines.build_folder.step_record.STEPS_ARTIFACT", "describe_json.describe_steps"),
}
"""File name -> how it is read, and who describes what it holds."""
BY_SUFFIX = {
    ".onnx": "describe_binary.describe_onnx",
    ".safetensors": "describe_binary.describe_checkpoint",
    ".engine": "describe_binary.describe_engine",
    ".ufovit": "describe_binary.describe_bundle",
}
"""Suffix of a file name -> who describes the file."""


def describe_file(path: Path) -> Group:
    """What a file or build folder is and says.

    Args:
        path: a build folder, a file of BY_NAME, or a file with a suffix of BY_SUFFIX. A file is described as it is, wherever
            it lies; only a folder is held against what was recorded of it.

    Raises InputError for a missing or malformed file, and for one of no known kind, listing those that are known.
    """
    return _described(path).renderable()


def _described(path: Path) -> Description:
    if not path.exists():
        raise InputError("nothing to inspect", where=path, allowed="an existing file or folder")
    described: Description
    if path.name in BY_NAME and not path.is_dir():
        artifact, describe = BY_NAME[path.name]
        data = read_contained(path.resolve())
        described = _load(f"edge.inspect.{describe}")(_load(artifact).parse(data, path))
        return replace(described, facts={"file": size_text(len(data)), **described.facts})
    whole = "describe_json.describe_folder" if path.is_dir() else BY_SUFFIX.get(path.suffix)
    if whole is not None:
        described = _load(f"edge.inspect.{whole}")(path)
        return described
    known = ", ".join((*BY_NAME, *(f"*{suffix}" for suffix in BY_SUFFIX)))
    raise InputError("no known kind of artifact", where=path, found=path.name, allowed=f"a build folder, {known}")


def _load(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)
