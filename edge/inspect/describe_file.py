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
from edge.inspect.description import Description

if TYPE_CHECKING:
    from rich.console import Group

Describe = Callable[[Path], Description]

BY_NAME: dict[str, tuple[str, str]] = {
    "manifest.json": ("edge.inspect.describe_json", "describe_manifest"),
    "xnorm.json": ("edge.inspect.describe_certificate", "describe_certificate"),
    "calibration.json": ("edge.inspect.describe_json", "describe_table"),
    "drift.json": ("edge.inspect.describe_json", "describe_drift"),
    "flips.npz": ("edge.inspect.describe_json", "describe_flips"),
    "golden.npz": ("edge.inspect.describe_binary", "describe_golden"),
    "export.json": ("edge.inspect.describe_json", "describe_export"),
    "steps.json": ("edge.inspect.describe_json", "describe_steps"),
}
BY_SUFFIX: dict[str, tuple[str, str]] = {
    ".onnx": ("edge.inspect.describe_binary", "describe_onnx"),
    ".safetensors": ("edge.inspect.describe_binary", "describe_checkpoint"),
    ".engine": ("edge.inspect.describe_binary", "describe_engine"),
    ".ufovit": ("edge.inspect.describe_binary", "describe_bundle"),
}
FOLDER = ("edge.inspect.describe_json", "describe_folder")


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
