"""`drift.json` against the answers beside it: the gate and the report refuse what does not follow from them."""

from __future__ import annotations

import math
from pathlib import Path

from calib.errors import InputError
from edge.drift.drift_report import DriftReport
from edge.numeric_tolerances import RECOMPUTED
from edge.tasks.task import Sides, Task
from engines.build_folder.file_names import ANSWERS, DRIFT
from engines.build_folder.safe_files import REMAKE


def check_stated(folder: Path, task: Task, drift: DriftReport, sides: Sides, *, spare_not_finite: bool = False) -> None:
    """Raise InputError where the drift of a build folder does not follow from its answers.

    `spare_not_finite` lets a stated NaN or infinity through, for a caller that fails on it and says so.
    """
    misfit = task.misfit(sides, drift.images)
    if misfit:
        raise InputError(
            "answers, drift and manifest disagree on images or outputs",
            where=folder / ANSWERS,
            found=misfit,
            next_command=REMAKE,
        )
    if sides.truth is None and drift.comparison.with_truth:
        raise InputError("the images' right answers are missing", where=folder / ANSWERS, next_command=REMAKE)
    recomputed = task.compare(sides)
    for name in task.stated:
        stated, found = getattr(drift.comparison, name), getattr(recomputed, name)
        figures = isinstance(stated, float) and isinstance(found, float)
        close = figures and name.endswith("_db") and math.isclose(stated, found, abs_tol=RECOMPUTED)
        spared = spare_not_finite and isinstance(stated, float) and not math.isfinite(stated)
        if stated != found and not close and not spared:
            short = not isinstance(stated, tuple)
            raise InputError(
                f"{DRIFT} does not follow from the {ANSWERS} beside it",
                where=f"{folder / DRIFT}, {name}",
                found=stated if short else None,
                allowed=found if short else None,
                next_command=REMAKE,
            )
