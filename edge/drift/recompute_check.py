"""`drift.json` held against the logits beside it: what they do not bear out is refused, by the gate and by the report."""

from __future__ import annotations

import math
from pathlib import Path

from calib.errors import InputError
from edge.drift.compare import DriftReport, compare
from edge.tasks.classification.logits import Logits
from engines.build_folder.file_names import DRIFT, LOGITS
from engines.build_folder.safe_files import REMAKE

EQUAL = 1e-6  # statement and recomputation: the same float64 sums in another order
_STATED = (
    "not_finite", "top1_reference", "top1_engine", "agreement", "sqnr_db", "flips", "confusion_reference", "confusion_engine",
)  # fmt: skip


def check_stated(folder: Path, drift: DriftReport, logits: Logits, classes: int, *, spare_not_finite: bool = False) -> None:
    """Raise InputError where the drift of a build folder does not follow from its logits.

    `spare_not_finite` lets a stated NaN or infinity through, for a caller that fails on it and says so.
    """
    if logits.reference.shape != (drift.images, classes):
        raise InputError(
            "logits, drift and labels disagree on images or classes",
            where=folder / LOGITS,
            found=f"logits {logits.reference.shape}, {drift.images} images, {classes} labels",
            next_command=REMAKE,
        )
    if logits.labels is None and drift.labelled is not None:
        raise InputError("the images' labels are missing", where=folder / LOGITS, next_command=REMAKE)
    counted = compare(logits.reference, logits.engine, logits.labels)
    for name in _STATED:
        said, found = getattr(drift, name), getattr(counted, name)
        close = name == "sqnr_db" and math.isclose(said, found, abs_tol=EQUAL)
        spared = spare_not_finite and isinstance(said, float) and not math.isfinite(said)
        if said != found and not close and not spared:
            short = not isinstance(said, tuple)
            raise InputError(
                f"{DRIFT} does not follow from the {LOGITS} beside it",
                where=f"{folder / DRIFT}, {name}",
                found=said if short else None,
                allowed=found if short else None,
                next_command=REMAKE,
            )
