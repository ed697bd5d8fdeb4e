"""IDX files of unsigned bytes, the format of MNIST and Fashion-MNIST, plain or gzip."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from calib.errors import DataError
from calib.files import write_bytes
from edge.images.npz import read_exactly
from edge.images.preprocess import Uint8, check_size

Int64 = npt.NDArray[np.int64]
MAX_IMAGES = 1 << 21
"""Images of one set: names and paths of more take gigabytes."""
_UNPACKED_BYTES = 1 << 30
_DEFLATE_RATIO = 1032  # of the best compression that deflate can do
_AXES = 3


def read_labelled_idx(path: Path, label_path: Path, labels: tuple[str, ...]) -> tuple[Uint8, Int64]:
    """Images (n, H, W) and classes (n,), n >= 1, of two IDX files. Raises InputError where they do not belong together."""
    images, stored = read_idx_images(path), read_idx(label_path)
    if stored.shape != images.shape[:1]:
        raise DataError("images and labels do not match", where=path, found=f"{images.shape} and {stored.shape}")
    classes = stored.astype(np.int64)
    if classes.max() >= len(labels):
        raise DataError(
            "labels do not match the network",
            where=label_path,
            found=f"class {classes.max()}",
            allowed=f"0 to {len(labels) - 1}",
        )
    return images, classes


def write_idx(path: Path, values: Uint8) -> None:
    """Write an IDX file of unsigned bytes, gzip-compressed; equal arrays are written as equal bytes."""
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    write_bytes(path, gzip.compress(header + values.tobytes(), mtime=0))


def read_idx_images(path: Path) -> Uint8:
    """Images (n, H, W) of an IDX file, n, H and W >= 1. Raises DataError for anything else."""
    images = read_idx(path)
    if images.ndim != 3 or not images.size:
        raise DataError("not an IDX file of images", where=path, found=f"{images.shape}", allowed="(images, height, width)")
    check_size(images.shape[1], images.shape[2], path)
    return images


def read_idx(path: Path) -> Uint8:
    """An IDX file of unsigned bytes (the format of MNIST and Fashion-MNIST), plain or gzip: an array of its shape."""
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            return _read(stream, path, path.stat().st_size, packed)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError("file cannot be read", where=path, found=error) from error


def _read(stream: BinaryIO, path: Path, size: int, packed: bool) -> Uint8:
    """The array that a stream unpacks from a file of `size` bytes. What the header states is checked before it is used."""
    start = stream.read(4)
    if len(start) < 4 or start[:3] != b"\0\0\x08":
        raise DataError("not an IDX file of unsigned bytes", where=path)
    axes = start[3]
    sides = stream.read(4 * axes)
    if not 1 <= axes <= _AXES or len(sides) < 4 * axes:
        found = f"{axes} axes in {len(sides)} bytes"
        raise DataError("truncated IDX file", where=path, found=found, allowed=f"a header of 1 to {_AXES} axes")
    shape = struct.unpack(f">{axes}I", sides)
    values = math.prod(shape)
    if shape[0] > MAX_IMAGES or (packed and values > _UNPACKED_BYTES):
        raise DataError(
            "IDX file too large",
            where=path,
            found=f"{shape}",
            allowed=f"at most {MAX_IMAGES:,} images, and {_UNPACKED_BYTES >> 20} MiB where it is packed",
            next_command=f"gunzip {path}" if packed else None,
        )
    held = _DEFLATE_RATIO * size if packed else size - 4 - 4 * axes
    if values > held or (values < held and not packed):
        raise DataError("truncated IDX file", where=path, found=f"{held} values at most", allowed=f"{shape}")
    data = read_exactly(stream, values).reshape(shape)
    data.flags.writeable = False
    return data
