"""Every answer of a build in a few bytes: 10,000 of ten classes are 4 KiB of text, 50,000 of a thousand about 80 KiB."""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np

from calib.errors import InputError
from edge.tasks.classification.logit_metrics import Int64

_NONE = -1


def pack_answers(answers: Int64, classes: int) -> str:
    """Answers (n,), -1 for none, as base64 of deflated bytes, or of 16-bit words (little-endian) from 255 classes on."""
    words = np.where(answers == _NONE, np.iinfo(_word(classes)).max, answers).astype(_word(classes))
    return base64.b64encode(zlib.compress(words.tobytes(), 9)).decode()


def unpack_answers(packed: str, classes: int, images: int) -> Int64:
    """The answers (n,) of `pack_answers`. Raises InputError when they are not answers to so many images."""
    word = _word(classes)
    size = images * word.itemsize
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed, validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise InputError("the baseline's answers cannot be read", found=error) from error
    if len(data) != size or not inflate.eof:
        raise InputError("the baseline's answers are not one per image", allowed=f"{images} answers of {classes} classes")
    words = np.frombuffer(data, word).astype(np.int64)
    return np.where(words == np.iinfo(word).max, _NONE, words)


def _word(classes: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint8) if classes < 255 else np.dtype("<u2")
