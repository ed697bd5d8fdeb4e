"""Bounds of the numbers that options take: what lies outside would take hours or all memory, or fail inside a library.

The help texts of the options and the errors name the same bounds. Standard library only.
"""

from dataclasses import dataclass

from calib.errors import UsageError


@dataclass(frozen=True)
class Bounds:
    """The least and the largest number allowed."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:,} to {self.most:,}"


IMAGES = Bounds(1, 1_000_000)
"""Images that calibrate, judge or are packed."""
SYNTHETIC_IMAGES = Bounds(1, 4096)
EMULATED_IMAGES = Bounds(0, 64)
"""One batch, with every rounding emulated."""
IMAGE_SIZE = Bounds(16, 1024)
BUDGET = Bounds(0, 100)
"""Percentage points of what the task loses: of top-1 for a classification."""
SQNR_DB = Bounds(0, 200)
"""dB; FP32 itself carries about 150."""
COSINE = Bounds(0, 1)
PREPROCESSED_SIZE = Bounds(1, 4096)
SCALE = Bounds(1, 65535)
PIXEL = Bounds(0, 255)
SEED = Bounds(0, 2**32 - 1)
WORKSPACE_MIB = Bounds(1, 1 << 20)
THREADS = Bounds(0, 1024)
TOP = Bounds(1, 1000)
FRAMES = Bounds(1, 1_000_000_000)
FPS = Bounds(0.001, 1000)
RUN_S = Bounds(0.001, 31_536_000)
"""A year."""
RECONNECT_S = Bounds(0, 31_536_000)
RUNS = Bounds(1, 1_000_000)
WARM_UP = Bounds(0, 1_000_000)
MEASURED_S = Bounds(0, 86_400)


def check_bounds(option: str, value: float | None, bounds: Bounds) -> None:
    """Raise UsageError for a value outside the bounds, NaN included; None is an option that was not given."""
    if value is not None and not bounds.least <= value <= bounds.most:
        raise UsageError(f"{option} is out of range", where=option, found=value, allowed=bounds)
