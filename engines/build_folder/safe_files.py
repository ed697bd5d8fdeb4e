"""Files that a folder holds itself: plain names, regular files, no links. What is hashed is what was read. Stdlib only.

A link could be pointed elsewhere between the check and the use, a pipe would be waited for, and a name with a folder in it
would leave the build: all three are refused by name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeVar

from calib.artifact import from_fields, schema_version
from calib.errors import InputError

REMAKE = "ufovit build"
_CHUNK = 1 << 20

T = TypeVar("T")


def inside(folder: Path, name: str, named_by: str) -> Path:
    """Path of a file that the artifact `named_by` of the same folder names. Raises InputError for all but a plain name."""
    if name in ("", ".", "..") or PurePath(name).name != name or "\0" in name:
        raise InputError(f"{named_by} names a file outside its folder", where=folder / named_by, found=repr(name))
    return folder / name


def is_there(path: Path) -> bool:
    """Whether anything has this name, a link that leads nowhere included."""
    return os.path.lexists(path)


@contextlib.contextmanager
def opened(path: Path, *, remake: str = REMAKE) -> Iterator[BinaryIO]:
    """A regular file, open for reading. Raises InputError when it is missing, a link, no file, or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            stream = os.fdopen(descriptor, "rb") if regular else None
        finally:
            if not regular:
                os.close(descriptor)
        if stream is None:
            raise InputError("not a regular file", where=path, next_command=remake)
        with stream:
            yield stream
    except FileNotFoundError as error:
        raise InputError("file is missing", where=path, next_command=remake) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            found = f"a link to {path.readlink()}"
            raise InputError("a link stands in the file's place", where=path, found=found, next_command=remake) from error
        raise InputError("file cannot be read", where=path, found=error.strerror, next_command=remake) from error


def read_contained(path: Path, *, remake: str = REMAKE) -> bytes:
    """Bytes of a regular file. Raises InputError like `opened`."""
    with opened(path, remake=remake) as stream:
        return stream.read()


def sha256_contained(path: Path, *, remake: str = REMAKE) -> str:
    """Hex SHA-256 of a regular file of any size. Raises InputError like `opened`."""
    digest = hashlib.sha256()
    with opened(path, remake=remake) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def json_object(data: bytes, path: Path, *, remake: str = REMAKE) -> dict[str, Any]:
    """The JSON object that bytes hold; `path` is what errors name. Raises InputError."""
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InputError("not a JSON file", where=path, found=error, next_command=remake) from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where=path, found=type(value).__name__, next_command=remake)
    return value


def parse_artifact(data: bytes, path: Path, cls: type[T], *, remake: str = REMAKE) -> T:
    """An artifact of type `cls` from bytes, like `calib.artifact.read_artifact` from a file. Raises InputError."""
    fields = json_object(data, path, remake=remake)
    version, allowed = fields.pop("schema_version", None), schema_version(cls)
    if version != allowed:
        raise InputError("unknown schema version", where=path, found=version, allowed=allowed, next_command=remake)
    try:
        return from_fields(cls, fields)
    except (TypeError, ValueError) as error:
        raise InputError("malformed artifact", where=path, found=error, next_command=remake) from error


def compare(path: Path, found: str, recorded: str, recorded_by: str, *, remake: str = REMAKE) -> None:
    """Raise InputError unless a file's digest is the one that the artifact `recorded_by` states."""
    if found != recorded:
        raise InputError(
            "file is not the one that was recorded",
            where=path,
            found=f"sha256 {found[:16]}...",
            allowed=f"sha256 {recorded[:16]}... of {recorded_by}",
            next_command=remake,
        )
