"""Bounded reads of regular files, JSON, SHA-256, and writes that are complete or absent. Standard library only.

`open_regular` opens what a user or an artifact names, `parse_json` is where JSON is parsed: nothing else does either.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from calib.errors import ArtifactError, InputError, MissingError, UsageError

ARCHIVE_ERRORS = (
    *(OSError, ValueError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""What `zipfile` raises for damaged archives, by release and by the field that is wrong; it documents BadZipFile alone."""
_CHUNK = 1 << 20
_LONGEST_PREFIX = 48
_REFUSED = {stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a disk"}
_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_FOREIGN = (
    (b"version https://git-lfs.github.com", "a Git LFS pointer: git lfs pull downloads the file itself"),
    (b"<!doctype html", "an HTML page, not the file that was to be downloaded"),
    (b"<html", "an HTML page, not the file that was to be downloaded"),
    (b"<<<<<<< ", "the markers of a merge conflict"),
)
"""What stands at the beginning of a file, in lower case -> what the file is."""
_MARKS = ((b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


@contextlib.contextmanager
def open_regular(
    path: Path,
    error: type[InputError] = ArtifactError,
    *,
    largest: int | None = None,
    follow_links: bool = True,
    missing: str = "file not found",
    remake: str | None = None,
) -> Iterator[BinaryIO]:
    """A regular file, open for reading; a folder, pipe, socket or device is neither read nor waited for.

    Args:
        error: raised, naming `remake`, for all else: a file that does not exist (its text is `missing`), that is not a regular
            one or a link to one, that has more than `largest` bytes, or that cannot be read.
        follow_links: if not, a symbolic link is refused, which could be redirected between check and use.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                found = _KINDS.get(stat.S_IFMT(status.st_mode))
                raise error("not a regular file", where=path, found=found, next_command=remake)
            _check_size(path, status.st_size, largest, error, remake)
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                yield stream
        finally:
            os.close(descriptor)
    except FileNotFoundError as cause:
        raise error(missing, where=path, next_command=remake) from cause
    except OSError as cause:
        if cause.errno == errno.ELOOP and not follow_links:
            what, found = "expected a regular file, found a symbolic link", f"a link to {path.readlink()}"
            raise error(what, where=path, found=found, next_command=remake) from cause
        if cause.errno in (errno.EISDIR, errno.ENXIO):  # a folder, or a socket: the system opens neither
            found = "a folder" if path.is_dir() else "a socket or a device"
            raise error("not a regular file", where=path, found=found, next_command=remake) from cause
        raise error("file cannot be read", where=path, found=cause.strerror, next_command=remake) from cause


def read_regular(
    path: Path,
    error: type[InputError] = ArtifactError,
    *,
    largest: int,
    follow_links: bool = True,
    missing: str = "file not found",
    remake: str | None = None,
) -> bytes:
    """Bytes of a regular file; arguments and errors as of `open_regular`."""
    with open_regular(path, error, largest=largest, follow_links=follow_links, missing=missing, remake=remake) as stream:
        parts = [stream.read(os.fstat(stream.fileno()).st_size)]
        while sum(map(len, parts)) <= largest and (more := stream.read(_CHUNK)):  # /proc states no size, a file may grow
            parts.append(more)
    data = b"".join(parts)
    _check_size(path, len(data), largest, error, remake)
    return data


def _check_size(path: Path, size: int, largest: int | None, error: type[InputError], remake: str | None) -> None:
    if largest is not None and size > largest:
        found, allowed = f"{size} bytes or more", f"up to {largest} bytes"
        raise error("file is too large", where=path, found=found, allowed=allowed, next_command=remake)


def describe_foreign(data: bytes) -> str | None:
    """What the bytes are that should have been an artifact, where that is easily told; None otherwise."""
    if not data.strip(b" \t\r\n\0"):
        return "nothing but blanks or zeros" if data else "an empty file"
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return f"{encoding} text with a byte order mark"
    start = data[:1024].lstrip().lower()
    return next((what for beginning, what in _FOREIGN if start.startswith(beginning)), None)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a regular file's bytes. Raises ArtifactError like `open_regular`."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
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


def check_folder(folder: Path) -> None:
    """Raise MissingError unless a folder can be written, or created: what a command does before its work starts."""
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError as error:
        _explain(error, folder / "file")
        raise
    if not writable:
        found = "no permission to write" if existing.is_dir() else "not a folder"
        raise MissingError("folder cannot be written", where=existing, found=found, next_command="choose another --out")


def check_output(path: Path) -> None:
    """Check a path that will be written, before the work starts.

    Raises UsageError for a folder, a socket or a disk; MissingError for a file in a folder that cannot be written.
    """
    if not _is_stream(path):
        check_folder(path.parent)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block succeeds and removed otherwise.

    The data are flushed to disk before the rename, so that a kill or a power cut leaves either the old file or the new one. A
    device, a pipe or an open file (/dev/stdout) is never replaced: the complete data are written into it.
    Raises MissingError when the folder cannot be written or the disk is full; UsageError for a folder, a socket or a disk.
    """
    if _is_stream(path):
        with _spooled(path) as temporary:
            yield temporary
        return
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=".tmp")
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


def _is_stream(path: Path) -> bool:
    """Whether data are written into what has this name. Raises UsageError for what is neither a stream nor a file."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _explain(error, path)
        raise
    if kind in _REFUSED:
        allowed = "a file, a pipe or a device such as /dev/stdout"
        raise UsageError("output cannot be written there", where=path, found=_REFUSED[kind], allowed=allowed)
    return kind != stat.S_IFREG or _open_descriptor(path) is not None


def _open_descriptor(path: Path) -> int | None:
    """The descriptor that a path names, as /dev/stdout and /dev/fd/3 do; None for any other path."""
    while True:
        if path.name.isdecimal() and path.parent.resolve() == Path(f"/proc/{os.getpid()}/fd"):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()


@contextlib.contextmanager
def _spooled(path: Path) -> Iterator[Path]:
    """A temporary path whose data are copied into a stream when the block succeeds."""
    try:
        with tempfile.TemporaryDirectory(prefix="ufovit-output-") as folder:
            temporary = Path(folder) / "data"
            yield temporary
            descriptor = _open_descriptor(path)
            opened = path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb")
            with temporary.open("rb") as data, opened as stream:
                shutil.copyfileobj(data, stream)
    except BrokenPipeError:  # its reader is gone
        raise
    except OSError as error:
        _explain(error, path)
        raise MissingError("output cannot be written", where=path, found=error.strerror) from error


def _prefix(path: Path) -> str:
    """How the names of the temporary files of a path begin; short, because a name may have 255 bytes."""
    return f".{path.name[:_LONGEST_PREFIX]}."


def _explain(error: OSError, path: Path) -> None:
    """Raises MissingError for a full disk and for a folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what, found = "disk full, nothing was written", error.strerror
        raise MissingError(what, where=path, found=found, next_command="free space, then run the same command again") from error
    in_proc = error.errno == errno.ENOENT and str(error.filename).startswith(f"{path.parent}/{_prefix(path)}")
    if error.errno in _UNWRITABLE or in_proc or not path.parent.is_dir():
        raise MissingError(
            "folder cannot be written", where=path.parent, found=error.strerror, next_command="choose another --out"
        ) from error
