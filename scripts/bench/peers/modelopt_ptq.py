#!/usr/bin/env python3
"""Run modelopt.onnx.quantization.quantize on the graph and images of the benchmark, on the CPU, with FP32 around INT8.

    python modelopt_ptq.py FOLDER CONFIG OUT.onnx        CONFIG is the calibration method, max or entropy

All other options have their defaults.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from images import batch_size, load_calibration
from record import Attempt, Job, parse_job, run

CONFIGS = ("max", "entropy")


def main() -> None:
    job = parse_job("modelopt", CONFIGS, ("nvidia-modelopt", "onnxruntime-gpu", "onnx", "torch", "numpy"))
    run(job, (Attempt(partial(load, job)),))


def load(job: Job) -> Callable[[], str]:
    import onnx
    from modelopt.onnx.quantization import quantize as modelopt_quantize  # installed in its own environment

    images = load_calibration(job.folder)
    name = onnx.load(job.folder / "fp32.onnx").graph.input[0].name
    shape = "x".join(str(side) for side in (batch_size(len(images)), *images.shape[1:]))

    def quantize() -> str:
        with tempfile.TemporaryDirectory() as folder:  # intermediate graphs are written next to input and output
            graph, quantized = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
            shutil.copyfile(job.folder / "fp32.onnx", graph)
            modelopt_quantize(
                str(graph),
                quantize_mode="int8",
                calibration_data={name: images},
                calibration_method=job.config,
                calibration_shapes=f"{name}:{shape}",
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                output_path=str(quantized),
                log_level="WARNING",
            )
            shutil.copyfile(quantized, job.out)
        return ""

    return quantize


if __name__ == "__main__":
    main()
