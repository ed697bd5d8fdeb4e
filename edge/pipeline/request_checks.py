"""Checks that several requests share: cheap ones, made before any file is opened."""

from __future__ import annotations

import math

from calib.errors import DataError, UsageError

CALIB_IMAGES = 512
"""Calibration images by default, and the number that a refusal of fewer recommends."""


def check_budget(max_drop_points: float) -> None:
    """Raise UsageError for what is no accuracy budget in percentage points."""
    if not 0 <= max_drop_points < math.inf:  # NaN, too
        raise UsageError("accuracy budget is no number of points", found=max_drop_points, allowed="0 or more")


def check_counts(**counts: int | None) -> None:
    """Raise UsageError for a count below 1; keywords are named as the options are, None is an option that was not given."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be positive", found=count, allowed="1 or more")


def check_quantization(method: str, effort: str) -> None:
    """Raise InputError for a calibration method or an effort that does not exist, listing those that do."""
    from calib.calibrators import range_method
    from calib.refine.effort import resolve_effort

    resolve_effort(effort)
    range_method(method)


def check_calibration_images(count: int, where: object, next_command: str) -> None:
    """Raise DataError for fewer images than scales can rest on."""
    from calib.calibration_table import MIN_IMAGES

    if count < MIN_IMAGES:
        raise DataError(
            "too few calibration images",
            where=where,
            found=count,
            allowed=f"at least {MIN_IMAGES}, better {CALIB_IMAGES}",
            next_command=next_command,
        )
