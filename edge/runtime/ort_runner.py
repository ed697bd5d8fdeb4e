"""Run ONNX graphs with ONNX Runtime on the CPU, FP16 graphs with their rounding emulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import DataError, GraphError, InputError, MissingError
from calib.parallel import ordered_map, shared_cores
from edge.images.preprocess import ImageSize
from edge.runtime.runner import Images, Runner, check_outputs, join_outputs, run_in_batches
from edge.tasks.task import Outputs

if TYPE_CHECKING:
    from onnx import ModelProto

BATCH = 16
"""Images per run on the CPU: more are no faster, and take more memory."""


def tapped_batch(image_size: ImageSize) -> int:
    """Images per run whose inner tensors are all held at once: BATCH up to 224 px, fewer in proportion to the pixels above."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return max(1, min(BATCH, BATCH * 224**2 // (height * width)))


class OrtRunner(Runner):
    """Runs an ONNX file with one input and any outputs on the CPU.

    Args:
        path: the ONNX file; with `data`, what errors name.
        data: bytes of a graph to run instead of the file.
        threads: threads inside one operator; 0 lets ONNX Runtime use every core.
        throughput: optimize for many batches rather than the latency of one: `at_once` concurrent runs share the cores, and
            `threads` is ignored.

    Call: see `Runner`; a graph of a fixed batch runs as often as it takes. Raises GraphError for a file that ONNX Runtime
    refuses, or with several inputs.
    """

    def __init__(self, path: Path, threads: int = 0, *, data: bytes | None = None, throughput: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingError("onnxruntime is not installed", next_command="pip install 'ufovit-edge[build]'") from error
        self._path = path
        if throughput:
            self.at_once, threads = shared_cores()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only; they arrive as exceptions too
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would slow other runtimes
        try:
            self._session: Any | None = onnxruntime.InferenceSession(
                data or str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no public base class
            raise GraphError("ONNX Runtime cannot load the graph", where=path, found=" ".join(str(error).split())) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise GraphError("the graph must have one input", where=path, found=", ".join(i.name for i in inputs) or "none")
        self._input, sizes = inputs[0].name, inputs[0].shape
        self._fixed_batch = sizes[0] if sizes and isinstance(sizes[0], int) else 0

    def __call__(self, images: Images, /) -> Outputs:
        """See `Runner`."""
        return run_in_batches(self._run, images, self._fixed_batch) if self._fixed_batch else self._run(images)

    def _run(self, images: Images) -> Outputs:
        if self._session is None:
            raise InputError("the runner is closed", where=self._path)
        try:
            arrays = self._session.run(None, {self._input: images})
        except Exception as error:  # its exceptions share no public base class
            found = f"{images.shape}: {' '.join(str(error).split())}"
            raise DataError("the graph does not take these images", where=self._path, found=found) from error
        return check_outputs(arrays, len(images), self._path)

    def close(self) -> None:
        """Release the session and its threads."""
        self._session = None


def emulated_runner(typed: ModelProto, where: Path, threads: int = 0, *, throughput: bool = False) -> OrtRunner:
    """A runner of a typed FP16 graph on the CPU that emulates every rounding of FP16 hardware. Arguments as of `OrtRunner`."""
    from calib.qdq_writer import serialize
    from engines.fp16_emulation import emulated_graph

    return OrtRunner(where, threads, data=serialize(emulated_graph(typed)), throughput=throughput)


def run_all(runner: Runner, batches: Iterable[Images], done: Callable[[int], None] = lambda _images: None) -> Outputs:
    """Outputs of a graph on all batches, (n, ...) each; `done` is called with the number of images after each."""
    parts: list[Outputs] = []
    images = 0
    for count, outputs in ordered_map(lambda batch: (len(batch), runner(batch)), batches, runner.at_once):
        parts.append(outputs)
        images += count
        done(images)
    return join_outputs(parts)
