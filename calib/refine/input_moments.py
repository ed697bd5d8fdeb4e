"""Streaming first and second moments of a linear layer's inputs, in the float graph and in the graph quantized so far."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.refine.linear_consumers import Float32, Geometry
from calib.scales import QMAX, QMIN

Float64 = NDArray[np.float64]

PATCHES_PER_IMAGE = (32, 128)
"""Fewest and most patches sampled from an image: as many as a patch is long, within these limits."""
LARGEST_K = 4096
"""Patch length up to which second moments, K x K numbers, are kept."""


class Moments:
    """Moments of the patches x of one tensor in the float graph, and of x', the same patches quantized; `count` patches."""

    def __init__(self, geometry: Geometry, scale: float) -> None:
        self._geometry = geometry
        self._scale = np.float32(scale)
        self.count = 0
        self._sums: dict[str, Float64] = {}

    def update(self, in_float: NDArray[Any], quantized_so_far: NDArray[Any], seed: int) -> None:
        """Add the activation of some images, computed by the float graph and by the graph quantized so far."""
        count = int(np.clip(self._geometry.length(in_float), *PATCHES_PER_IMAGE)) * len(in_float)
        x = self._geometry.patches(in_float, count, np.random.default_rng(seed))
        inputs = self._geometry.patches(quantized_so_far, count, np.random.default_rng(seed))
        quantized = np.clip(np.rint(inputs / self._scale), QMIN, QMAX) * self._scale
        self.count += len(x)
        self._add("mean", x.sum(axis=0, dtype=np.float64))
        self._add("quantized_mean", quantized.sum(axis=0, dtype=np.float64))
        if x.shape[2] <= LARGEST_K:
            self._add("gram", _products(quantized, quantized))
            self._add("cross", _products(quantized, x - quantized))

    @property
    def mean(self) -> Float64:
        """(G, K) mean of x."""
        return self._sums["mean"] / self.count

    @property
    def quantized_mean(self) -> Float64:
        """(G, K) mean of x'."""
        return self._sums["quantized_mean"] / self.count

    @property
    def gram(self) -> Float64 | None:
        """(G, K, K) mean of x'^T x'; None for patches longer than LARGEST_K."""
        return self._sums["gram"] / self.count if "gram" in self._sums else None

    @property
    def cross(self) -> Float64 | None:
        """(G, K, K) mean of x'^T (x - x'); None for patches longer than LARGEST_K."""
        return self._sums["cross"] / self.count if "cross" in self._sums else None

    def _add(self, name: str, values: Float64) -> None:
        self._sums[name] = self._sums[name] + values if name in self._sums else values


def _products(a: Float32, b: Float32) -> Float64:
    """(n, G, K) and (n, G, L) -> (G, K, L) sum over n of a^T b."""
    if a.shape[1] == 1:
        return np.asarray(a[:, 0].T @ b[:, 0], np.float64)[None]
    left, right = (np.ascontiguousarray(v.transpose(1, 0, 2)) for v in (a, b))
    return np.asarray(left.transpose(0, 2, 1) @ right, np.float64)
