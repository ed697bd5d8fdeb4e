"""A fixed sample of what each linear layer reads: patches and the range of every channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.refine.readers import Float32, Reader
from calib.taps import TappedGraph, check_batch

PATCHES = 512
"""Patches per tensor: for sums over K up to a few thousand, the error of a candidate is known within a few percent."""
IMAGES = 256
"""Images that the sample is drawn from."""


@dataclass(frozen=True)
class Sample:
    """What the readers of one tensor see.

    Attributes:
        patches: (n, G, K), see `calib.refine.readers`.
        low, high: (C,) smallest and largest value of each channel over all positions of the images.
    """

    patches: Float32
    low: Float32
    high: Float32


def take_samples(
    model: onnx.ModelProto, readers: Mapping[str, tuple[Reader, ...]], batches: Iterable[NDArray[Any]], threads: int
) -> dict[str, Sample]:
    """Sample every tensor of `readers` on the first batches, in the order given, that hold IMAGES images.

    Equal inputs give equal samples. Batches stay whole, since a graph may take one size only.
    """
    tapped = TappedGraph(model, tuple(readers), threads=threads)
    patches: dict[str, list[Float32]] = {tensor: [] for tensor in readers}
    low: dict[str, Float32] = {}
    high: dict[str, Float32] = {}
    random = np.random.default_rng(0)
    images = 0
    for batch in batches:
        check_batch(batch, images)
        share = min(len(batch), IMAGES - images)
        images += len(batch)
        for tensor, values in tapped(batch).items():
            geometry = readers[tensor][0].geometry
            patches[tensor].append(geometry.patches(values, -(-PATCHES * share // IMAGES), random))
            others = tuple(a for a in range(values.ndim) if a != (1 if geometry.kernel else values.ndim - 1))
            smallest, largest = values.min(axis=others), values.max(axis=others)
            low[tensor] = np.minimum(low.get(tensor, smallest), smallest)
            high[tensor] = np.maximum(high.get(tensor, largest), largest)
        if images >= IMAGES:
            break
    return {tensor: Sample(np.concatenate(parts), low[tensor], high[tensor]) for tensor, parts in patches.items()}
