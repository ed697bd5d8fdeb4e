"""Compile a torch program to a TensorRT engine: a stand-alone script for torch-tensorrt's environment, files in and files out.

    PYTHON -I worker.py REQUEST.json

    REQUEST.json  {"program": a .pt2 file, "input": {"name", "shapes", "dtype"}, "outputs": names, "steps": {submodule: node},
                   "compute_capabilities": ["8.6", ...], empty for this machine's GPU, "optimization_level": int | null,
                   "engine": output path, "facts": output path}
                  or {"inspect": an engine, "facts": output path}
    facts         {"tensorrt": its version} or {"inspector": the engine's layers, as JSON text}
    stdout        lines "share 0.5": progress
    stderr        warnings and errors of the libraries, the cause of a failure last
    exit code     0 done, 2 the program is rejected, 4 the libraries do not load, 5 the disk is full

torch-tensorrt expects a CUDA build of torch and a GPU. Conversion needs neither: without a GPU, `_fake_cuda` answers its
queries, and none of the answers enters an engine. Only the standard library, torch, torch-tensorrt and `torch_qdq.py` next
to this file are imported.
"""

import contextlib
import errno
import importlib
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

DONE, REJECTED, NOT_INSTALLED, DISK_FULL = 0, 2, 4, 5
CONVERSION_SHARE = 0.5
"""Progress once the TensorRT network is converted."""

_STEP = re.compile(r"\bsteps\.(n\d+)/")
_RENAMED_TYPES = ("MATRIX_MULTIPLY", "CONVOLUTION")
"""TensorRT layer types that get the name of their ONNX node, which the plan's text shows."""


def main(request_path: str) -> int:
    """Run a request and return the exit code."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    tempfile.tempdir = str(Path(request_path).parent)
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(_SingleLineFormatter())
    log.setLevel(logging.CRITICAL)  # on import torch-tensorrt warns about every optional library
    logging.getLogger().addHandler(log)
    try:
        library = Library(importlib.import_module("torch"))
    except Exception as error:  # noqa: BLE001  # torch-tensorrt raises bare exceptions
        return _report_error(NOT_INSTALLED, error)
    log.setLevel(logging.WARNING)
    try:
        facts = library.inspect(request) if "inspect" in request else library.convert(request)
        Path(request["facts"]).write_text(json.dumps(facts), encoding="utf-8")
    except OSError as error:
        return _report_error(DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else REJECTED, error)
    except Exception as error:  # noqa: BLE001  # the libraries raise anything; the caller gets the message
        return _report_error(REJECTED, error)
    return DONE


class Library:
    """torch-tensorrt, loaded, with converters for the two Q/DQ operators; raises any Exception if it does not load."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        no_gpu = not torch.cuda.is_available()
        if no_gpu:
            _fake_cuda(torch)
        with mock.patch("os.path.isfile", _no_native_library) if no_gpu else contextlib.nullcontext():
            self._torch_tensorrt = importlib.import_module("torch_tensorrt")
        self._interpreter = importlib.import_module("torch_tensorrt.dynamo.conversion._TRTInterpreter")
        self.trt = self._interpreter.trt
        sys.path.append(str(Path(__file__).parent))
        importlib.import_module("torch_qdq").register()
        self._add_converters()
        self._keep_int8_weights()

    def convert(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build and write the engine of a request; returns the version of TensorRT."""
        torch, image = self._torch, request["input"]
        self._configure_network(request)
        if request["compute_capabilities"]:
            self.trt.Runtime = _PassThroughRuntime
        shapes = [tuple(shape) for shape in image["shapes"]]
        range_keys = ("min_shape", "opt_shape", "max_shape")
        sizes = dict(zip(("shape",) if len(shapes) == 1 else range_keys, shapes, strict=True))
        level = request["optimization_level"]
        engine = self._torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            torch.export.load(request["program"]),
            inputs=[self._torch_tensorrt.Input(**sizes, dtype=getattr(torch, image["dtype"]))],
            device=self._torch_tensorrt.Device(gpu_id=0),
            disable_tf32=True,  # FP32 means FP32
            **({} if level is None else {"optimization_level": level}),
        )
        Path(request["engine"]).write_bytes(engine)
        return {"tensorrt": self.trt.__version__}

    def inspect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Read the layer information of an engine from TensorRT's engine inspector, on the GPU that it is built for."""
        runtime = self.trt.Runtime(self._interpreter.TRT_LOGGER)
        engine = runtime.deserialize_cuda_engine(Path(request["inspect"]).read_bytes())
        if engine is None:
            raise ValueError("TensorRT does not load the engine")
        inspector = engine.create_engine_inspector()
        return {"inspector": inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)}

    def _add_converters(self) -> None:
        """Convert `ufovit::quantize` and `ufovit::dequantize` to TensorRT's Quantize and Dequantize layers."""
        register = importlib.import_module("torch_tensorrt.dynamo.conversion").dynamo_tensorrt_converter
        trt, torch = self.trt, self._torch
        types = {torch.float32: trt.float32, torch.float16: trt.float16}

        def add_converter(operator: str, operand: str) -> None:
            def convert(ctx: Any, _target: Any, args: Any, _kwargs: Any, name: str) -> Any:
                value, scale, axis = args
                inputs = self._tensor(ctx, value, f"{name}_{operand}"), self._tensor(ctx, scale, f"{name}_scale")
                output_type = trt.int8 if operator == "quantize" else types[scale.dtype]
                layer = getattr(ctx.net, f"add_{operator}")(*inputs, output_type)
                layer.name = name
                if len(scale.shape):
                    layer.axis = axis
                return layer.get_output(0)

            register(getattr(torch.ops.ufovit, operator).default, supports_dynamic_shapes=True)(convert)

        add_converter("quantize", "x")
        add_converter("dequantize", "q")

    def _tensor(self, ctx: Any, value: Any, name: str) -> Any:
        """Convert a value to a TensorRT tensor; a constant becomes a constant layer, whose memory `ctx` owns."""
        if isinstance(value, self.trt.ITensor):
            return value
        with importlib.import_module("torch.fx.experimental.proxy_tensor").unset_fake_temporarily():
            array = value.detach().cpu().contiguous().numpy()
        ctx.cpu_weights_reference_holder.append(array)
        layer = ctx.net.add_constant(tuple(array.shape), self.trt.Weights(array))
        layer.name = name
        return layer.get_output(0)

    def _keep_int8_weights(self) -> None:
        """Exclude Q/DQ from constant folding, which would put the weights into the engine as floats."""
        folder = importlib.import_module("torch_tensorrt.dynamo.lowering.passes.constant_folding")._TorchTensorRTConstantFolder
        qdq = (self._torch.ops.ufovit.quantize.default, self._torch.ops.ufovit.dequantize.default)
        original = folder.is_impure
        folder.is_impure = lambda self, node: node.target in qdq or original(self, node)

    def _configure_network(self, request: dict[str, Any]) -> None:
        """Patch torch-tensorrt to name the converted network after the ONNX graph and to build for the requested GPUs."""
        trt, original = self.trt, self._interpreter.TRTInterpreter._populate_trt_builder_config

        def populate(interpreter: Any, *args: Any, **kwargs: Any) -> Any:
            network, image = interpreter.ctx.net, request["input"]
            _name_layers(network, request["steps"])
            network.get_input(0).name = image["name"]
            for number, name in enumerate(request["outputs"]):
                network.get_output(number).name = name
            if interpreter.optimization_profiles:
                profile = interpreter.builder.create_optimization_profile()
                profile.set_shape(image["name"], *image["shapes"])
                interpreter.optimization_profiles[:] = [profile]
            config = original(interpreter, *args, **kwargs)
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            if capabilities := request["compute_capabilities"]:
                config.num_compute_capabilities = len(capabilities)
            for i, capability in enumerate(capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), i)
            _report_progress(CONVERSION_SHARE)
            config.progress_monitor = _make_monitor(trt)
            return config

        self._interpreter.TRTInterpreter._populate_trt_builder_config = populate


class _PassThroughRuntime:
    """Stands in for TensorRT's Runtime: torch-tensorrt loads a plan, which requires its GPU, only to serialize it again."""

    def __init__(self, *_args: Any) -> None:
        self._plan: Any = None

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        self._plan = plan
        return self

    def serialize(self) -> Any:
        return self._plan


class _SingleLineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname}: {' '.join(record.getMessage().split())[:2000]}"


def _fake_cuda(torch: Any) -> None:
    """Answer torch-tensorrt's queries about CUDA and the GPU, made while it is imported and while it converts."""
    answers: tuple[tuple[Any, str, Any], ...] = (
        (torch._C, "_CudaDeviceProperties", type("_CudaDeviceProperties", (), {})),  # a type annotation
        (torch.cuda, "current_device", lambda: 0),  # the default device's number
        (torch.cuda, "get_device_capability", lambda *_device: (8, 0)),  # is this a Jetson?
        (torch.cuda, "mem_get_info", lambda *_device: (1 << 40, 1 << 40)),  # is there memory to convert on the GPU?
    )
    for holder, name, answer in answers:
        if holder is torch.cuda or not hasattr(holder, name):
            setattr(holder, name, answer)


def _no_native_library(path: Any, real: Callable[[Any], bool] = os.path.isfile) -> bool:
    """`os.path.isfile` that hides torch-tensorrt's own shared libraries, which require a CUDA build of torch."""
    return os.path.join("torch_tensorrt", "lib") not in str(path) and real(path)  # noqa: PTH118  # a part of a path


def _name_layers(network: Any, steps: dict[str, str]) -> None:
    for layer in map(network.get_layer, range(network.num_layers)):
        match = _STEP.search(layer.name)
        if match and (node := steps.get(match[1])):
            layer.metadata = f"[ONNX Layer: {node}]"
            if layer.type.name in _RENAMED_TYPES:
                layer.name = node


def _make_monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base class is known only when the library is loaded
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outer, self._steps = "", 1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outer, self._steps = phase_name, max(num_steps, 1)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outer:
                _report_progress(CONVERSION_SHARE + (1 - CONVERSION_SHARE) * (step + 1) / self._steps)
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _report_progress(share: float) -> None:
    print(f"share {share:.3f}", flush=True)


def _report_error(code: int, error: Exception) -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
