#!/usr/bin/env python3
"""Run onnxruntime.quantization.quantize_static on the graph and images of the benchmark.

    python onnxruntime_ptq.py FOLDER CONFIG OUT.onnx        CONFIG is SETTING-CALIBRATOR; --list prints all

Settings, after `quant_pre_process` in each:
    default      the library's defaults
    trt          accepted by TensorRT: signed, symmetric, weights per channel, biases in float
    trt_inputs   the same with Q/DQ on the inputs of Conv, MatMul and Gemm only

Calibrators collect the activations of all images first. If memory is not sufficient for that, the library's option
CalibStridedMinMax makes every calibrator process one batch at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from images import batch_size, load_calibration
from record import Attempt, Job, parse_job, run

SETTINGS = ("default", "trt", "trt_inputs")
CALIBRATORS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
CONFIGS = tuple(f"{setting}-{calibrator}" for setting in SETTINGS for calibrator in CALIBRATORS)
QUANTIZED_OPS = ["Conv", "MatMul", "Gemm"]


def main() -> None:
    job = parse_job("onnxruntime", CONFIGS, ("onnxruntime", "onnx", "numpy"))
    bounded = Attempt(partial(load, job, strided=True), "batch by batch (CalibStridedMinMax)")
    run(job, (Attempt(partial(load, job, strided=False)), bounded))


def options(setting: str) -> dict[str, Any]:
    """Arguments of quantize_static for a setting."""
    from onnxruntime.quantization import QuantType

    if setting == "default":
        return {"extra_options": {}}
    extra: dict[str, Any] = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    supported: dict[str, Any] = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    if setting == "trt":
        return {**supported, "extra_options": extra}
    extra["OpTypesToExcludeOutputQuantization"] = QUANTIZED_OPS
    return {**supported, "op_types_to_quantize": QUANTIZED_OPS, "extra_options": extra}


def pre_process(graph: Path, prepared: Path) -> str:
    """Run the library's preprocessing, without symbolic shape inference if that fails; returns a remark on it or ""."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(graph), str(prepared))
    except Exception as error:  # noqa: BLE001  # for any failure, the library suggests one option
        quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
        return f"quant_pre_process fails ({type(error).__name__}) without skip_symbolic_shape"
    return ""


def make_reader(images: npt.NDArray[np.float32], name: str, size: int) -> Any:
    """The library's data reader: batches of `size`, all or in a range that CalibStridedMinMax sets."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self.position, self.end = 0, len(images)

        def __len__(self) -> int:
            return len(images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.position, self.end = start_index, end_index

        def get_next(self) -> dict[str, Any] | None:
            if self.position >= self.end:
                return None
            self.position += size
            return {name: images[self.position - size : self.position]}

    return Reader()


def load(job: Job, *, strided: bool) -> Callable[[], str]:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, quantize_static

    images = load_calibration(job.folder)
    graph = job.folder / "fp32.onnx"
    source = onnx.load(graph, load_external_data=False).graph.input[0]
    fixed = source.type.tensor_type.shape.dim[0].dim_value
    size = fixed or batch_size(len(images))
    reader = make_reader(images, source.name, size)
    setting, calibrator = job.config.split("-")
    arguments = options(setting)
    if strided:
        arguments["extra_options"]["CalibStridedMinMax"] = size

    def quantize() -> str:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder, "prepared.onnx")
            remark = pre_process(graph, prepared)
            quantize_static(
                str(prepared),
                str(job.out),
                reader,
                quant_format=QuantFormat.QDQ,
                calibrate_method=getattr(CalibrationMethod, CALIBRATORS[calibrator]),
                **arguments,
            )
        return remark

    return quantize


if __name__ == "__main__":
    main()
