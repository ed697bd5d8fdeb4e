"""Run a TensorRT or TensorRT-RTX engine on a CUDA device.

A batch goes host -> page-locked buffer -> device -> engine -> device -> page-locked buffer -> a new array, on one stream, with
one wait at the end. The second of two consecutive batches of one size is captured as a CUDA graph: from then on a batch of
that size is one call. A batch of another size drops the graph, because the execution context of a captured graph must not
change while the graph is in use (TensorRT's developer guide on CUDA graphs).

TensorRT-RTX compiles kernels on the device, by default in the background, and runs slower ones meanwhile. Here it is set to
compile them before the first run, so that the same images give the same logits in every run. It captures CUDA graphs itself,
once the kernels are compiled, and is set to do so instead (TensorRT-RTX, "Working with RTX CUDA Graphs").
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from calib.errors import BackendError, InputError
from edge.runtime.device_memory import DeviceMemory, Graph
from edge.runtime.open_device import open_device
from edge.runtime.runner import Images, Runner, check_images, check_outputs
from edge.runtime.trt_buffers import PortBuffer
from edge.runtime.trt_io import EngineIo, read_io, split
from edge.runtime.trt_timing import device_times_ms, record_graph
from edge.tasks.task import Outputs
from engines.trt.api import Flavour, Runtime

_SHOWN_LINES = 12
_PROFILE = 0


class _Loaded:
    """An engine on the device, shared by its runners. The last of them releases it: first the engine, then its runtime."""

    def __init__(self, flavour: Flavour, engine: bytes, *, version_compatible: bool) -> None:
        runtime = Runtime(flavour)
        self.engine: Any = runtime.deserialize(engine, version_compatible=version_compatible)
        self.runtime = runtime
        self.io: EngineIo = read_io(runtime.module, self.engine, _PROFILE)


class TrtRunner(Runner):
    """A `Runner` of one engine, one thread, one stream and its own buffers.

    Args:
        flavour: "trt" or "rtx", the library that built the engine.
        engine_bytes: the serialized engine. It is executable code: pass only bytes that `engines.build_folder.authenticate` or
            `BuildFolder.engine` returned.
        memory: the device; None opens device 0.
        graphs: whether CUDA graphs may be used.
        version_compatible: the engine was built to run with later releases and carries a runtime.

    Attributes:
        memory: the device.
        image_shape: of one image, such as (3, S, S).
        batches: (smallest, optimal, largest) batch of the engine's optimization profile 0. More images than the largest are
            run in several batches; fewer than the smallest are refused.
        notes: deviations from what was requested, one sentence each.

    Raises MissingError without the library, a driver or a device; BackendError when TensorRT or CUDA fails; ArtifactError
    for an engine that is not one input (B, ...) and outputs (B, ...), see `edge.runtime.trt_io.read_io`.
    """

    def __init__(
        self,
        flavour: Flavour,
        engine_bytes: bytes,
        memory: DeviceMemory | None = None,
        *,
        graphs: bool = True,
        version_compatible: bool = False,
    ) -> None:
        memory = memory or open_device()
        with memory.current():
            self._start(_Loaded(flavour, engine_bytes, version_compatible=version_compatible), memory, graphs)

    def clone(self) -> TrtRunner:
        """Another runner of the same engine, for the calling thread; closing this one does not close it."""
        loaded = self._loaded
        if loaded is None:
            raise _closed_error()
        other = TrtRunner.__new__(TrtRunner)
        with self.memory.current():
            other._start(loaded, self.memory, self._graphs_wanted)
        return other

    def _start(self, loaded: _Loaded, memory: DeviceMemory, graphs: bool) -> None:
        """Allocate the resources of one runner; release them if a step fails."""
        self._loaded: _Loaded | None = loaded
        self._runtime, self._io = loaded.runtime, loaded.io
        self.memory = memory
        self._graphs_wanted = graphs
        self._thread = threading.current_thread()
        self._busy = threading.Lock()
        self.image_shape, self.batches = self._io.image_shape, self._io.batches
        self.notes: list[str] = []
        self._graph: Graph | None = None
        self._captures_itself = False
        self._batch, self._warm = 0, False
        self._output_shapes: tuple[tuple[int, ...], ...] = ()
        with contextlib.ExitStack() as started:
            self._stream = memory.make_stream()
            started.callback(self._stream.destroy)
            self._context: Any = self._make_context(loaded.engine)
            started.callback(self._drop_context)
            self._capture_wanted = graphs and not self._captures_itself and self._can_capture()
            self._prepare_buffers(started)
            self._resources = started.pop_all()

    def _make_context(self, engine: Any) -> Any:
        """A context in optimization profile 0, with TensorRT-RTX's own settings where the module has them."""
        self._config = self._rtx_config(engine)
        options = () if self._config is None else (self._config,)
        context = self._checked("create_execution_context", engine.create_execution_context(*options))
        if context.active_optimization_profile != _PROFILE:
            done = context.set_optimization_profile_async(_PROFILE, self._stream.handle)
            self._stream.synchronize()
            self._checked("set_optimization_profile_async", done)
        return context

    def _rtx_config(self, engine: Any) -> Any:
        """Settings to compile kernels first and capture graphs; None where the library does not compile kernels."""
        module = self._runtime.module
        if not hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
            return None
        config = self._checked("create_runtime_config", engine.create_runtime_config())
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._graphs_wanted and hasattr(module, "CudaGraphStrategy"):
            strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config.cuda_graph_strategy = strategy
            self._captures_itself = config.cuda_graph_strategy == strategy  # the setter does not report a refusal
        return config

    def _drop_context(self) -> None:
        self._context = self._config = None

    def _can_capture(self) -> bool:
        """Whether the CUDA library and the context support capture; if not, `notes` says why."""
        if not self.memory.can_capture:
            self.notes.append(f"{self.memory.library} has no CUDA graphs: every layer is launched by itself")
            return False
        checkable = hasattr(self._context, "is_stream_capturable")
        if checkable and not self._context.is_stream_capturable(self._stream.handle):
            self.notes.append(
                f"{self._runtime.name} cannot run this engine from a CUDA graph: every layer is launched by itself"
            )
            return False
        return True

    def _prepare_buffers(self, started: contextlib.ExitStack) -> None:
        """Allocate buffers for the largest batch, at fixed addresses."""
        io, largest = self._io, self.batches[2]
        self._set_batch(largest)
        self._input = PortBuffer(io.input, largest, io.image_shape, self.memory, started)
        shapes = zip(io.outputs, self._output_shapes, strict=True)
        self._outputs = tuple(PortBuffer(port, largest, shape, self.memory, started) for port, shape in shapes)
        for buffer in (self._input, *self._outputs):
            done = self._context.set_tensor_address(buffer.name, buffer.address)
            self._checked(f"set_tensor_address of {buffer.name}", done)

    def __call__(self, images: Images, /) -> Outputs:
        """See `Runner`. Also raises InputError in another thread than the one that opened the runner."""
        with self._in_use():
            check_images(images, self.image_shape, self._io.input.dtype)
            sizes = split(len(images), self.batches[0], self.batches[2])
            outputs = tuple(np.empty((len(images), *buffer.rows.shape[1:]), buffer.rows.dtype) for buffer in self._outputs)
            start = 0
            for size in sizes:
                self._run(images[start : start + size], tuple(output[start : start + size] for output in outputs))
                start += size
        return check_outputs(outputs, len(images), self._runtime.name)

    def compute_times_ms(self, runs: int) -> tuple[float, ...]:
        """Times of the engine alone on the device for a batch as in the last call, copies excluded; raises as a call does."""
        with self._in_use():
            if not self._warm:
                raise InputError("nothing to time: no batch has run yet")
            return device_times_ms(self.memory, self._stream, self._execute, runs, as_graph=self._graph is not None)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """The device is current and nobody closes the runner. Raises InputError if it is closed, or of another thread."""
        if threading.current_thread() is not self._thread:
            found, allowed = threading.current_thread().name, f"{self._thread.name}; clone() makes a runner for this one"
            raise InputError("the runner belongs to another thread", found=found, allowed=allowed)
        with self._busy:
            if self._loaded is None:
                raise _closed_error()
            with self.memory.current():
                yield

    def _run(self, images: Images, outputs: Outputs) -> None:
        """Run one batch and write its outputs into the arrays given."""
        batch = len(images)
        if batch != self._batch:
            self._set_batch(batch)
        np.copyto(self._input.rows[:batch], images)
        if self._warm and self._graph is None and self._capture_wanted:
            self._capture()
        try:
            if self._graph is None:
                self._enqueue()
            else:
                self.memory.launch(self._graph, self._stream)
        except BaseException:  # a Ctrl-C too: nothing may still use the buffers when the next batch is written
            with contextlib.suppress(BackendError):
                self._stream.synchronize()
            raise
        self._stream.synchronize()
        self._warm = True
        for output, buffer in zip(outputs, self._outputs, strict=True):
            np.copyto(output, buffer.rows[:batch])

    def _set_batch(self, batch: int) -> None:
        """Set the batch size of the context, and read or check the shapes of its outputs."""
        self._drop_graph()
        self._batch, self._warm = 0, False  # known only when all of this has worked
        io = self._io
        name = io.input.name
        self._checked(f"set_input_shape of {name}", self._context.set_input_shape(name, (batch, *io.image_shape)))
        shapes = [tuple(int(d) for d in self._context.get_tensor_shape(port.name)) for port in io.outputs]
        known = self._output_shapes or tuple(shape[1:] for shape in shapes)
        for port, shape, inner in zip(io.outputs, shapes, known, strict=True):
            if not shape or shape[0] != batch or min(shape) < 1 or shape[1:] != inner:
                raise BackendError(
                    "get_tensor_shape returned a shape without one row per image",
                    where=port.name,
                    found=f"{shape} for {batch} images",
                    log=tuple(self._runtime.log),
                )
        self._batch, self._output_shapes = batch, known

    def _enqueue(self) -> None:
        """Enqueue copy, engine and copies on the stream."""
        self._input.to_device(self._batch, self._stream)
        self._execute()
        for buffer in self._outputs:
            buffer.to_host(self._batch, self._stream)

    def _execute(self) -> None:
        self._checked("execute_async_v3", self._context.execute_async_v3(self._stream.handle))

    def _capture(self) -> None:
        """Record `_enqueue` as a graph; if that fails, note it and continue without."""
        try:
            self._graph = record_graph(self.memory, self._stream, self._enqueue)
        except BackendError as error:
            self._capture_wanted = False
            reason = " ".join(str(error).split())
            self.notes.append(f"no CUDA graph, every layer is launched by itself: {reason}")

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.destroy()

    @property
    def uses_graph(self) -> bool:
        """Whether a next batch of the same size is one launch of a CUDA graph; for TensorRT-RTX, whether that was requested."""
        return self._captures_itself or self._graph is not None

    def close(self) -> None:
        """Release everything, after a call that is running in the runner's thread. Any thread may close."""
        with self._busy:
            if self._loaded is None:
                return
            with self.memory.current():
                try:
                    self._drop_graph()
                    self._resources.close()  # the context before its engine
                finally:
                    self._loaded = None

    def _checked(self, call: str, result: Any) -> Any:
        """The result of a TensorRT call. Raises BackendError naming the call if it is None or False."""
        if result is not None and result is not False:
            return result
        log = tuple(self._runtime.log)
        lines = [line for line in log if not line.startswith("INFO")][-_SHOWN_LINES:]
        found = "\n    ".join(lines) or "no reason given"
        raise BackendError(f"{self._runtime.name} failed in {call}", found=found, log=log)


def _closed_error() -> InputError:
    return InputError("the runner is closed")
