#!/usr/bin/env python3
"""Run nncf.quantize, with its ONNX backend, on the graph and images of the benchmark.

    python nncf_ptq.py FOLDER CONFIG OUT.onnx

Settings; all calibration images are used (subset_size), all other options have their defaults:
    default                 without a model type
    transformer             model type "transformer", whose activations have zero-points, which TensorRT rejects
    transformer_symmetric   the same with preset "performance": no zero-points
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from images import batches, load_calibration
from record import Attempt, Job, parse_job, run

CONFIGS = ("default", "transformer", "transformer_symmetric")


def main() -> None:
    job = parse_job("nncf", CONFIGS, ("nncf", "onnxruntime", "onnx", "numpy"))
    run(job, (Attempt(partial(load, job)),))


def load(job: Job) -> Callable[[], str]:
    import nncf  # installed in its own environment
    import onnx

    images = load_calibration(job.folder)
    model = onnx.load(job.folder / "fp32.onnx")
    name = model.graph.input[0].name

    def quantize() -> str:
        items = nncf.Dataset(list(batches(images, 1)), lambda item: {name: item})
        quantized = nncf.quantize(
            model,
            items,
            subset_size=len(images),
            model_type=None if job.config == "default" else nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE if job.config == "transformer_symmetric" else None,
        )
        onnx.save(quantized, job.out)
        return ""

    return quantize


if __name__ == "__main__":
    main()
