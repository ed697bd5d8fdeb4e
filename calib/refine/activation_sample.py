"""Sample the inputs of linear layers on calibration images: patches, and the range of every channel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.ort_session import TappedGraph
from calib.refine.linear_consumers import Float32, Reader

PATCHES = 512
"""Patches per tensor: for sums over K up to a few thousand, they give the error of a candidate within a few percent."""

TENSOR_BYTES = 1 << 22
"""Largest size of the patches of a tensor, which are kept for all tensors at once. Only a depthwise Conv, and a few layers with
K of thousands, would have more: their error is a mean over many channels, so that fewer patches suffice.
"""


@dataclass(frozen=True)
class ActivationSample:
    """Sampled values of one activation tensor.

    Attributes:
        patches: (n, G, K) of the second half of the images, see `calib.refine.linear_consumers`.
        low, high: (C,) smallest and largest value of each channel over all positions of all images.
        early: (C,) largest magnitude of each channel in the first half of the images: factors made from it are evaluated on
            other images.
    """

    patches: Float32
    low: Float32
    high: Float32
    early: Float32


def take_samples(
    model: onnx.ModelProto, readers: Mapping[str, tuple[Reader, ...]], batches: Sequence[NDArray[Any]], threads: int
) -> dict[str, ActivationSample]:
    """Sample every tensor of `readers` on some images; a single batch is both halves. Equal inputs give equal samples."""
    tapped = TappedGraph(model, tuple(readers), threads=threads)
    patches: dict[str, list[Float32]] = {tensor: [] for tensor in readers}
    low: dict[str, Float32] = {}
    high: dict[str, Float32] = {}
    early: dict[str, Float32] = {}
    random = np.random.default_rng(0)
    half = len(batches) // 2
    share = -(-PATCHES // (len(batches) - half))
    for number, batch in enumerate(batches):
        for tensor, values in tapped(batch).items():
            geometry = readers[tensor][0].geometry
            if number >= half:
                size = 4 * geometry.groups * geometry.length(values) * (len(batches) - half)
                patches[tensor].append(geometry.patches(values, max(1, min(share, TENSOR_BYTES // size)), random))
            others = tuple(a for a in range(values.ndim) if a != (1 if geometry.kernel else values.ndim - 1))
            smallest, largest = values.min(axis=others), values.max(axis=others)
            low[tensor] = np.minimum(low.get(tensor, smallest), smallest)
            high[tensor] = np.maximum(high.get(tensor, largest), largest)
            if number < max(half, 1):
                early[tensor] = np.maximum(np.abs(low[tensor]), np.abs(high[tensor]))
    return {t: ActivationSample(np.concatenate(taken), low[t], high[t], early[t]) for t, taken in patches.items()}
