"""Rows of the regression gate: one quantity of a build compared with its baseline, and its tolerance."""

import math
from dataclasses import dataclass, field
from typing import Literal

Result = Literal["pass", "fail", "inconclusive", "skipped"]
_LISTED = 5


@dataclass(frozen=True)
class Tolerance:
    """The largest loss allowed, in the unit of the quantity, and the reason in one sentence."""

    tolerance: float
    reason: str


@dataclass(frozen=True)
class Recorded:
    """What a baseline keeps of a task: figures (None: not measured), and each side's answers, packed by the task."""

    figures: dict[str, float | None] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One quantity.

    Attributes:
        baseline, measured, allowed: formatted values.
        loss: in the unit of the tolerance; None where it is not finite.
        tolerance: largest loss allowed, None for what is absolute or skipped; `reason` says why.
        detail: one sentence on the result.
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
    """A measured quantity: result (bool: pass or fail), texts (baseline, measured, allowed), loss, one sentence.

    `tolerance` replaces the baseline's where that was widened.
    """

    result: Result | bool
    texts: tuple[str, str, str]
    loss: float
    detail: str
    tolerance: float | None = None


def row(quantity: str, tolerance: Tolerance, measurement: Measurement) -> Row:
    """The row of a measurement."""
    result: Result | bool = measurement.result
    if isinstance(result, bool):
        result = "pass" if result else "fail"
    allowed = tolerance.tolerance if measurement.tolerance is None else measurement.tolerance
    loss = measurement.loss if math.isfinite(measurement.loss) else None
    return Row(quantity, result, *measurement.texts, loss, allowed, tolerance.reason, measurement.detail)


def skipped_row(quantity: str, why: str) -> Row:
    """The row of a quantity that cannot be compared."""
    return Row(quantity, "skipped", "", "", "", None, None, "", why)


def missing_row(quantity: str, what: str) -> Row:
    """The row of a quantity that the build must have and lacks: a failure."""
    return Row(quantity, "fail", "", "missing", "", None, None, "What is missing cannot have passed.", what)


def is_number(value: float | None) -> bool:
    """Whether a figure is present and finite."""
    return value is not None and math.isfinite(value)


def listed(names: list[str] | tuple[str, ...]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
