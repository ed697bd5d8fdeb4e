"""Collect activation ranges: run calibration images through the float graph and compute the calibration table.

The planned tensors become outputs of a copy of the graph in memory, ONNX Runtime computes them batch by batch, each array is
added to its histogram and dropped. Memory does not depend on the number of images.

The same batches, in any order and any number of them at once, give the same table to the byte, on one machine and at one
number of `threads`. The same images in other batches, or with other `threads`, do so where ONNX Runtime's kernels add in one
order whatever the batch. On both graphs of scripts/bench/peers.sh they do, in every tensor and to the last bit; but ReduceMean
over some hundred tokens adds in another order in a batch of one image, or of fewer images than threads.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calib.calibration_table import MIN_IMAGES, CalibrationTable, TensorScale
from calib.calibrators import range_method
from calib.errors import DataError, InputError, UsageError
from calib.files import sha256_bytes
from calib.graph import load_graph
from calib.ort_session import TappedGraph, checked_batches, in_small_runs
from calib.parallel import ordered_map
from calib.qdq_placement import QuantPlan
from calib.split_half import Halves

LARGEST_SETTLED_SHIFT = 0.02
"""Median range shift above which more images improve the ranges; measured in docs/calibration-benchmarks.md."""

Batches = Iterable[NDArray[Any]]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class CollectConfig:
    """How to calibrate.

    Attributes:
        method: name in `calib.calibrators.METHODS`, or "percentile:P".
        threads: ONNX Runtime threads of one run.
        at_once: concurrent runs of the graph in this process; each holds a batch's tensors in memory.
        min_images: fewest images that give a table.
        synthetic: the images are synthetic; the table is stamped.
        preprocess_sha256: digest of the preprocessing from images to batches, for the table; "" for arrays passed as they are.
    """

    method: str = "mse"
    threads: int = 1
    at_once: int = 1
    min_images: int = MIN_IMAGES
    synthetic: bool = False
    preprocess_sha256: str = ""

    def __post_init__(self) -> None:
        range_method(self.method)
        for name in ("threads", "at_once", "min_images"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be positive", found=getattr(self, name))

    def check_count(self, images: int) -> None:
        """Raises DataError for fewer than `min_images` images."""
        if images < self.min_images:
            raise DataError(
                "too few calibration images",
                found=images,
                allowed=f"at least {self.min_images}; 512 is a good number",
                next_command="pass more images: --calib-data of `ufovit build`, --images of `ufovit calibrate`",
            )


def collect_table(
    onnx_path: Path,
    batches: Batches,
    plan: QuantPlan,
    *,
    data_sha256: str,
    bounds: Mapping[str, float] | None = None,
    config: CollectConfig | None = None,
    progress: Progress = lambda _images: None,
) -> CalibrationTable:
    """Calibrate the activations of a plan.

    Args:
        onnx_path: float graph with one input, the one that `plan` was made for.
        batches: arrays (B, ...) float32 as the graph takes them; B may vary.
        data_sha256: digest of the images, for the table.
        bounds: tensor -> largest magnitude on any image, where that is proven; amax never exceeds it.
        progress: called after each batch with the number of images done so far.

    Raises DataError for fewer than `min_images` images, for arrays that the graph does not take, for NaN or infinities in any
    tensor (named) and for a tensor without a usable range; InputError for one that exceeds its bound (named).
    """
    config = config or CollectConfig()
    halves, onnx_sha256 = observe(onnx_path, batches, plan, config, progress)
    return make_table(halves, onnx_sha256=onnx_sha256, data_sha256=data_sha256, bounds=bounds or {}, config=config)


def make_table(
    halves: Halves, *, onnx_sha256: str, data_sha256: str, bounds: Mapping[str, float], config: CollectConfig
) -> CalibrationTable:
    """The table of histograms that `observe` collected; arguments and errors see `collect_table`."""
    images, histograms = sum(halves.images), halves.total()
    config.check_count(images)
    for name, histogram in histograms.items():
        if histogram.amax > bounds.get(name, math.inf):
            raise InputError(
                "a tensor exceeds the bound that was proven for it",
                where=f"tensor {name}",
                found=f"{histogram.amax:.6g}",
                allowed=f"at most {bounds[name]:.6g}",
            )
    method = range_method(config.method)
    tensors = {name: TensorScale.from_amax(method(h), name, config.method, bounds.get(name)) for name, h in histograms.items()}
    return CalibrationTable(
        onnx_sha256,
        data_sha256,
        images,
        config.method,
        tensors,
        config.synthetic,
        preprocess_sha256=config.preprocess_sha256,
        range_shift=halves.shift({name: scale.amax for name, scale in tensors.items()}, method),
    )


def range_shift_warning(table: CalibrationTable) -> str | None:
    """A sentence for the user when the ranges still depend on the images; None when they have settled or it is not known."""
    shift = table.range_shift
    if shift is None or shift.median <= LARGEST_SETTLED_SHIFT:
        return None
    return (
        f"the ranges have not settled: from one half of the {table.images:,} images to the other they move by "
        f"{shift.median:.1%} in the median over the tensors (settled: at most {LARGEST_SETTLED_SHIFT:.0%}), by "
        f"{shift.largest:.0%} at {shift.tensor}; calibrate on more images"
    )


def observe(
    onnx_path: Path, batches: Batches, plan: QuantPlan, config: CollectConfig, progress: Progress = lambda _images: None
) -> tuple[Halves, str]:
    """Histograms of the planned activations by halves of the images, and the SHA-256 of the graph that was run."""
    model, data = load_graph(onnx_path)
    onnx_sha256 = sha256_bytes(data)
    del data
    tapped = TappedGraph(model, plan.activations, threads=config.threads, where=onnx_path)
    halves = Halves(plan.activations)
    parts = in_small_runs(model, plan.activations, checked_batches(batches))
    runs = ordered_map(lambda batch: (batch, tapped(batch)), parts, config.at_once)
    for batch, tensors in runs:
        halves.update(batch, tensors)
        del tensors  # freed before waiting for the next ones
        progress(sum(halves.images))
    return halves, onnx_sha256
