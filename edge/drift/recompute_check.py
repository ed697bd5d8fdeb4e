"""Recompute the figures of `drift.json` from the stored answers: gate and report refuse figures that do not follow."""

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from calib.errors import ArtifactError
from edge.drift.drift_report import DriftReport
from edge.numeric_tolerances import RECOMPUTED
from edge.tasks.task import Sides, Task
from engines.build_folder.file_names import ANSWERS, DRIFT
from engines.build_folder.safe_files import REMAKE


def check_stated(folder: Path, task: Task, drift: DriftReport, sides: Sides, *, spare_not_finite: bool = False) -> None:
    """Raise ArtifactError where the drift of a build folder does not follow from its answers.

    `spare_not_finite` accepts a stated NaN or infinity, for a caller that reports it as a failure itself.
    """
    if misfit := task.misfit(sides, drift.images):
        what = "answers, drift and manifest disagree on images or outputs"
        raise ArtifactError(what, where=folder / ANSWERS, found=misfit, next_command=REMAKE)
    if sides.truth is None and drift.comparison.with_truth:
        raise ArtifactError("the images' right answers are missing", where=folder / ANSWERS, next_command=REMAKE)
    recomputed = task.compare(sides, drift.comparison.level)
    for name in task.stated:
        stated, expected = getattr(drift.comparison, name), getattr(recomputed, name)
        spared = spare_not_finite and isinstance(stated, float) and not math.isfinite(stated)
        if not _follows(name, stated, expected) and not spared:
            shown = {} if isinstance(stated, tuple) else {"found": stated, "allowed": expected}
            what, where = f"{DRIFT} does not follow from the {ANSWERS} beside it", f"{folder / DRIFT}, {name}"
            raise ArtifactError(what, where=where, next_command=REMAKE, **shown)
    judged_by, verdict, reason = task.judge(recomputed, drift.budget, random_weights=drift.random_weights)
    if (judged_by, verdict) != (drift.judged_by, drift.verdict):
        what = f"the verdict of {DRIFT} does not follow from the {ANSWERS} beside it"
        found, allowed = f"{drift.verdict} by {drift.judged_by}", f"{verdict} by {judged_by}: {reason}"
        raise ArtifactError(what, where=folder / DRIFT, found=found, allowed=allowed, next_command=f"{REMAKE} --force")


def _follows(name: str, stated: Any, expected: Any) -> bool:
    """Whether a figure is the one expected: decibels and cosines up to rounding, which differs between machines."""
    if is_dataclass(stated) and type(stated) is type(expected):
        return all(_follows(f.name, getattr(stated, f.name), getattr(expected, f.name)) for f in fields(stated))
    if isinstance(stated, tuple) and isinstance(expected, tuple) and len(stated) == len(expected):
        return all(_follows(name, *pair) for pair in zip(stated, expected, strict=True))
    rounded = name.endswith("_db") or name.startswith("cosine")
    close = rounded and isinstance(stated, float) and isinstance(expected, float)
    return bool(stated == expected or (close and math.isclose(stated, expected, abs_tol=RECOMPUTED)))
