"""Checks of options that several commands share, made before any file is opened."""

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from cyclopts import Parameter

from calib.errors import DataError, UsageError
from edge.option_bounds import BUDGET, COSINE, IMAGES, SQNR_DB, check_bounds
from edge.stability.verdict import Stability
from engines.layer_records import TensorInfo

LARGEST_ANSWERS_BYTES = 1 << 31
"""Outputs of both sides that are held in memory: for a task that needs all at once, and to pack them into a bundle."""
CALIB_IMAGES = 512
"""Default number of calibration images, and the number that an error about too few recommends."""

ISLANDS: dict[str, Stability] = {"unstable": "unstable", "at-risk": "at risk"}
"""Value of --islands -> the verdict from which a place that no scale makes stable computes in FP32."""


SEQUENTIAL: Final = "sequential"
"""Value of the options that set how many images judge: in growing groups, until the verdict is decided."""
JudgingImages = int | Literal["all", "sequential"]


def image_count_option(_type: Any, tokens: Sequence[Any]) -> JudgingImages:
    """N, all or sequential. Raises UsageError."""
    text = str(tokens[0].value)
    if text in ("all", SEQUENTIAL):
        return text  # type: ignore[return-value]  # one of the two literals
    try:
        return int(text)
    except ValueError as error:
        allowed = f"a number of images, all, or {SEQUENTIAL}"
        raise UsageError("unknown number of images", where=tokens[0].keyword, found=text, allowed=allowed) from error


JUDGING_IMAGES = Parameter(converter=image_count_option, n_tokens=1, accepts_keys=False)


def image_count(images: JudgingImages | None) -> int | None:
    """The number given, None where there is none."""
    return images if isinstance(images, int) else None


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


def check_islands(islands: str) -> None:
    """Raise UsageError for an unknown value of --islands."""
    if islands not in ISLANDS:
        raise UsageError(
            "unknown kind of place to compute in FP32", where="--islands", found=islands, allowed=", ".join(ISLANDS)
        )


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


def check_answers_fit(outputs: tuple[TensorInfo, ...], images: int, option: str) -> None:
    """Raise DataError for outputs of so many images that both sides' do not fit in memory; `option` sets their number."""
    each = 2 * output_bytes(outputs)
    most = LARGEST_ANSWERS_BYTES // max(each, 1)
    if images > most:
        raise DataError(
            "the outputs of so many images are too large to be compared",
            where=", ".join(f"{output.name} {list(output.shape)}" for output in outputs)[:200],
            found=f"{images:,} images, {images * each / 1e9:,.1f} GB of outputs on both sides",
            allowed=f"{LARGEST_ANSWERS_BYTES / 1e9:.1f} GB",
            next_command=f"{option} {most}" if most else "end the graph before it: --outputs NAME",
        )


def output_bytes(outputs: tuple[TensorInfo, ...]) -> int:
    """Size of all outputs of one image; a free axis counts as 1."""
    return sum(math.prod(abs(size) for size in output.shape[1:]) * np.dtype(output.dtype).itemsize for output in outputs)
