"""Streaming first and second moments of a linear layer's inputs, in the float graph and in the graph quantized so far."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.refine.linear_consumers import Float32, Geometry
from calib.scales import QMAX, QMIN

Float64 = NDArray[np.float64]

PATCHES_PER_IMAGE = (32, 128)
"""Fewest and most patches sampled from an image: as many as a patch is long, within these limits."""
PART_BYTES = 1 << 24
LARGEST_K = 4096
"""Patch length up to which second moments, K x K numbers, are kept."""


@dataclass(frozen=True)
class Moments:
    """Moments of the patches x of one tensor in the float graph, and of x', the same patches quantized.

    Attributes:
        count: number of patches.
        mean, quantized_mean: (G, K) of x and of x'.
        gram: (G, K, K) mean of x'^T x'; None for patches longer than LARGEST_K.
        cross: (G, K, K) mean of x'^T (x - x'), likewise.
    """

    count: int
    mean: Float64
    quantized_mean: Float64
    gram: Float64 | None = None
    cross: Float64 | None = None


def measure_moments(geometry: Geometry, scale: float, pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Moments:
    """Moments over pairs of activations of some images, computed by the float graph and by the graph quantized so far."""
    sums: dict[str, Float64] = {}
    total = 0
    for x, quantized in _in_large_parts(_sampled(geometry, np.float32(scale), pairs)):
        total += len(x)
        terms = {"mean": x.sum(axis=0, dtype=np.float64), "quantized_mean": quantized.sum(axis=0, dtype=np.float64)}
        if x.shape[2] <= LARGEST_K:
            terms |= {"gram": _products(quantized, quantized), "cross": _products(quantized, x - quantized)}
        for name, values in terms.items():
            sums[name] = sums[name] + values if name in sums else values
    return Moments(total, **{name: values / total for name, values in sums.items()})


def _sampled(
    geometry: Geometry, step: np.float32, pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]
) -> Iterator[tuple[Float32, Float32]]:
    """Patches of the float activation and of the quantized one, at the same positions."""
    for seed, (in_float, quantized_so_far) in enumerate(pairs):
        count = int(np.clip(geometry.length(in_float), *PATCHES_PER_IMAGE)) * len(in_float)
        x, inputs = (geometry.patches(v, count, np.random.default_rng(seed)) for v in (in_float, quantized_so_far))
        yield x, np.clip(np.rint(inputs / step), QMIN, QMAX) * step


def _in_large_parts(parts: Iterable[tuple[Float32, Float32]]) -> Iterator[tuple[Float32, Float32]]:
    """The same patches, joined to PART_BYTES or more: products of a few patches are slow."""
    joined: list[tuple[Float32, Float32]] = []
    for part in parts:
        joined.append(part)
        if sum(x.nbytes for x, _ in joined) >= PART_BYTES:
            yield _joined(joined)
            joined = []
    if joined:
        yield _joined(joined)


def _joined(parts: Sequence[tuple[Float32, Float32]]) -> tuple[Float32, Float32]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([quantized for _, quantized in parts])


def _products(a: Float32, b: Float32) -> Float64:
    """(n, G, K) and (n, G, L) -> (G, K, L) sum over n of a^T b."""
    if a.shape[1] == 1:
        return np.asarray(a[:, 0].T @ b[:, 0], np.float64)[None]
    left, right = (np.ascontiguousarray(v.transpose(1, 0, 2)) for v in (a, b))
    return np.asarray(left.transpose(0, 2, 1) @ right, np.float64)
