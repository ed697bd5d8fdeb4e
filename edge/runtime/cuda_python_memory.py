"""A CUDA device through NVIDIA's cuda-python: the package `cuda-bindings`, or cuda-python up to 12.6, which names it otherwise.

Its functions return (error, results ...). They work in the device's primary context, as TensorRT does; only the current
device is a setting of each thread.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from calib.errors import BackendError, MissingError
from edge.runtime.device_memory import Bytes, Depth, DeviceMemory, Graph, Stream, Timer

_INSTALL = "pip install 'ufovit-edge[cuda]'"
_NAMES = ("cuda.bindings.runtime", "cuda.cudart")  # the second up to cuda-python 12.6


def open_memory(device: int, zero_copy: bool | None) -> DeviceMemory:
    """See `edge.runtime.open_device.open_device`."""
    runtime = load()
    try:
        error, count = runtime.cudaGetDeviceCount()
    except RuntimeError as raised:  # up to 12.6: libcuda.so.1 is absent
        raise MissingError("CUDA finds no NVIDIA driver", found=raised) from raised
    if error == runtime.cudaError_t.cudaErrorInsufficientDriver:
        raise _driver_error(runtime)
    if error != runtime.cudaError_t.cudaSuccess:
        raise MissingError("CUDA finds no device", found=_text(runtime, error))
    if device >= count:
        raise MissingError("no such CUDA device", found=device, allowed=f"0 to {count - 1}" if count else "none is there")
    return CudaPythonMemory(runtime, device, zero_copy)


def load() -> Any:
    """Import the CUDA runtime module of cuda-python, whose name depends on the release. Raises MissingError."""
    for name in _NAMES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")  # it or its package
            if not absent:
                raise MissingError("cuda-python does not load", found=error, next_command=_INSTALL) from error
    raise MissingError("cuda-python is not installed", next_command=_INSTALL)


def _driver_error(runtime: Any) -> MissingError:
    """The error for no driver, or for one of an older CUDA than the library's: versions are 1000 major + 10 minor."""
    _, driver = runtime.cudaDriverGetVersion()
    if not driver:
        return MissingError("CUDA finds no NVIDIA driver")
    _, library = runtime.cudaRuntimeGetVersion()
    supported, required = (f"{v // 1000}.{v % 1000 // 10}" for v in (driver, library))
    return MissingError(
        "the NVIDIA driver is older than cuda-python",
        found=f"a driver for CUDA {supported}, cuda-python for CUDA {required}",
        next_command=f"pip install 'cuda-bindings=={driver // 1000}.*'",
    )


def _text(runtime: Any, error: Any) -> str:
    _, text = runtime.cudaGetErrorString(error)
    return f"{error.name}: {text.decode(errors='replace')}"


class CudaPythonMemory(DeviceMemory):
    """A `DeviceMemory`; `open_memory` opens it."""

    library = "cuda-python"

    def __init__(self, runtime: Any, device: int, zero_copy: bool | None) -> None:
        self._runtime = runtime
        self._device = device
        self._depth = Depth()
        properties = self.call("cudaGetDeviceProperties", device)
        self.name = bytes(properties.name).decode(errors="replace")
        self.total_bytes = int(properties.totalGlobalMem)
        known = runtime.cudaDeviceAttr
        major = self._attribute(known.cudaDevAttrComputeCapabilityMajor)
        minor = self._attribute(known.cudaDevAttrComputeCapabilityMinor)
        self.compute_capability = f"{major}.{minor}"
        self.integrated = bool(self._attribute(known.cudaDevAttrIntegrated))
        mappable = bool(self._attribute(known.cudaDevAttrCanMapHostMemory))
        self.mapped = mappable and (self.integrated if zero_copy is None else zero_copy)
        needed = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch")
        self.can_capture = all(hasattr(runtime, name) for name in needed)

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a CUDA function, None if it has none. Raises BackendError naming it."""
        try:
            error, *results = getattr(self._runtime, name)(*arguments)
        except RuntimeError as raised:  # the driver lacks the function
            raise BackendError(f"CUDA failed in {name}", found=raised) from raised
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise BackendError(f"CUDA failed in {name}", found=_text(self._runtime, error))
        return results[0] if results else None

    def _attribute(self, attribute: Any) -> int:
        return int(self.call("cudaDeviceGetAttribute", attribute, self._device))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread, and restore the previous one at the end."""
        before = self._device
        if self._depth.value == 0:
            before = self.call("cudaGetDevice")
            self.call("cudaSetDevice", self._device)  # also if it is: the context becomes current for other libraries too
        self._depth.value += 1
        try:
            yield
        finally:
            self._depth.value -= 1
            if before != self._device:
                self.call("cudaSetDevice", before)

    def make_stream(self) -> CudaPythonStream:
        with self.current():
            return CudaPythonStream(self.call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking), self)

    def make_timer(self) -> CudaPythonTimer:
        with self.current():
            return CudaPythonTimer(self)

    def bytes_in_use(self) -> int:
        with self.current():
            return self.total_bytes - int(self.call("cudaMemGetInfo"))  # free bytes come first

    def begin_capture(self, stream: Stream) -> None:
        """Other threads' calls, such as an allocation, do not break the capture."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.current():
            self.call("cudaStreamBeginCapture", stream.handle, mode)

    def end_capture(self, stream: Stream) -> CudaPythonGraph:
        with self.current():
            try:
                graph = self.call("cudaStreamEndCapture", stream.handle)
            except BackendError:
                self._runtime.cudaGetLastError()  # else the next call of another library would report this failure
                raise
            try:
                return CudaPythonGraph(self.call("cudaGraphInstantiate", graph, 0), self)
            finally:
                self.call("cudaGraphDestroy", graph)

    def launch(self, graph: Graph, stream: Stream) -> None:
        if not isinstance(graph, CudaPythonGraph):
            raise BackendError("cuda-python launches its own graphs only", found=type(graph).__name__)
        if graph.native is None:
            raise BackendError("the CUDA graph was destroyed")
        with self.current():
            self.call("cudaGraphLaunch", graph.native, stream.handle)

    def allocate_pair(self, nbytes: int, owned: ExitStack) -> tuple[Bytes, int]:
        flags = self._runtime.cudaHostAllocMapped if self.mapped else self._runtime.cudaHostAllocDefault
        pinned = int(self.call("cudaHostAlloc", nbytes, flags))
        owned.callback(lambda: self.call("cudaFreeHost", pinned))
        host = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pinned))
        if self.mapped:
            return host, int(self.call("cudaHostGetDevicePointer", pinned, 0))
        device = int(self.call("cudaMalloc", nbytes))
        owned.callback(lambda: self.call("cudaFree", device))
        return host, device

    def copy_to_device(self, pointer: int, host: Bytes, stream: Stream) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", pointer, host.ctypes.data, host.nbytes, kind, stream.handle)

    def copy_to_host(self, host: Bytes, pointer: int, stream: Stream) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host.ctypes.data, pointer, host.nbytes, kind, stream.handle)


class CudaPythonStream(Stream):
    """A `Stream`."""

    def __init__(self, native: Any, memory: CudaPythonMemory) -> None:
        self._native = native
        self._memory = memory
        self.handle = int(native)

    def synchronize(self) -> None:
        with self._memory.current():
            self._memory.call("cudaStreamSynchronize", self.handle)

    def destroy(self) -> None:
        native, self._native = self._native, None
        if native is not None:
            with self._memory.current():
                self._memory.call("cudaStreamDestroy", native)


class CudaPythonTimer(Timer):
    """A `Timer`."""

    def __init__(self, memory: CudaPythonMemory) -> None:
        self._memory = memory
        self._events: list[Any] = []
        try:
            for _ in range(2):
                self._events.append(memory.call("cudaEventCreate"))
        except BackendError:
            self.destroy()
            raise

    def _record(self, event: int, stream: Stream) -> None:
        with self._memory.current():
            self._memory.call("cudaEventRecord", self._events[event], stream.handle)

    def elapsed_ms(self) -> float:
        first, second = self._events
        with self._memory.current():
            return float(self._memory.call("cudaEventElapsedTime", first, second))

    def destroy(self) -> None:
        with self._memory.current():
            while self._events:
                self._memory.call("cudaEventDestroy", self._events.pop())


class CudaPythonGraph(Graph):
    """A `Graph`. `native` is the `cudaGraphExec_t`, None once it is destroyed."""

    def __init__(self, native: Any, memory: CudaPythonMemory) -> None:
        self.native = native
        self._memory = memory

    def destroy(self) -> None:
        native, self.native = self.native, None
        if native is not None:
            with self._memory.current():
                self._memory.call("cudaGraphExecDestroy", native)
