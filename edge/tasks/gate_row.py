"""Rows of the regression gate: one quantity of a build compared with its baseline, and the tolerance it has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Result = Literal["pass", "fail", "inconclusive", "skipped"]
_LISTED = 5


@dataclass(frozen=True)
class Tolerance:
    """How much of a quantity may be lost, in the unit of the quantity, and why, in one sentence."""

    tolerance: float
    reason: str


@dataclass(frozen=True)
class Recorded:
    """What a baseline keeps of a task.

    Attributes:
        figures: name -> value; None where it could not be measured.
        answers: side ("reference", "engine") -> its answers, packed by the task.
    """

    figures: dict[str, float | None] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One quantity.

    Attributes:
        baseline, measured, allowed: for a person.
        loss: what was lost, in the unit of the tolerance, None where that is no number.
        tolerance: how much may be lost, None for what is absolute or skipped.
        reason: why that much.
        detail: one sentence on what was found.
    """

    quantity: str
    result: Result
    baseline: str
    measured: str
    allowed: str
    loss: float | None
    tolerance: float | None
    reason: str
    detail: str


@dataclass(frozen=True)
class Measurement:
    """A quantity as it was measured: result (a bool: pass or fail), texts (baseline, measured, allowed), loss, one sentence.

    `tolerance` stands for the baseline's own where that was widened.
    """

    result: Result | bool
    texts: tuple[str, str, str]
    loss: float
    detail: str
    tolerance: float | None = None


def row(quantity: str, tolerance: Tolerance, found: Measurement) -> Row:
    """The row of a measurement."""
    result: Result = ("pass" if found.result else "fail") if isinstance(found.result, bool) else found.result
    allowed = tolerance.tolerance if found.tolerance is None else found.tolerance
    loss = found.loss if math.isfinite(found.loss) else None
    return Row(quantity, result, *found.texts, loss, allowed, tolerance.reason, found.detail)


def skipped_row(quantity: str, why: str) -> Row:
    """A quantity that neither side can have."""
    return Row(quantity, "skipped", "", "", "", None, None, "", why)


def missing_row(quantity: str, what: str) -> Row:
    """A quantity that the build has to have and has not: a failure."""
    return Row(quantity, "fail", "", "missing", "", None, None, "What is missing cannot have passed.", what)


def is_number(value: float | None) -> bool:
    """Whether a figure is there and finite."""
    return value is not None and math.isfinite(value)


def listed(names: list[str] | tuple[str, ...]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
