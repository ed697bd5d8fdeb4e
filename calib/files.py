"""Files that are either complete or absent: SHA-256 digests, canonical JSON, atomic writes. Standard library only."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calib.errors import ArtifactError, MissingError, UsageError

_CHUNK = 1 << 20
_LONGEST_PREFIX = 48
_REFUSED = {stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a disk"}
_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)


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
