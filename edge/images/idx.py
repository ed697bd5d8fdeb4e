"""IDX files of unsigned bytes, the format of MNIST and Fashion-MNIST, plain or gzip."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib.errors import DataError
from calib.files import write_bytes
from edge.images.preprocess import Uint8

Int64 = npt.NDArray[np.int64]


def read_labelled_idx(path: Path, label_path: Path, labels: tuple[str, ...]) -> tuple[Uint8, Int64]:
    """Images (n, H, W) and classes (n,), n >= 1, of two IDX files. Raises InputError where they do not belong together."""
    images, classes = read_idx(path), read_idx(label_path).astype(np.int64)
    if images.ndim != 3 or classes.shape != images.shape[:1] or not len(images):
        raise DataError("images and labels do not match", where=path, found=f"{images.shape} and {classes.shape}")
    if classes.max() >= len(labels):
        raise DataError(
            "labels do not match the checkpoint",
            where=label_path,
            found=f"class {classes.max()}",
            allowed=f"0 to {len(labels) - 1}",
        )
    return images, classes


def write_idx(path: Path, values: Uint8) -> None:
    """Write an IDX file of unsigned bytes, gzip-compressed; equal arrays are written as equal bytes."""
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    write_bytes(path, gzip.compress(header + values.tobytes(), mtime=0))


def read_idx(path: Path) -> Uint8:
    """An IDX file of unsigned bytes (the format of MNIST and Fashion-MNIST), plain or gzip: an array of its shape."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("file cannot be read", where=path, found=error) from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError("not an IDX file of unsigned bytes", where=path)
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise DataError("truncated IDX file", where=path, found=f"{len(data)} bytes", allowed=f"a header of {header} bytes")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    if len(data) - header != math.prod(shape):
        raise DataError("truncated IDX file", where=path, found=f"{len(data) - header} values", allowed=f"{shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
