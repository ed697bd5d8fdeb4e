"""Some of many images, spread evenly over all of them: the same ones every time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def spread_evenly(size: int, count: int) -> npt.NDArray[np.int64]:
    """Ascending positions of `count` of `size` images, from the first to the last; all of them where there are no more."""
    if count >= size:
        return np.arange(size)
    return np.asarray(np.linspace(0, size - 1, count).round().astype(np.int64))
