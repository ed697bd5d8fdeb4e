"""Moments of what each linear layer reads, in the float graph and in the graph quantized so far: streaming, of fixed size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.edit import prefix
from calib.refine.readers import Float32, Geometry, Reader
from calib.scales import QMAX
from calib.taps import TappedGraph, check_batch

Float64 = NDArray[np.float64]

PATCHES_PER_IMAGE = 128
ENOUGH_IMAGES, ENOUGH_PATCHES = 128, 16384
"""Where every tensor of a stage has seen so many, further images change little."""
LARGEST_K = 4096
"""Patch length up to which second moments are kept: K x K numbers."""


class Moments:
    """Moments of the patches x of one tensor in the float graph, and of x', the same patches quantized.

    Attributes:
        count: patches seen.
        mean: (G, K) of x.
        quantized_mean: (G, K) of x'.
        gram: (G, K, K) mean of x'^T x', None for patches longer than LARGEST_K.
        cross: (G, K, K) mean of x'^T (x - x'), likewise.
    """

    def __init__(self, geometry: Geometry, scale: float) -> None:
        self._geometry = geometry
        self._scale = np.float32(scale)
        self.count = 0
        self._sums: dict[str, Float64] = {}

    def update(self, exact: NDArray[Any], found: NDArray[Any], seed: int) -> None:
        """Add an activation of some images, as the float graph has it and as the graph quantized so far has it."""
        count = PATCHES_PER_IMAGE * len(exact)
        x = self._geometry.patches(exact, count, np.random.default_rng(seed))
        seen = self._geometry.patches(found, count, np.random.default_rng(seed))
        quantized = np.clip(np.rint(seen / self._scale), -QMAX, QMAX) * self._scale
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
        """(G, K, K) mean of x'^T x'."""
        return self._sums["gram"] / self.count if "gram" in self._sums else None

    @property
    def cross(self) -> Float64 | None:
        """(G, K, K) mean of x'^T (x - x')."""
        return self._sums["cross"] / self.count if "cross" in self._sums else None

    def _add(self, name: str, values: Float64) -> None:
        self._sums[name] = self._sums[name] + values if name in self._sums else values


def measure_moments(
    exact: onnx.ModelProto,
    found: onnx.ModelProto,
    readers: Mapping[str, tuple[Reader, ...]],
    scales: Mapping[str, float],
    batches: Iterable[NDArray[Any]],
    threads: int,
) -> dict[str, Moments]:
    """Moments of every tensor of `readers` over all images, or over enough of them.

    Args:
        exact: float graph.
        found: the same graph with what is quantized so far.
        readers: tensor -> its readers; both graphs hold the tensors.
        scales: scale of each tensor.
        batches: arrays (B, ...) float32 as the graphs take them.
        threads: threads of ONNX Runtime.
    """
    tensors = tuple(readers)
    graphs = [TappedGraph(prefix(model, tensors), tensors, threads=threads) for model in (exact, found)]
    moments = {t: Moments(rs[0].geometry, scales[t]) for t, rs in readers.items()}
    images = 0
    for number, batch in enumerate(batches):
        check_batch(batch, images)
        images += len(batch)
        x, seen = (graph(batch) for graph in graphs)
        for tensor in tensors:
            moments[tensor].update(x[tensor], seen[tensor], number)
        if images >= ENOUGH_IMAGES and all(m.count >= ENOUGH_PATCHES for m in moments.values()):
            break
    return moments


def _products(a: Float32, b: Float32) -> Float64:
    """(n, G, K) and (n, G, L) -> (G, K, L) sum over n of a^T b."""
    left, right = (np.ascontiguousarray(v.transpose(1, 0, 2)) for v in (a, b))
    return np.asarray(left.transpose(0, 2, 1) @ right, np.float64)
