"""Files that are either complete or absent: SHA-256 digests, canonical JSON, atomic writes. Standard library only."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calib.errors import ArtifactError, MissingError

_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, two-space indent and a final newline: equal values give equal bytes.

    Raises ValueError for NaN and infinities, which JSON cannot represent.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def read_json(path: Path, *, remake: str | None = None) -> dict[str, Any]:
    """Read a JSON object; raises ArtifactError, naming `remake`, if the file is missing, unreadable or holds something else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError("file not found", where=path, next_command=remake) from error
    except OSError as error:
        raise ArtifactError("file cannot be read", where=path, found=error.strerror, next_command=remake) from error
    return parse_json(data, path, remake=remake)


def parse_json(data: bytes, path: Path, *, remake: str | None = None) -> dict[str, Any]:
    """Parse the bytes of a JSON object; errors name `path`. Raises ArtifactError, naming `remake`."""
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ArtifactError("not a JSON file", where=path, found=error, next_command=remake) from error
    if not isinstance(value, dict):
        raise ArtifactError("not a JSON object", where=path, found=type(value).__name__, next_command=remake)
    return value


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block succeeds and removed otherwise.

    The data are flushed to disk before the rename, so that a kill or a power cut leaves either the old file or the new one.
    Raises MissingError when the folder cannot be written or the disk is full.
    """
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        Path(name).chmod(0o644)
        yield Path(name)
        with Path(name).open("r+b") as stream:
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except OSError as error:
        _explain(error, path)
        raise
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON atomically."""
    write_bytes(path, canonical_json(value))


def _explain(error: OSError, path: Path) -> None:
    """Raises MissingError for a full disk and for a folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "disk full, nothing was written"
        raise MissingError(what, where=path, next_command="free space, then run the same command again") from error
    refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
    in_proc = error.errno == errno.ENOENT and str(error.filename).startswith(f"{path.parent}/.{path.name}.")
    if refused or in_proc or not path.parent.is_dir():
        raise MissingError(
            "folder cannot be written", where=path.parent, found=error.strerror, next_command="choose another --out"
        ) from error
