"""Logits of both sides: the file `logits.npz`, the answers they give, and answers packed for a baseline.

    reference, engine   float32 (n, classes)
    labels              int64 (n,), absent where the images have none

numpy alone: a device writes and reads the file too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import ArtifactError, DataError
from calib.files import atomic_path
from edge.images.npz import parse_npz
from edge.tasks.classification.logit_metrics import Floats, Int64
from edge.tasks.packed_arrays import pack_array, unpack_array
from edge.tasks.task import Sides
from engines.build_folder.safe_files import REMAKE

NO_ANSWER = -1
_TYPES = {"reference": np.float32, "engine": np.float32, "labels": np.int64}


@dataclass(frozen=True)
class Logits:
    """The arrays of `logits.npz`; `labels` is None for images without."""

    reference: Floats
    engine: Floats
    labels: Int64 | None

    @classmethod
    def of(cls, sides: Sides) -> Logits:
        """The only output of each side. Raises DataError for more than one."""
        if len(sides.reference) != 1 or len(sides.engine) != 1:
            found = f"{len(sides.reference)} and {len(sides.engine)} outputs"
            raise DataError("logits and labels do not match", found=found, allowed="one output, logits (n, classes)")
        return cls(sides.reference[0], sides.engine[0], sides.truth)

    @property
    def sides(self) -> Sides:
        """The same in the form that every task uses."""
        return Sides((self.reference,), (self.engine,), self.labels)


def write_logits(path: Path, logits: Logits) -> None:
    """Write `logits.npz`, atomically."""
    arrays: dict[str, Any] = {"reference": logits.reference, "engine": logits.engine}
    if logits.labels is not None:
        arrays["labels"] = logits.labels
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def parse_logits(data: bytes, path: Path) -> Logits:
    """Parse the bytes of `logits.npz`; errors name `path`. Raises ArtifactError for other bytes or shapes that do not match."""
    arrays = parse_npz(data, ("reference", "engine"), path, refusal="logits cannot be read", remake=REMAKE, optional="labels")
    logits = Logits(arrays["reference"], arrays["engine"], arrays.get("labels"))
    shape, other = logits.reference.shape, logits.engine.shape
    labelled = shape[:1] if logits.labels is None else logits.labels.shape
    if len(shape) != 2 or 0 in shape or other != shape or labelled != shape[:1]:
        found = f"{shape}, {other}, {labelled}"
        raise ArtifactError("logits and labels do not match", where=path, found=found, next_command=REMAKE)
    types = [(name, str(array.dtype)) for name, array in arrays.items() if array.dtype != _TYPES[name]]
    if types:
        found, allowed = ", ".join(" ".join(pair) for pair in types), "float32, labels int64"
        raise ArtifactError("not logits and labels", where=path, found=found, allowed=allowed, next_command=REMAKE)
    if logits.labels is not None and not 0 <= logits.labels.min() <= logits.labels.max() < shape[1]:
        found, allowed = f"classes {logits.labels.min()} to {logits.labels.max()}", f"0 to {shape[1] - 1}"
        raise ArtifactError("a label is out of range", where=path, found=found, allowed=allowed, next_command=REMAKE)
    return logits


def answers(logits: Floats) -> Int64:
    """Index of the largest logit of each row, (n, classes) -> (n,); NO_ANSWER for a row that holds NaN or infinity."""
    finite = np.isfinite(logits)
    answer: Int64 = np.where(finite.all(axis=1), np.where(finite, logits, 0).argmax(axis=1), NO_ANSWER)
    return answer


def pack_answers(answer: Int64, classes: int) -> str:
    """Pack answers (n,) into text, from 255 classes on as 16-bit words.

    10,000 answers of ten classes take 4 KiB of text, 50,000 of a thousand about 80 KiB.
    """
    word = _word(classes)
    return pack_array(np.where(answer == NO_ANSWER, np.iinfo(word).max, answer), word)


def unpack_answers(packed: str, classes: int, images: int) -> Int64:
    """The answers (n,) of `pack_answers`. Raises ArtifactError unless they are `images` answers."""
    word = _word(classes)
    words = unpack_array(packed, word, images, f"answers of {classes} classes").astype(np.int64)
    return np.where(words == np.iinfo(word).max, NO_ANSWER, words)


def _word(classes: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint8) if classes < 255 else np.dtype(np.uint16)
