"""OpenVINO on the CPU: FP32 graphs as they are, symmetric Q/DQ graphs in INT8; compiled as `engines.openvino.api` does."""

import threading
from pathlib import Path
from typing import Any

from calib.errors import DataError, GraphError, InputError
from edge.option_bounds import THREADS, check_bounds
from edge.runtime.runner import Images, Runner, check_images, check_outputs, run_in_batches
from edge.tasks.task import Outputs
from engines.openvino.api import compile_graph, error_text, read_graph

_TYPES = {"f32": "float32", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64"}
_MOST_SIZES = 4
"""Batch sizes whose compiled networks are kept, each with weights of its own."""


class OpenVinoRunner(Runner):
    """Runs an ONNX file with one input (B, ...) and any outputs on the CPU, tuned for latency.

    The network is compiled for one image when it is opened, for another batch size when that is first asked for. Any thread may
    call it: threads share the compiled networks; each has its own inference request and buffers.

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
        self._path, self._threads = path, threads
        if data is None:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise GraphError("graph cannot be read", where=path, found=error.strerror) from error
        self._model = read_graph(data, path)
        self.image_shape, self.dtype, self._fixed_batch = _image_type(self._model, path)
        self._compiled: dict[int, Any] = {}
        self._closed = False
        self._compiling = threading.Lock()
        self._requests = threading.local()
        compiled = self._for_batch(self._fixed_batch or 1)
        self.precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())

    def __call__(self, images: Images, /) -> Outputs:
        """See `Runner`."""
        check_images(images, self.image_shape, self.dtype)
        return run_in_batches(self._run, images, self._fixed_batch) if self._fixed_batch else self._run(images)

    def _run(self, images: Images) -> Outputs:
        compiled = self._for_batch(len(images))
        last = getattr(self._requests, "last", None)
        if last is None or last[0] is not compiled:
            last = self._requests.last = compiled, compiled.create_infer_request()
        request = last[1]
        try:
            request.infer([images], share_inputs=True)
        except Exception as error:  # pybind's exceptions share no public base class
            found = f"{images.shape}: {error_text(error)}"
            raise DataError("the graph does not take these images", where=self._path, found=found) from error
        arrays = [
            request.get_output_tensor(number).data.copy() for number in range(len(compiled.outputs))
        ]  # its own are reused
        return check_outputs(arrays, len(images), self._path)

    def _for_batch(self, batch: int) -> Any:
        """The network compiled for a batch size; the one compiled first makes room. Raises InputError after `close`."""
        with self._compiling:
            if self._closed:
                raise InputError("the runner is closed", where=self._path)
            if batch not in self._compiled:
                size = None if self._fixed_batch else batch
                compiled = compile_graph(self._model, self._path, batch=size, threads=self._threads)
                if len(self._compiled) >= _MOST_SIZES:
                    self._compiled.pop(next(iter(self._compiled)))
                self._compiled[batch] = compiled
            return self._compiled[batch]

    def close(self) -> None:
        """Release the compiled networks; the requests of other threads are released with the runner."""
        self._closed = True
        self._compiled = {}
        self._requests = threading.local()


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
