"""Arrays of numbers as text, for a baseline: base64 of deflated little-endian bytes. numpy alone."""

import base64
import binascii
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import ArtifactError


def pack_array(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> str:
    """Pack values (n,) as `dtype`."""
    words = values.astype(np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(zlib.compress(words.tobytes(), 9)).decode()


def unpack_array(packed: str, dtype: npt.DTypeLike, count: int, what: str) -> npt.NDArray[Any]:
    """The values (count,) of `pack_array`; `what` they are, for messages. Raises ArtifactError for other text."""
    word = np.dtype(dtype).newbyteorder("<")
    size = count * word.itemsize
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise ArtifactError("the baseline's answers cannot be read", found=error) from error
    if len(data) != size or not inflate.eof:
        raise ArtifactError("the baseline's answers are not one per image", allowed=f"{count} {what}")
    return np.frombuffer(data, word)
