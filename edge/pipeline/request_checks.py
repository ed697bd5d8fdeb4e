"""Checks of options that several commands share, made before any file is opened."""

from calib.errors import DataError
from edge.option_bounds import BUDGET, COSINE, IMAGES, SQNR_DB, check_bounds

CALIB_IMAGES = 512
"""Default number of calibration images, and the number that an error about too few recommends."""


def check_budget(max_drop_points: float | None, min_sqnr_db: float | None = None, min_cosine: float | None = None) -> None:
    """Raise UsageError for a budget out of bounds."""
    check_bounds("--max-drop", max_drop_points, BUDGET)
    check_bounds("--min-sqnr", min_sqnr_db, SQNR_DB)
    check_bounds("--min-cosine", min_cosine, COSINE)


def check_counts(**counts: int | None) -> None:
    """Raise UsageError for numbers of images out of bounds; keywords are named as the options are."""
    for name, count in counts.items():
        check_bounds(f"--{name.replace('_', '-')}", count, IMAGES)


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
