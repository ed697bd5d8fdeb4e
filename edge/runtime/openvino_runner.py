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

from calib.errors import DataError, GraphError, InputError, MissingError
from edge.option_bounds import THREADS, check_bounds
from edge.runtime.runner import Images, Runner, check_images, check_outputs, run_in_batches
from edge.tasks.task import Outputs

INSTALL = "pip install 'ufovit-edge[openvino]'"
_TELEMETRY = "openvino_telemetry"
_TYPES = {"f32": "float32", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64"}


class OpenVinoRunner(Runner):
    """Runs an ONNX file with one input (B, ...) and any outputs on the CPU, tuned for latency.

    Any thread may call it: threads share the compiled network; each has its own inference request and buffers.

    Args:
        path: the ONNX file; with `data`, what errors name.
        threads: threads inside one request; 0 lets OpenVINO use every core.
        data: bytes of a graph to run instead of the file.

    Attributes:
        image_shape: of one image, such as (3, S, S).
        dtype: of the images.
        precision: of the computation outside INT8, as OpenVINO reports it: "f32".

    Raises MissingError where OpenVINO is not installed or does not load; GraphError for a file that it refuses, or with other
    inputs.
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
        self.image_shape, self.dtype, self._fixed_batch = _image_type(model, path)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled: Any | None = core.compile_model(model, "CPU", settings)
        except Exception as error:  # as above
            raise _load_error(path, error) from error
        self.precision = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self._requests = threading.local()

    def __call__(self, images: Images, /) -> Outputs:
        """See `Runner`."""
        check_images(images, self.image_shape, self.dtype)
        return run_in_batches(self._run, images, self._fixed_batch) if self._fixed_batch else self._run(images)

    def _run(self, images: Images) -> Outputs:
        compiled = self._compiled
        if compiled is None:
            raise InputError("the runner is closed", where=self._path)
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = compiled.create_infer_request()
        try:
            request.infer([images], share_inputs=True)
        except Exception as error:  # as above
            found = f"{images.shape}: {_message(error)}"
            raise DataError("the graph does not take these images", where=self._path, found=found) from error
        arrays = [
            request.get_output_tensor(number).data.copy() for number in range(len(compiled.outputs))
        ]  # its own are reused
        return check_outputs(arrays, len(images), self._path)

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


def _image_type(model: Any, path: Path) -> tuple[tuple[int, ...], str, int]:
    """Shape and type of one image, and a fixed batch or 0. Raises GraphError unless the model has one input (B, fixed ...)."""
    if len(model.inputs) != 1:
        raise GraphError("the graph must have one input", where=path, found=f"{len(model.inputs)} inputs")
    (tensor,) = model.inputs
    shape, kind = tensor.partial_shape, tensor.element_type.get_type_name()
    fixed = not shape.rank.is_dynamic and len(shape) > 1 and not any(d.is_dynamic for d in list(shape)[1:])
    if kind not in _TYPES or not fixed:
        found, allowed = f"{kind} {shape}", "(B, ...) of float32, uint8 or integers, everything but B fixed"
        raise GraphError("the graph's input is not a batch of images", where=path, found=found, allowed=allowed)
    batch, *image = shape
    return tuple(int(d.get_length()) for d in image), _TYPES[kind], 0 if batch.is_dynamic else int(batch.get_length())


def _load_error(path: Path, error: Exception) -> GraphError:
    return GraphError("OpenVINO cannot load the graph", where=path, found=_message(error), allowed="an ONNX file")


def _message(error: Exception) -> str:
    """OpenVINO's message without the source locations that it begins with."""
    lines = [line.strip() for line in str(error).splitlines()]
    message = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(message or lines)[:400]
