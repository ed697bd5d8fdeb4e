"""torch program to TensorRT engine, inside torch-tensorrt's own environment: a program of its own, files in and files out.

    PYTHON -I worker.py REQUEST.json

    REQUEST.json  {"program": a .pt2 file, "input": {"name", "shapes"}, "output": name, "steps": {submodule: node},
                   "compute_capabilities": ["8.6", ...], empty for this machine's GPU, "optimization_level": int | null,
                   "engine": to write, "facts": to write}
                  or {"inspect": an engine, "facts": to write}
    facts         {"tensorrt": its version, "libraries": the others} or {"inspector": the engine's layers, as JSON text}
    stdout        lines "share 0.5": how much is done
    stderr        what the libraries complain of, the reason last
    exit code     0 done, 2 the program is refused, 4 the libraries do not load, 5 the disk is full

torch-tensorrt is made for a CUDA build of torch and a GPU. Converting needs neither: where there is no GPU, `_pretend` answers
what it asks of one, and none of the answers enters an engine. Only stdlib, torch and torch-tensorrt are imported, and the two
operators of the file beside this one.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import importlib.util
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

DONE, REFUSED, ABSENT, DISK_FULL = 0, 2, 4, 5
CONVERTED = 0.5
"""Share of the work after which TensorRT has its network."""

_STEP = re.compile(r"\bsteps\.(n\d+)/")
_NAMED = ("MATRIX_MULTIPLY", "CONVOLUTION")
"""Kinds of TensorRT layers that get the name of their ONNX node, which is what the plan's text shows."""


def main(request_path: str) -> int:
    """Do what a request asks; the exit code."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    tempfile.tempdir = str(Path(request_path).parent)
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(_OneLine())
    log.setLevel(logging.CRITICAL)  # at import torch-tensorrt complains of every optional library
    logging.getLogger().addHandler(log)
    try:
        library = Library(importlib.import_module("torch"))
    except Exception as error:  # noqa: BLE001  # torch-tensorrt raises bare exceptions and shows their reason
        return _end(ABSENT, error)
    log.setLevel(logging.WARNING)
    try:
        facts = library.inspect(request) if "inspect" in request else library.convert(request)
        Path(request["facts"]).write_text(json.dumps(facts), encoding="utf-8")
    except OSError as error:
        return _end(DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else REFUSED, error)
    except Exception as error:  # noqa: BLE001  # whatever the libraries raise, the caller is told their words
        return _end(REFUSED, error)
    return DONE


class Library:
    """torch-tensorrt, loaded, with converters for the two Q/DQ operators; Exception of any kind where it does not load.

    Attributes:
        trt: the TensorRT module that torch-tensorrt uses.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        alone = not torch.cuda.is_available()
        if alone:
            _pretend(torch)
        with mock.patch("os.path.isfile", _no_native_library) if alone else contextlib.nullcontext():
            self._torch_tensorrt = importlib.import_module("torch_tensorrt")
        self._interpreter = importlib.import_module("torch_tensorrt.dynamo.conversion._TRTInterpreter")
        self.trt = self._interpreter.trt
        _load_beside("torch_qdq").register()
        self._add_converters()
        self._keep_int8_weights()

    def convert(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build the engine of a request, write it, and tell what it was built with."""
        torch, image = self._torch, request["input"]
        self._name_and_aim(request)
        if request["compute_capabilities"]:
            self.trt.Runtime = _NoRuntime
        program = torch.export.load(request["program"])
        shapes = [tuple(shape) for shape in image["shapes"]]
        ranged = ("min_shape", "opt_shape", "max_shape")
        sizes = dict(zip(("shape",) if len(shapes) == 1 else ranged, shapes, strict=True))
        level = request["optimization_level"]
        engine = self._torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            inputs=[self._torch_tensorrt.Input(**sizes, dtype=torch.float32)],
            device=self._torch_tensorrt.Device(gpu_id=0),
            disable_tf32=True,  # FP32 means FP32
            **({} if level is None else {"optimization_level": level}),
        )
        Path(request["engine"]).write_bytes(engine)
        names = ("torch-tensorrt-rtx", "torch-tensorrt", "torch")
        return {
            "tensorrt": self.trt.__version__,
            "libraries": ", ".join(f"{name} {v}" for name in names if (v := _version(name))),
        }

    def inspect(self, request: dict[str, Any]) -> dict[str, Any]:
        """What TensorRT's engine inspector says of an engine, on the GPU that it is for."""
        runtime = self.trt.Runtime(self._interpreter.TRT_LOGGER)
        engine = runtime.deserialize_cuda_engine(Path(request["inspect"]).read_bytes())
        if engine is None:
            raise ValueError("TensorRT does not load the engine")
        told = engine.create_engine_inspector().get_engine_information(self.trt.LayerInformationFormat.JSON)
        return {"inspector": told}

    def _add_converters(self) -> None:
        """What TensorRT makes of `ufovit::quantize` and `ufovit::dequantize`: its own two layers."""
        add = importlib.import_module("torch_tensorrt.dynamo.conversion").dynamo_tensorrt_converter
        operators, trt, torch = self._torch.ops.ufovit, self.trt, self._torch
        floats = {torch.float32: trt.float32, torch.float16: trt.float16}

        def quantize(ctx: Any, _target: Any, args: Any, _kwargs: Any, name: str) -> Any:
            x, scale, axis = args
            inputs = self._tensor(ctx, x, f"{name}_x"), self._tensor(ctx, scale, f"{name}_scale")
            return _finish(ctx.net.add_quantize(*inputs, trt.int8), scale, axis, name)

        def dequantize(ctx: Any, _target: Any, args: Any, _kwargs: Any, name: str) -> Any:
            q, scale, axis = args
            inputs = self._tensor(ctx, q, f"{name}_q"), self._tensor(ctx, scale, f"{name}_scale")
            return _finish(ctx.net.add_dequantize(*inputs, floats[scale.dtype]), scale, axis, name)

        for operator, converter in ((operators.quantize, quantize), (operators.dequantize, dequantize)):
            add(operator.default, supports_dynamic_shapes=True)(converter)

    def _tensor(self, ctx: Any, value: Any, name: str) -> Any:
        """A value as a TensorRT tensor; a constant becomes a constant layer, whose memory `ctx` keeps."""
        if isinstance(value, self.trt.ITensor):
            return value
        with importlib.import_module("torch.fx.experimental.proxy_tensor").unset_fake_temporarily():
            array = value.detach().cpu().contiguous().numpy()
        ctx.cpu_weights_reference_holder.append(array)
        layer = ctx.net.add_constant(tuple(array.shape), self.trt.Weights(array))
        layer.name = name
        return layer.get_output(0)

    def _keep_int8_weights(self) -> None:
        """Dequantizing a constant must not be computed beforehand: the weight would enter the engine as floats."""
        folder = importlib.import_module("torch_tensorrt.dynamo.lowering.passes.constant_folding")._TorchTensorRTConstantFolder
        kept = (self._torch.ops.ufovit.quantize.default, self._torch.ops.ufovit.dequantize.default)
        before = folder.is_impure
        folder.is_impure = lambda self, node: node.target in kept or before(self, node)

    def _name_and_aim(self, request: dict[str, Any]) -> None:
        """Have the network named after the ONNX graph, and built for the GPUs asked for, once it is converted."""
        trt, before = self.trt, self._interpreter.TRTInterpreter._populate_trt_builder_config

        def populate(interpreter: Any, *args: Any, **kwargs: Any) -> Any:
            network, image = interpreter.ctx.net, request["input"]
            _name_layers(network, request["steps"])
            network.get_input(0).name, network.get_output(0).name = image["name"], request["output"]
            if interpreter.optimization_profiles:
                profile = interpreter.builder.create_optimization_profile()
                profile.set_shape(image["name"], *image["shapes"])
                interpreter.optimization_profiles[:] = [profile]
            config = before(interpreter, *args, **kwargs)
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            wanted = [getattr(trt.ComputeCapability, f"SM{c.replace('.', '')}") for c in request["compute_capabilities"]]
            if wanted:
                config.num_compute_capabilities = len(wanted)
            for i, capability in enumerate(wanted):
                config.set_compute_capability(capability, i)
            _tell(CONVERTED)
            config.progress_monitor = _make_monitor(trt)
            return config

        self._interpreter.TRTInterpreter._populate_trt_builder_config = populate


class _NoRuntime:
    """In the place of TensorRT's Runtime: torch-tensorrt loads a plan only to serialize it again, and that takes its GPU."""

    def __init__(self, *_args: Any) -> None:
        self._plan: Any = None

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        self._plan = plan
        return self

    def serialize(self) -> Any:
        return self._plan


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname}: {' '.join(record.getMessage().split())[:2000]}"


def _pretend(torch: Any) -> None:
    """Answer what torch-tensorrt asks of a CUDA build of torch and its GPU while it is imported and while it converts."""
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
    """`os.path.isfile`, for which torch-tensorrt's own shared libraries, which need CUDA's torch, are not there."""
    return os.path.join("torch_tensorrt", "lib") not in str(path) and real(path)  # noqa: PTH118  # a part of a path


def _name_layers(network: Any, steps: dict[str, str]) -> None:
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        found = _STEP.search(layer.name)
        node = steps.get(found[1]) if found else None
        if node is not None:
            layer.metadata = f"[ONNX Layer: {node}]"
            if layer.type.name in _NAMED:
                layer.name = node


def _finish(layer: Any, scale: Any, axis: int, name: str) -> Any:
    layer.name = name
    if len(scale.shape):
        layer.axis = axis
    return layer.get_output(0)


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
                _tell(CONVERTED + (1 - CONVERTED) * (step + 1) / self._steps)
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _load_beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _tell(share: float) -> None:
    print(f"share {share:.3f}", flush=True)


def _end(code: int, error: Exception) -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
