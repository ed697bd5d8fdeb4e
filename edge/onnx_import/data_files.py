"""The files that an ONNX file keeps its weights in: where they may lie, and the digest over all. Standard library only."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from calib.errors import GraphError
from calib.files import describe_foreign, open_regular, read_regular

_CHUNK = 1 << 20


def read_beside(path: Path, location: str, largest: int) -> bytes:
    """The bytes of a file of weights. Raises GraphError for one that is missing, outside the folder, or something else."""
    target = _beside(path, location)
    missing, remake = "the ONNX file keeps its weights in a second file, which is missing", f"put {location} beside {path.name}"
    data = read_regular(target, GraphError, largest=max(largest, 0), missing=missing, remake=remake)
    foreign = describe_foreign(data) if len(data) < 4096 else None
    if foreign is not None and any(data):
        command = "git lfs pull" if "LFS" in foreign else remake
        raise GraphError(
            "external weights are not what they should be", where=_where(path, location), found=foreign, next_command=command
        )
    return data


def source_sha256(path: Path, locations: Iterable[str]) -> str:
    """SHA-256 of an ONNX file and then of its data files by name, as `external_data.read_model` gives it. Raises InputError."""
    digest = hashlib.sha256()
    for file in (path, *(_beside(path, location) for location in sorted(locations))):
        with open_regular(file, GraphError) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _beside(path: Path, location: str) -> Path:
    """The path of a file of weights, inside the folder of the ONNX file. Raises GraphError."""
    where, folder = _where(path, location), path.parent.resolve()
    parts = Path(location).parts
    if not parts or Path(location).is_absolute() or ".." in parts or "\0" in location:
        allowed = "a file in the folder of the ONNX file"
        raise GraphError("weights are stored outside the folder of the ONNX file", where=where, allowed=allowed)
    target = path.parent / location
    try:
        inside = target.resolve().is_relative_to(folder)
    except (OSError, RuntimeError) as error:  # a circle of links
        raise GraphError("the file of external weights cannot be read", where=where, found=error) from error
    if not inside:
        found = f"a link to {target.resolve()}"
        raise GraphError("weights are stored outside the folder of the ONNX file", where=where, found=found)
    return target


def _where(path: Path, location: str) -> str:
    return f"{path}, weights in {location!r:.200}"
