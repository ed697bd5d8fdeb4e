"""Any artifact, readable by a person on a terminal: what kind of file it is decides who describes it.

Descriptions are gathered as plain text (`Description`) and turned into rich renderables at the end; text that comes from a
file is never read as markup.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import InputError
from edge.report.description import Description

if TYPE_CHECKING:
    from rich.console import Group

Describe = Callable[[Path], Description]

BY_NAME: dict[str, tuple[str, str]] = {
    "manifest.json": ("edge.report.records", "describe_manifest"),
    "xnorm.json": ("edge.report.certificates", "describe_certificate"),
    "calibration.json": ("edge.report.records", "describe_table"),
    "drift.json": ("edge.report.records", "describe_drift"),
    "flips.npz": ("edge.report.flips", "describe_flips"),
    "golden.npz": ("edge.report.binaries", "describe_golden"),
    "export.json": ("edge.report.records", "describe_export"),
    "steps.json": ("edge.report.records", "describe_steps"),
}
BY_SUFFIX: dict[str, tuple[str, str]] = {
    ".onnx": ("edge.report.binaries", "describe_onnx"),
    ".safetensors": ("edge.report.binaries", "describe_checkpoint"),
    ".engine": ("edge.report.binaries", "describe_engine"),
    ".ufovit": ("edge.report.binaries", "describe_bundle"),
}
FOLDER = ("edge.report.records", "describe_folder")


def describe_file(path: Path) -> Group:
    """What a file or build folder is and says.

    Args:
        path: a build folder, a file of BY_NAME, or a file with a suffix of BY_SUFFIX.

    Raises InputError for a missing or malformed file, and for one of no known kind, listing those that are known.
    """
    return _describer(path)(path).renderable()


def _describer(path: Path) -> Describe:
    if not path.exists():
        raise InputError("nothing to inspect", where=path, allowed="an existing file or folder")
    where = FOLDER if path.is_dir() else BY_NAME.get(path.name) or BY_SUFFIX.get(path.suffix)
    if where is None:
        known = ", ".join((*BY_NAME, *(f"*{suffix}" for suffix in BY_SUFFIX)))
        raise InputError("no known kind of artifact", where=path, found=path.name, allowed=f"a build folder, {known}")
    module, function = where
    describe: Describe = getattr(import_module(module), function)
    return describe
