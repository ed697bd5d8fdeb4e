"""OpenVINO on the CPU: FP32 graphs as they are, symmetric Q/DQ graphs in INT8.

On CPUs with bfloat16 arithmetic OpenVINO computes FP32 graphs in bfloat16 by default, which costs most of the digits: the
`INFERENCE_PRECISION_HINT` is set to f32. INT8 kernels follow from the Q/DQ of the graph and are not affected.

`import openvino` sends usage data through the package openvino-telemetry, if that is installed. Here the package is hidden
from it, and OpenVINO falls back to its own stub: nothing is sent.
"""

import importlib
import io
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import DataError, GraphError, InputError, MissingError
from edge.option_bounds import THREADS, check_bounds
from edge.runtime.runner import Images, Logits, Runner, check_images

INSTALL = "pip install 'ufovit-edge[openvino]'"
_TELEMETRY = "openvino_telemetry"


class OpenVinoRunner(Runner):
    """Runs an ONNX file with one float32 input (B, ...) and one output on the CPU, tuned for latency.

    Any thread may call it: threads share the compiled network; each has its own inference request and buffers.

    Args:
        path: the ONNX file; with `data`, what errors name.
        threads: threads inside one request; 0 lets OpenVINO use every core.
        data: bytes of a graph to run instead of the file.

    Attributes:
        image_shape: (3, S, S), of one image.
        precision: of the computation outside INT8, as OpenVINO reports it: "f32".

    Raises MissingError where OpenVINO is not installed or does not load; GraphError for a file that it refuses, or with other
    inputs or outputs.
    """

    def __init__(self, path: Path, threads: int = 0, *, data: bytes | None = None) -> None:
        check_bounds("--threads", threads, THREADS)
        self._path = path
        core = load().Core()
        try:
            model = core.read_model(io.BytesIO(path.read_bytes() if data is None else data))
        except OSError as error:
            raise GraphError("graph cannot be read", where=path, found=error.strerror) from error
        except Exception as error:  # pybind's exceptions share no public base class
            raise _load_error(path, error) from error
        self.image_shape = _image_shape(model, path)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled: Any | None = core.compile_model(model, "CPU", settings)
        except Exception as error:  # as above
            raise _load_error(path, error) from error
        self.precision = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self._requests = threading.local()

    def __call__(self, images: Images, /) -> Logits:
        """See `Runner`."""
        compiled = self._compiled
        if compiled is None:
            raise InputError("the runner is closed", where=self._path)
        check_images(images, self.image_shape)
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = compiled.create_infer_request()
        try:
            request.infer([images], share_inputs=True)
        except Exception as error:  # as above
            found = f"{images.shape}: {_message(error)}"
            raise DataError("the graph does not take these images", where=self._path, found=found) from error
        return np.array(request.get_output_tensor(0).data, np.float32)  # a copy: the request's own is overwritten

    def close(self) -> None:
        """Release the compiled network; the requests of other threads are released with the runner."""
        self._compiled = None
        self._requests = threading.local()


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


def _image_shape(model: Any, path: Path) -> tuple[int, ...]:
    """Shape of one image. Raises GraphError unless the model has one float32 input (B, fixed ...) and one output."""
    if (len(model.inputs), len(model.outputs)) != (1, 1):
        raise GraphError(
            "the graph must have one input and one output",
            where=path,
            found=f"{len(model.inputs)} inputs, {len(model.outputs)} outputs",
        )
    (tensor,) = model.inputs
    shape, kind = tensor.partial_shape, tensor.element_type.get_type_name()
    fixed = not shape.rank.is_dynamic and len(shape) > 1 and not any(d.is_dynamic for d in list(shape)[1:])
    if kind != "f32" or not fixed:
        found, allowed = f"{kind} {shape}", "float32 (B, C, H, W), everything but B fixed"
        raise GraphError("the graph's input is not a batch of images", where=path, found=found, allowed=allowed)
    return tuple(int(d.get_length()) for d in list(shape)[1:])


def _load_error(path: Path, error: Exception) -> GraphError:
    return GraphError("OpenVINO cannot load the graph", where=path, found=_message(error), allowed="an ONNX file")


def _message(error: Exception) -> str:
    """OpenVINO's message without the source locations that it begins with."""
    lines = [line.strip() for line in str(error).splitlines()]
    message = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(message or lines)[:400]
