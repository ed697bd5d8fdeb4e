"""`logits.npz`: what both sides answered to every image. numpy alone: a device writes and reads it too.

reference, engine   float32 (n, classes)
labels              int64 (n,), absent where the images have none
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import InputError
from calib.files import atomic_path
from edge.images.npz import parse_npz
from edge.tasks.classification.logit_metrics import Floats, Int64
from edge.tasks.task import Sides
from engines.build_folder.safe_files import REMAKE


@dataclass(frozen=True)
class Logits:
    """The arrays of `logits.npz`; `labels` is None for images without."""

    reference: Floats
    engine: Floats
    labels: Int64 | None

    @classmethod
    def of(cls, sides: Sides) -> Logits:
        """The only output of each side. Raises InputError for more than one."""
        if len(sides.reference) != 1 or len(sides.engine) != 1:
            found = f"{len(sides.reference)} and {len(sides.engine)} outputs"
            raise InputError("logits and labels do not match", found=found, allowed="one output, logits (n, classes)")
        return cls(sides.reference[0], sides.engine[0], sides.truth)

    @property
    def sides(self) -> Sides:
        """The same as every task gives it."""
        return Sides((self.reference,), (self.engine,), self.labels)


def write_logits(path: Path, logits: Logits) -> None:
    """Write `logits.npz`, atomically."""
    arrays: dict[str, Any] = {"reference": logits.reference, "engine": logits.engine}
    if logits.labels is not None:
        arrays["labels"] = logits.labels
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def parse_logits(data: bytes, path: Path) -> Logits:
    """The logits that bytes hold; `path` is what errors name. Raises InputError."""
    names, refusal = ("reference", "engine"), "logits cannot be read"
    arrays = parse_npz(data, names, path, refusal=refusal, remake=REMAKE, optional="labels")
    found = Logits(arrays["reference"], arrays["engine"], arrays.get("labels"))
    shape, other = found.reference.shape, found.engine.shape
    labelled = shape[:1] if found.labels is None else found.labels.shape
    if len(shape) != 2 or other != shape or labelled != shape[:1]:
        raise InputError(
            "logits and labels do not match", where=path, found=f"{shape}, {other}, {labelled}", next_command=REMAKE
        )
    return found


def answers(logits: Floats) -> Int64:
    """The largest logit of each row (n, classes) -> (n,); -1 for a row that holds NaN or infinity, which is no answer."""
    finite = np.isfinite(logits).all(axis=1)
    answer: Int64 = np.where(finite, np.where(np.isfinite(logits), logits, 0).argmax(axis=1), -1)
    return answer
