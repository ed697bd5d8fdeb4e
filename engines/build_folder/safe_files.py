"""Read files safely: plain names, regular files, no links; the hashed bytes are those that were read. Standard library only.

A link could be redirected between check and use, reading a pipe would block, and a name with a folder in it would leave the
build folder: all three are refused.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

from calib.errors import ArtifactError

REMAKE = "ufovit build"
_CHUNK = 1 << 20


def inside(folder: Path, name: str, named_by: str) -> Path:
    """Path of a file that the artifact `named_by` of the same folder names. Raises ArtifactError for all but a plain name."""
    if name in ("", ".", "..") or PurePath(name).name != name or "\0" in name:
        raise ArtifactError(f"{named_by} names a file outside its folder", where=folder / named_by, found=repr(name))
    return folder / name


def is_there(path: Path) -> bool:
    """Whether anything has this name, a dangling link included."""
    return os.path.lexists(path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading. Raises ArtifactError when it is missing, a link, not a regular file, or unreadable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ArtifactError("not a regular file", where=path, next_command=REMAKE)
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                yield stream
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise ArtifactError("file is missing", where=path, next_command=REMAKE) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            what, found = "expected a regular file, found a symbolic link", f"a link to {path.readlink()}"
            raise ArtifactError(what, where=path, found=found, next_command=REMAKE) from error
        raise ArtifactError("file cannot be read", where=path, found=error.strerror, next_command=REMAKE) from error


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
