"""Images through the float graph into observers: the calibration table.

The planned tensors become outputs of a copy of the graph in memory, ONNX Runtime computes them batch by batch, each array
goes into its histogram and is dropped. Memory does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import InputError
from calib.files import sha256_bytes
from calib.graph import index_graph, load_graph
from calib.observers import Histogram
from calib.ranges import method as range_method
from calib.scheme import QuantPlan
from calib.table import MIN_IMAGES, CalibrationTable, TensorScale


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
    config: CollectConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> CalibrationTable:
    """Calibrate the activations of a plan.

    Args:
        onnx_path: float graph with one input, the one that `plan` was made for.
        batches: arrays (B, ...) float32 as the graph takes them; B may vary.
        plan: which tensors need a scale.
        data_sha256: digest of the images, for the table.
        config: method, threads, fewest images.
        progress: called after each batch with the number of images done so far.

    Raises InputError for fewer than `min_images` images, for arrays that the graph does not take, for NaN or infinities in
    any tensor (named), and for a tensor without a usable range (named).
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
    tensors = {name: TensorScale.from_amax(reduce(h), name, config.method) for name, h in histograms.items()}
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
    session, source, taps, onnx_sha256 = _tapped_session(onnx_path, plan, threads)
    histograms = {name: Histogram(name) for name in plan.activations}
    images = 0
    for batch in batches:
        _check_batch(batch, images)
        if source in histograms:
            histograms[source].update(batch)
        for name, values in zip(taps, _run(session, taps, source, batch), strict=True):
            histograms[name].update(values)
        images += len(batch)
        if progress is not None:
            progress(images)
    return histograms, images, onnx_sha256


def _tapped_session(onnx_path: Path, plan: QuantPlan, threads: int) -> tuple[Any, str, list[str], str]:
    """ONNX Runtime session with the planned tensors as outputs, name of the input, names of the outputs, digest."""
    import onnxruntime as ort

    model, data = load_graph(onnx_path)
    index = index_graph(model)
    if len(index.inputs) != 1:
        raise InputError("calibration needs a graph with one input", where=onnx_path, found=", ".join(index.inputs))
    taps = [name for name in plan.activations if name != index.inputs[0]]
    unknown = [name for name in taps if name not in index.producers]
    if unknown:
        raise InputError("plan was made for another graph", where=onnx_path, found=f"no tensor {', '.join(unknown[:4])}")
    declared = {v.name for v in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps if name not in declared)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        raise InputError("ONNX Runtime refuses the graph", where=onnx_path, found=error) from error
    return session, index.inputs[0], taps, sha256_bytes(data)


def _check_batch(batch: NDArray[Any], images: int) -> None:
    if batch.dtype != np.float32 or batch.ndim < 1:
        raise InputError("not a batch of images", found=f"{batch.dtype} {batch.shape}", allowed="float32 (B, ...)")
    if not np.isfinite(batch).all():
        raise InputError("NaN or infinity in the images", where=f"batch after image {images}", allowed="finite numbers")


def _run(session: Any, taps: list[str], source: str, batch: NDArray[Any]) -> list[NDArray[Any]]:
    if not taps:
        return []
    try:
        return list(session.run(taps, {source: batch}))
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        expected = session.get_inputs()[0].shape
        raise InputError(
            "the graph does not take these images", found=f"{batch.dtype} {batch.shape}: {error}", allowed=expected
        ) from error
