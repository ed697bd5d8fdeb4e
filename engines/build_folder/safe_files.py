"""Read files safely: plain names, regular files, no links; the hashed bytes are those that were read. Standard library only.

A link could be redirected between check and use, reading a pipe would block, and a name with a folder in it would leave the
build folder: all three are refused.
"""

import contextlib
import hashlib
import os
from pathlib import Path, PurePath
from typing import BinaryIO

from calib.errors import ArtifactError
from calib.files import open_regular
from calib.json_reader import LARGEST_JSON_BYTES

REMAKE = "ufovit build"
JSON_SUFFIXES = (".json", ".sig")
_CHUNK = 1 << 20


def inside(folder: Path, name: str, named_by: str) -> Path:
    """Path of a file that the artifact `named_by` of the same folder names. Raises ArtifactError for all but a plain name."""
    if name in ("", ".", "..") or PurePath(name).name != name or "\0" in name:
        raise ArtifactError(f"{named_by} names a file outside its folder", where=folder / named_by, found=repr(name))
    return folder / name


def is_there(path: Path) -> bool:
    """Whether anything has this name, a dangling link included."""
    return os.path.lexists(path)


def opened(path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    """A regular file, open for reading. Raises ArtifactError when it is missing, a link, not a regular file, or unreadable.

    A JSON artifact must be of bounded size; graphs, engines and arrays may have any.
    """
    largest = LARGEST_JSON_BYTES if path.suffix in JSON_SUFFIXES else None
    return open_regular(path, largest=largest, follow_links=False, missing="file is missing", remake=REMAKE)


def read_contained(path: Path) -> bytes:
    """Bytes of a regular file. Raises ArtifactError like `opened`."""
    with opened(path) as stream:
        return stream.read()


def sha256_contained(path: Path) -> str:
    """Hex SHA-256 of a regular file of any size. Raises ArtifactError like `opened`."""
    digest = hashlib.sha256()
    with opened(path) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_digest(path: Path, sha256: str, recorded: str, recorded_by: str, *, remake: str = REMAKE) -> None:
    """Raise ArtifactError unless a file's digest is the one that the artifact `recorded_by` states."""
    if sha256 != recorded:
        raise ArtifactError(
            "file does not match its recorded digest",
            where=path,
            found=f"sha256 {sha256[:16]}...",
            allowed=f"sha256 {recorded[:16]}... of {recorded_by}",
            next_command=remake,
        )
