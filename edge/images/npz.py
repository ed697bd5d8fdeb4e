"""Arrays out of `.npz` and `.npy` files, never as pickles. numpy alone: a device reads its answers and golden pair so.

Sizes are checked before memory is taken: that of an array against the bytes that hold it, and that of all arrays of an archive
against the archive, which could unpack to a thousand times its size.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from calib.errors import ArtifactError
from calib.files import ARCHIVE_ERRORS

Arrays = dict[str, npt.NDArray[Any]]
_CHUNK = 1 << 20
_PACKING = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SMALL_BYTES = 1 << 28
_LARGEST_RATIO = 8
"""Of the arrays to their archive, for arrays above 256 MiB: logits in float32 shrink by a tenth."""


def parse_npz(data: bytes, names: tuple[str, ...], path: Path, *, refusal: str, remake: str, optional: str = "") -> Arrays:
    """The arrays `names` of an archive, and `optional` if it is there.

    Raises ArtifactError for bytes that are not an archive of such arrays: message `refusal`, about `path`, with the command
    `remake` that writes such a file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            missing = [name for name in names if name not in entries]
            if missing:
                raise ValueError(f"no array {missing[0]!r}")
            chosen = [*names, *([optional] if optional and optional in entries else [])]
            size = sum(entries[name].file_size for name in chosen)
            if size > max(_SMALL_BYTES, _LARGEST_RATIO * len(data)):
                raise ValueError(f"{size} bytes of arrays in an archive of {len(data)}")
            return {name: _member(archive, entries[name]) for name in chosen}
    except ARCHIVE_ERRORS as error:
        raise ArtifactError(refusal, where=path, found=error, next_command=remake) from error


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """One array. `zipfile` reads no more than `file_size` bytes, and compares their checksum. Raises ValueError."""
    if entry.compress_type not in _PACKING:
        raise ValueError(f"{entry.filename}: compression {entry.compress_type}")
    with archive.open(entry) as stream:
        dtype, shape, fortran = read_header(stream, entry.file_size)
        values = read_exactly(stream, math.prod(shape) * dtype.itemsize).view(dtype)
    return values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)


def read_header(stream: IO[bytes], size: int) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """The dtype, shape and order (true for Fortran's) of a `.npy` stream of `size` bytes, read up to its values.

    Raises ValueError unless these are `size` bytes of numbers: an array of objects would be unpickled.
    """
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](stream)
    except Exception as error:  # SyntaxError, TokenError, RecursionError and more, for what is not a header
        raise ValueError("not the header of an array") from error
    if dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype} {shape}, not of real numbers")
    held = size - stream.tell()
    if math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{held} bytes for an array of {dtype} {shape}")
    return dtype, shape, fortran


def read_exactly(stream: IO[bytes], size: int) -> npt.NDArray[np.uint8]:
    """All `size` bytes of a stream. Raises EOFError for fewer, ValueError for more."""
    values = np.empty(size, np.uint8)
    view, filled = values.data, 0
    while count := stream.readinto(view[filled : filled + _CHUNK]):  # type: ignore[attr-defined]  # every binary stream has it, typeshed's IO not
        filled += count
    if filled < size:
        raise EOFError(f"{filled} of {size} bytes")
    if stream.read(1):
        raise ValueError(f"more than {size} bytes")
    return values
