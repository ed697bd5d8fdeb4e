"""A CUDA device through pycuda, in the device's primary context.

`pycuda.autoinit` is not used: it makes a private context and leaves it on the stack of the importing thread, where neither
other threads nor TensorRT's own allocations find it. Here the calling thread pushes the context for each piece of work and
pops it afterwards: pycuda ends the whole process when a thread finishes with a context on its stack, and it frees memory and
streams from another thread than the opener's only while the context is on that thread's stack.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import numpy as np

from calib.errors import BackendError, MissingError
from edge.runtime.device_memory import Bytes, Depth, DeviceMemory, Stream, Timer

_INSTALL = "pip install 'ufovit-edge[pycuda]'"
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING of cuda.h; pycuda has no name for it."""


def open_memory(device: int, zero_copy: bool | None) -> DeviceMemory:
    """See `edge.runtime.open_device.open_device`."""
    driver = load()
    try:
        driver.init()
        count = int(driver.Device.count())
    except driver.Error as error:
        raise MissingError("CUDA finds no device", found=error) from error
    if device >= count:
        raise MissingError("no such CUDA device", found=device, allowed=f"0 to {count - 1}" if count else "none is there")
    return PycudaMemory(driver, device, zero_copy)


def load() -> Any:
    """Import the module `pycuda.driver`. Raises MissingError without it or the NVIDIA driver that it links to."""
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "pycuda":
            raise MissingError("pycuda is not installed", next_command=_INSTALL) from error
        raise MissingError("pycuda does not load", found=error, next_command=_INSTALL) from error
    except ImportError as error:  # it links to libcuda.so.1, which comes with the NVIDIA driver
        raise MissingError("pycuda does not load: no NVIDIA driver, or another CUDA than its own", found=error) from error


@contextmanager
def _errors(driver: Any) -> Iterator[None]:
    try:
        yield
    except driver.Error as error:  # its text names the CUDA call
        raise BackendError("CUDA failed", found=error) from error


class PycudaMemory(DeviceMemory):
    """A `DeviceMemory`; `open_memory` opens it."""

    library = "pycuda"
    can_capture = False

    def __init__(self, driver: Any, device: int, zero_copy: bool | None) -> None:
        self._driver = driver
        self._depth = Depth()
        with _errors(driver):
            opened = driver.Device(device)
            self.name = str(opened.name())
            self.compute_capability = "{}.{}".format(*opened.compute_capability())
            self.total_bytes = int(opened.total_memory())
            self.integrated = bool(opened.get_attribute(driver.device_attribute.INTEGRATED))
            mappable = bool(opened.get_attribute(driver.device_attribute.CAN_MAP_HOST_MEMORY))
            self.mapped = mappable and (self.integrated if zero_copy is None else zero_copy)
            self._context = opened.retain_primary_context()
        weakref.finalize(self, self._context.detach)  # left to its destructor, pycuda would not release a primary context

    @contextmanager
    def current(self) -> Iterator[None]:
        """Push the primary context in this thread, unless it is current, and pop it at the end."""
        with _errors(self._driver):
            if self._depth.value == 0:
                self._context.push()
            self._depth.value += 1
            try:
                yield
            finally:
                self._depth.value -= 1
                if self._depth.value == 0:
                    self._context.pop()

    def make_stream(self) -> PycudaStream:
        with self.current():
            return PycudaStream(self._driver.Stream(_NON_BLOCKING), self)

    def make_timer(self) -> PycudaTimer:
        with self.current():
            return PycudaTimer(self._driver, self)

    def bytes_in_use(self) -> int:
        with self.current():
            free, total = self._driver.mem_get_info()
            return int(total) - int(free)

    def _refuse_graphs(self, *_positional: object, **_named: object) -> NoReturn:
        raise BackendError("pycuda has no CUDA graphs", next_command="pip install 'ufovit-edge[cuda]'")

    begin_capture = end_capture = launch = _refuse_graphs

    def allocate_pair(self, nbytes: int, owned: ExitStack) -> tuple[Bytes, int]:
        flags = self._driver.host_alloc_flags.DEVICEMAP if self.mapped else 0
        host: Bytes = self._driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        pinned: Any = host.base  # the allocation; pycuda makes it the array's base
        owned.callback(pinned.free)
        if self.mapped:
            return host, int(pinned.get_device_pointer())
        device = self._driver.mem_alloc(nbytes)
        owned.callback(device.free)
        return host, int(device)

    def copy_to_device(self, pointer: int, host: Bytes, stream: Stream) -> None:
        self._driver.memcpy_htod_async(pointer, host, _native(stream))

    def copy_to_host(self, host: Bytes, pointer: int, stream: Stream) -> None:
        self._driver.memcpy_dtoh_async(host, pointer, _native(stream))


class PycudaStream(Stream):
    """A `Stream`."""

    def __init__(self, stream: Any, memory: PycudaMemory) -> None:
        self._stream = stream
        self._memory = memory
        self.handle = int(stream.handle)

    @property
    def native(self) -> Any:
        """The `pycuda.driver.Stream`."""
        if self._stream is None:
            raise BackendError("the CUDA stream was destroyed")
        return self._stream

    def synchronize(self) -> None:
        with self._memory.current():
            self.native.synchronize()

    def destroy(self) -> None:
        with self._memory.current():
            self._stream = None  # the last reference: pycuda destroys it, and needs its context for that


class PycudaTimer(Timer):
    """A `Timer`."""

    def __init__(self, driver: Any, memory: PycudaMemory) -> None:
        self._memory = memory
        self._first: Any = driver.Event()
        self._second: Any = driver.Event()

    def _record(self, event: int, stream: Stream) -> None:
        with self._memory.current():
            (self._first, self._second)[event].record(_native(stream))

    def elapsed_ms(self) -> float:
        with self._memory.current():
            return float(self._second.time_since(self._first))

    def destroy(self) -> None:
        with self._memory.current():
            self._first = self._second = None  # the last references, as of a stream


def _native(stream: Stream) -> Any:
    if not isinstance(stream, PycudaStream):
        raise BackendError("pycuda copies on its own streams only", found=type(stream).__name__)
    return stream.native
