"""Graph in, engine and receipt out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from calib.errors import InputError
from engines.manifest import TensorInfo
from engines.receipt import Receipt, check_receipt, make_receipt

if TYPE_CHECKING:
    import onnx

    from engines.backend import Advance, Backend
    from engines.layers import Layer
    from engines.spec import BuildSpec

BACKENDS: dict[str, str] = {"ort": "engines.ort", "trt_rtx": "engines.trt_rtx"}
"""Backend name -> module, whose BACKEND is loaded when first used."""

_FLOAT_MAJORITY = 0.5
"""Share of MACs above which a float graph is of a type; islands of another type are the rest."""


@dataclass(frozen=True)
class BuiltEngine:
    """A finished engine.

    Attributes:
        data: bytes of the engine file.
        receipt: read from `data`.
        backend: key of BACKENDS.
        version: of the backend's library.
        compute_capabilities: GPU generations that it runs on, empty for a CPU.
        input: the image; a symbolic batch is -1.
        output: the logits; a symbolic batch is -1.
        seconds: duration of the build, receipt included.
        log: what the backend's library said.
    """

    data: bytes
    receipt: Receipt
    backend: str
    version: str
    compute_capabilities: tuple[str, ...]
    input: TensorInfo
    output: TensorInfo
    seconds: float
    log: tuple[str, ...]


def build(spec: BuildSpec, progress: Advance = lambda _share: None) -> BuiltEngine:
    """Build an engine in memory and hold its receipt against the spec. Writes nothing.

    Raises:
        InputError: a graph that is missing, broken, or asks for nothing of the precision; an unknown backend.
        BackendError: the backend refuses the graph (an InputError that holds the library's log).
        VerdictError: less than `spec.floor` of the MACs runs in INT8.
        MissingError: the backend's library is not installed.
    """
    backend = load_backend(spec.target.backend)
    model = _load_model(spec)
    from engines.layers import read_layers

    layers = read_layers(model)
    _check_request(spec, layers)
    image, logits = _ports(model)
    start = time.monotonic()
    built = backend.build(spec, model, progress)
    receipt = make_receipt(layers, backend.evidence(built.data, model), spec.precision)
    check_receipt(receipt, spec.floor)
    return BuiltEngine(
        data=built.data,
        receipt=receipt,
        backend=spec.target.backend,
        version=built.version,
        compute_capabilities=spec.target.compute_capabilities,
        input=image,
        output=logits,
        seconds=time.monotonic() - start,
        log=built.log,
    )


def load_backend(name: str) -> Backend:
    """The backend of a name. Raises InputError listing the known names."""
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}", allowed=", ".join(BACKENDS))
    backend: Backend = import_module(BACKENDS[name]).BACKEND
    return backend


def _load_model(spec: BuildSpec) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    try:
        model = onnx.load(spec.onnx)
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise InputError("file not found", where=spec.onnx, next_command="ufovit build") from error
    except OSError as error:
        raise InputError("file cannot be read", where=spec.onnx, found=error.strerror) from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise InputError("not a valid ONNX model", where=spec.onnx, found=error, next_command="ufovit build") from error
    return model


def _check_request(spec: BuildSpec, layers: tuple[Layer, ...]) -> None:
    """Refuse a graph that asks for another precision altogether: no backend could make it good."""
    macs = dict.fromkeys((layer.requested for layer in layers), 0)
    for layer in layers:
        macs[layer.requested] += layer.macs
    share = macs.get(spec.precision, 0) / max(sum(macs.values()), 1)
    hint = {"int8": "a graph with Q/DQ", "fp16": "a typed FP16 graph", "fp32": "a float FP32 graph"}[spec.precision]
    if share <= (0 if spec.precision == "int8" else _FLOAT_MAJORITY):
        found = f"layers in {', '.join(sorted(macs)) or 'no precision: nothing in it multiplies'}"
        raise InputError(f"the graph does not ask for {spec.precision}", where=spec.onnx, found=found, allowed=hint)


def _ports(model: onnx.ModelProto) -> tuple[TensorInfo, TensorInfo]:
    weights = {i.name for i in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        found = f"{len(inputs)} inputs, {len(model.graph.output)} outputs"
        raise InputError("the graph is no classifier", found=found, allowed="one input, one output")
    return _port(inputs[0]), _port(model.graph.output[0])


def _port(value: onnx.ValueInfoProto) -> TensorInfo:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return TensorInfo(value.name, shape, tensor_dtype_to_np_dtype(tensor.elem_type).name)
