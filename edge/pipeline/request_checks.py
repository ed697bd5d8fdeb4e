"""Checks of options that several commands share, made before any file is opened."""

import math

from calib.errors import DataError, UsageError

CALIB_IMAGES = 512
"""Default number of calibration images, and the number that an error about too few recommends."""


def check_budget(max_drop_points: float | None) -> None:
    """Raise UsageError unless an accuracy budget is a non-negative number of percentage points, or not given."""
    if max_drop_points is not None and not 0 <= max_drop_points < math.inf:  # NaN, too
        what = "--max-drop must be a non-negative number of percentage points"
        raise UsageError(what, found=max_drop_points, allowed="0 or more")


def check_counts(**counts: int | None) -> None:
    """Raise UsageError for a count below 1; keywords are named as the options are, None is an option that was not given."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be positive", found=count, allowed="1 or more")


def check_quantization(method: str, effort: str) -> None:
    """Raise InputError for an unknown calibration method or effort, listing the known ones."""
    from calib.calibrators import range_method
    from calib.refine.effort import resolve_effort

    resolve_effort(effort)
    range_method(method)


def check_calibration_images(count: int, where: object, next_command: str) -> None:
    """Raise DataError for too few images to calibrate on."""
    from calib.calibration_table import MIN_IMAGES

    if count < MIN_IMAGES:
        raise DataError(
            "too few calibration images",
            where=where,
            found=count,
            allowed=f"at least {MIN_IMAGES}, better {CALIB_IMAGES}",
            next_command=next_command,
        )
