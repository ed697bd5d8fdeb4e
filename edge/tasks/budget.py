"""The budget that a verdict compares with: what a build may lose. Standard library only: help texts read it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from calib.errors import UsageError
from edge.option_bounds import BUDGET, COSINE, SQNR_DB, check_bounds
from edge.tasks.task_names import TENSORS, option_of

MAX_DROP_POINTS = 0.5
MIN_SQNR_DB = 20.0
"""Default for networks whose outputs are judged as numbers: the error has a tenth of the signal's amplitude and a hundredth of
its energy, and turns a vector by 0.1 rad (cosine 0.995). Of the networks quantized here those below lose answers, those above
few. It does not stand for an accuracy: a user who knows what the next step of the application needs gives that."""


@dataclass(frozen=True)
class Budget:
    """What a build may lose; each task reads the fields that it knows.

    Attributes:
        points: largest loss in percentage points.
        sqnr_db: least SQNR of every output.
        cosine: least mean cosine of every output.
    """

    points: float = MAX_DROP_POINTS
    sqnr_db: float | None = None
    cosine: float | None = None

    @property
    def flaw(self) -> str:
        """Why nothing can be judged by this budget; "" where it can."""
        if not 0 <= self.points < math.inf:  # NaN, too
            return f"a budget of {self.points} points"
        if self.sqnr_db is not None and not math.isfinite(self.sqnr_db):
            return f"a budget of {self.sqnr_db} dB"
        if self.cosine is not None and not -1 <= self.cosine <= 1:
            return f"a budget of a cosine of {self.cosine}"
        return ""


def budget_for(
    task: str, max_drop: float | None, min_sqnr: float | None, min_cosine: float | None, last: Budget | None = None
) -> Budget:
    """The budget of a build by the task's name and its options, None for one that was not given.

    Without any option it is `last`, the budget of a previous verdict, and without that the task's default; `--min-sqnr` or
    `--min-cosine` alone replaces both. Raises UsageError for an option out of range, and for one of another task.
    """
    numbers = {"--min-sqnr": min_sqnr, "--min-cosine": min_cosine}
    foreign = {"--max-drop": max_drop} if task == TENSORS else numbers
    for option, value in foreign.items():
        if value is not None:
            what = f"{option} does not apply to --task {option_of(task)}"
            allowed = ", ".join(numbers) if task == TENSORS else "--max-drop"
            raise UsageError(what, where=option, found=f"{value:g}", allowed=allowed)
    check_bounds("--max-drop", max_drop, BUDGET)
    check_bounds("--min-sqnr", min_sqnr, SQNR_DB)
    check_bounds("--min-cosine", min_cosine, COSINE)
    if task == TENSORS:
        default = last or Budget(sqnr_db=MIN_SQNR_DB)
        return default if min_sqnr is None and min_cosine is None else Budget(sqnr_db=min_sqnr, cosine=min_cosine)
    return (last or Budget()) if max_drop is None else Budget(max_drop)
