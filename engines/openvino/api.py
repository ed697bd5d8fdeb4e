"""The only module that imports OpenVINO: load it, read a graph, compile it for the CPU.

On CPUs with bfloat16 arithmetic OpenVINO computes FP32 graphs in bfloat16 by default, which costs most of the digits: the
`INFERENCE_PRECISION_HINT` is set to f32. INT8 kernels follow from the Q/DQ of the graph and are not affected.

A graph is compiled for one batch size. With a free batch OpenVINO infers the shapes of every node at every run and fuses fewer
of them: at batch 1 the INT8 ufovit_t takes a fifth longer (docs/cpu-latency.md).

`import openvino` sends usage data through the package openvino-telemetry, if that is installed. Here the package is hidden
from it, and OpenVINO falls back to its own stub: nothing is sent.
"""

import importlib
import io
import sys
from pathlib import Path
from typing import Any

from calib.errors import GraphError, MissingError

INSTALL = "pip install 'ufovit-edge[openvino]'"
_TELEMETRY = "openvino_telemetry"


def load() -> Any:
    """Import the module `openvino`, without its telemetry. Raises MissingError."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # None makes an import fail, by Python's own rule
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        what = "openvino is not installed" if absent else "openvino does not load"
        raise MissingError(what, found=None if absent else error, next_command=INSTALL) from error


def read_graph(data: bytes, path: Path) -> Any:
    """The OpenVINO model of the bytes of an ONNX file. Raises GraphError naming `path` where OpenVINO refuses it."""
    try:
        return load().Core().read_model(io.BytesIO(data))
    except MissingError:
        raise
    except Exception as error:  # pybind's exceptions share no public base class
        raise _load_error(path, error) from error


def compile_graph(model: Any, path: Path, *, batch: int | None = None, threads: int = 0) -> Any:
    """Compile a model for the latency of one request on the CPU.

    Args:
        model: of `read_graph`; it is not changed.
        path: named in errors.
        batch: size of the first axis of its inputs; None keeps it as it is.
        threads: threads inside one request; 0 lets OpenVINO use every core.

    Raises GraphError where OpenVINO cannot.
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        if batch is not None:
            model = model.clone()
            model.reshape({tensor: [batch, *list(tensor.partial_shape)[1:]] for tensor in model.inputs})
        return load().Core().compile_model(model, "CPU", settings)
    except Exception as error:  # as above
        raise _load_error(path, error) from error


def error_text(error: Exception) -> str:
    """OpenVINO's message without the source locations that it begins with."""
    lines = [line.strip() for line in str(error).splitlines()]
    message = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(message or lines)[:400]


def _load_error(path: Path, error: Exception) -> GraphError:
    return GraphError("OpenVINO cannot load the graph", where=path, found=error_text(error), allowed="an ONNX file")
