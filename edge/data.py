"""Labelled images."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib.errors import InputError


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes (the format of MNIST and Fashion-MNIST), plain or gzip: an array of its shape."""
    raw = path.read_bytes()
    data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise InputError("not an IDX file of unsigned bytes", where=path)
    rank = data[3]
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, 4))
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if body.size != int(np.prod(shape)):
        raise InputError("truncated IDX file", where=path, found=f"{body.size} values", allowed=f"{shape}")
    return body.reshape(shape)
