"""A CUDA device through NVIDIA's cuda-python: the package `cuda-bindings`, or cuda-python up to 12.6, which names it otherwise.

Its functions return (error, results ...). They work in the device's primary context, as TensorRT does; only the current
device is a setting of each thread.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import BackendError, MissingError
from edge.runtime.cuda_python_timer import CudaPythonTimer
from edge.runtime.device_memory import Depth, DeviceMemory, Graph, Library, Stream, check_size

_INSTALL = "pip install 'ufovit-edge[cuda]'"
_NAMES = ("cuda.bindings.runtime", "cuda.cudart")  # the second up to cuda-python 12.6

Current = Callable[[], AbstractContextManager[None]]


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
        except ModuleNotFoundError as error:
            if error.name not in (name, *_parents(name)):
                raise MissingError("cuda-python does not load", found=error, next_command=_INSTALL) from error
        except ImportError as error:
            raise MissingError("cuda-python does not load", found=error, next_command=_INSTALL) from error
    raise MissingError("cuda-python is not installed", next_command=_INSTALL)


def _parents(name: str) -> list[str]:
    return [name[:i] for i, letter in enumerate(name) if letter == "."]


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


def _call(runtime: Any, name: str, *arguments: Any) -> Any:
    """The result of a CUDA function, None if it has none. Raises BackendError naming it."""
    try:
        error, *results = getattr(runtime, name)(*arguments)
    except RuntimeError as raised:  # the driver lacks the function
        raise BackendError(f"CUDA failed in {name}", found=raised) from raised
    if error != runtime.cudaError_t.cudaSuccess:
        raise BackendError(f"CUDA failed in {name}", found=_text(runtime, error))
    return results[0] if results else None


class CudaPythonMemory:
    """A `DeviceMemory`; `open_memory` opens it."""

    library: Library = "cuda-python"

    def __init__(self, runtime: Any, device: int, zero_copy: bool | None) -> None:
        self._runtime = runtime
        self._device = device
        self._depth = Depth()
        properties = self._call("cudaGetDeviceProperties", device)
        self.name = bytes(properties.name).decode(errors="replace")
        self.total_bytes = int(properties.totalGlobalMem)
        major = self._attribute(runtime.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor)
        minor = self._attribute(runtime.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor)
        self.compute_capability = f"{major}.{minor}"
        self.integrated = bool(self._attribute(runtime.cudaDeviceAttr.cudaDevAttrIntegrated))
        mappable = bool(self._attribute(runtime.cudaDeviceAttr.cudaDevAttrCanMapHostMemory))
        self._mapped = mappable and (self.integrated if zero_copy is None else zero_copy)
        needed = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch")
        self.can_capture = all(hasattr(runtime, name) for name in needed)

    def _call(self, name: str, *arguments: Any) -> Any:
        return _call(self._runtime, name, *arguments)

    def _attribute(self, attribute: Any) -> int:
        return int(self._call("cudaDeviceGetAttribute", attribute, self._device))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread, and restore the previous one at the end."""
        before = self._call("cudaGetDevice") if self._depth.value == 0 else self._device
        if self._depth.value == 0:
            self._call(
                "cudaSetDevice", self._device
            )  # also if it is already: this makes the context current for other libraries too
        self._depth.value += 1
        try:
            yield
        finally:
            self._depth.value -= 1
            if before != self._device:
                self._call("cudaSetDevice", before)

    def make_stream(self) -> CudaPythonStream:
        """See `DeviceMemory`."""
        with self.current():
            native = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
            return CudaPythonStream(self._runtime, native, self.current)

    def allocate(self, nbytes: int) -> CudaPythonBuffer:
        """See `DeviceMemory`."""
        with self.current():
            return CudaPythonBuffer(self._runtime, nbytes, self._mapped, self.current)

    def make_timer(self) -> CudaPythonTimer:
        """See `DeviceMemory`."""
        with self.current():
            return CudaPythonTimer(self._call, self.current)

    def bytes_in_use(self) -> int:
        """See `DeviceMemory`."""
        with self.current():
            return self.total_bytes - int(self._call("cudaMemGetInfo"))  # free bytes come first

    def begin_capture(self, stream: Stream) -> None:
        """See `DeviceMemory`. Other threads' calls, such as an allocation, do not break the capture."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.current():
            self._call("cudaStreamBeginCapture", stream.handle, mode)

    def end_capture(self, stream: Stream) -> CudaPythonGraph:
        """See `DeviceMemory`."""
        with self.current():
            try:
                graph = self._call("cudaStreamEndCapture", stream.handle)
            except BackendError:
                self._runtime.cudaGetLastError()  # else the next call of another library would report this failure
                raise
            try:
                executable = self._call("cudaGraphInstantiate", graph, 0)
            finally:
                self._call("cudaGraphDestroy", graph)
            return CudaPythonGraph(self._runtime, executable, self.current)

    def launch(self, graph: Graph, stream: Stream) -> None:
        """See `DeviceMemory`."""
        if not isinstance(graph, CudaPythonGraph):
            raise BackendError("cuda-python launches its own graphs only", found=type(graph).__name__)
        with self.current():
            self._call("cudaGraphLaunch", graph.native, stream.handle)


class CudaPythonStream:
    """A `Stream`."""

    def __init__(self, runtime: Any, native: Any, current: Current) -> None:
        self._runtime = runtime
        self._current = current
        self._native = native
        self.handle = int(native)

    def synchronize(self) -> None:
        """See `Stream`."""
        with self._current():
            _call(self._runtime, "cudaStreamSynchronize", self.handle)

    def destroy(self) -> None:
        """See `Stream`."""
        native, self._native = self._native, None
        if native is not None:
            with self._current():
                _call(self._runtime, "cudaStreamDestroy", native)


class CudaPythonGraph:
    """A `Graph`."""

    def __init__(self, runtime: Any, executable: Any, current: Current) -> None:
        self._runtime = runtime
        self._current = current
        self._executable = executable

    @property
    def native(self) -> Any:
        """The `cudaGraphExec_t`."""
        if self._executable is None:
            raise BackendError("the CUDA graph was destroyed")
        return self._executable

    def destroy(self) -> None:
        """See `Graph`."""
        executable, self._executable = self._executable, None
        if executable is not None:
            with self._current():
                _call(self._runtime, "cudaGraphExecDestroy", executable)


class CudaPythonBuffer:
    """A `HostDeviceBuffer`."""

    def __init__(self, runtime: Any, nbytes: int, mapped: bool, current: Current) -> None:
        self._runtime = runtime
        self._current = current
        self.mapped = mapped
        flags = runtime.cudaHostAllocMapped if mapped else runtime.cudaHostAllocDefault
        self._pinned: int | None = int(_call(runtime, "cudaHostAlloc", nbytes, flags))
        self._device: int | None = None
        try:
            if mapped:
                self.device_pointer = int(_call(runtime, "cudaHostGetDevicePointer", self._pinned, 0))
            else:
                self._device = self.device_pointer = int(_call(runtime, "cudaMalloc", nbytes))
        except BackendError:
            self.free()
            raise
        view = (ctypes.c_uint8 * nbytes).from_address(self._pinned)
        self.host: npt.NDArray[np.uint8] = np.ctypeslib.as_array(view)

    def to_device(self, nbytes: int, stream: Stream) -> None:
        """See `HostDeviceBuffer`."""
        self._copy(self._device, self._pinned, nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def to_host(self, nbytes: int, stream: Stream) -> None:
        """See `HostDeviceBuffer`."""
        self._copy(self._pinned, self._device, nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def _copy(self, to: int | None, source: int | None, nbytes: int, kind: Any, stream: Stream) -> None:
        check_size(nbytes, self.host)
        if not self.mapped:
            with self._current():
                _call(self._runtime, "cudaMemcpyAsync", to, source, nbytes, kind, stream.handle)

    def free(self) -> None:
        """See `HostDeviceBuffer`."""
        pinned, device, self._pinned, self._device = self._pinned, self._device, None, None
        self.host = np.empty(0, np.uint8)
        with self._current():
            if device is not None:
                _call(self._runtime, "cudaFree", device)
            if pinned is not None:
                _call(self._runtime, "cudaFreeHost", pinned)
