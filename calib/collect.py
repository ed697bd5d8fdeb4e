"""Images through the float graph into observers: the calibration table.

The planned tensors become outputs of a copy of the graph in memory, ONNX Runtime computes them batch by batch, each array
goes into its histogram and is dropped. Memory does not depend on the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calib.errors import InputError
from calib.files import sha256_bytes
from calib.graph import load_graph
from calib.observers import Histogram
from calib.ranges import method as range_method
from calib.scheme import QuantPlan
from calib.table import MIN_IMAGES, CalibrationTable, TensorScale
from calib.taps import TappedGraph, check_batch


@dataclass(frozen=True)
class CollectConfig:
    """How to calibrate.

    Attributes:
        method: name in `calib.ranges.METHODS`, or "percentile:P".
        threads: threads of ONNX Runtime.
        min_images: fewest images that give a table.
        synthetic: the images are made up; the table is stamped.
    """

    method: str = "mse"
    threads: int = 1
    min_images: int = MIN_IMAGES
    synthetic: bool = False

    def __post_init__(self) -> None:
        range_method(self.method)
        if self.threads < 1 or self.min_images < 1:
            raise InputError("threads and min_images must be positive", found=f"{self.threads}, {self.min_images}")


def collect(
    onnx_path: Path,
    batches: Iterable[NDArray[Any]],
    plan: QuantPlan,
    *,
    data_sha256: str,
    bounds: Mapping[str, float] | None = None,
    config: CollectConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> CalibrationTable:
    """Calibrate the activations of a plan.

    Args:
        onnx_path: float graph with one input, the one that `plan` was made for.
        batches: arrays (B, ...) float32 as the graph takes them; B may vary.
        plan: which tensors need a scale.
        data_sha256: digest of the images, for the table.
        bounds: tensor -> largest magnitude that it can have on any image, where that is known by proof; never exceeded by amax.
        config: method, threads, fewest images.
        progress: called after each batch with the number of images done so far.

    Raises InputError for fewer than `min_images` images, for arrays that the graph does not take, for NaN or infinities in
    any tensor (named), for a tensor without a usable range, and for one that exceeds its bound (named).
    """
    config = config or CollectConfig()
    histograms, images, onnx_sha256 = observe(onnx_path, batches, plan, threads=config.threads, progress=progress)
    if images < config.min_images:
        raise InputError(
            "too few calibration images",
            found=images,
            allowed=f"at least {config.min_images}; 512 is a good number",
            next_command="pass --calib-data with more images",
        )
    reduce = range_method(config.method)
    bounds = bounds or {}
    for name, histogram in histograms.items():
        if histogram.amax > bounds.get(name, math.inf):
            raise InputError(
                "a tensor exceeds the bound that was proven for it",
                where=f"tensor {name}",
                found=f"{histogram.amax:.6g}",
                allowed=f"at most {bounds[name]:.6g}",
            )
    tensors = {name: TensorScale.from_amax(reduce(h), name, config.method, bounds.get(name)) for name, h in histograms.items()}
    return CalibrationTable(onnx_sha256, data_sha256, images, config.method, tensors, config.synthetic)


def observe(
    onnx_path: Path,
    batches: Iterable[NDArray[Any]],
    plan: QuantPlan,
    *,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Histogram], int, str]:
    """Histograms of the planned activations, the number of images seen, and the SHA-256 of the graph that was run."""
    model, data = load_graph(onnx_path)
    tapped = TappedGraph(model, plan.activations, threads=threads, where=onnx_path)
    histograms = {name: Histogram(name) for name in plan.activations}
    images = 0
    for batch in batches:
        check_batch(batch, images)
        for name, values in tapped(batch).items():
            histograms[name].update(values)
        images += len(batch)
        if progress is not None:
            progress(images)
    return histograms, images, sha256_bytes(data)
