"""Memory and streams of a CUDA device: one protocol, one file per library that reaches CUDA from Python.

pycuda is installed or can be compiled on a Jetson; cuda-python (its package `cuda-bindings`) comes as wheels for x86-64 and
aarch64 and can capture CUDA graphs. Both work in the device's primary context, which TensorRT uses too. Nothing is loaded
before `open_device` is called.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, ExitStack
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from calib.errors import BackendError

Library = Literal["pycuda", "cuda-python"]
Bytes = npt.NDArray[np.uint8]


class Stream(Protocol):
    """A CUDA stream that does not wait for the default stream. Work that is enqueued on it runs in order, asynchronously.

    `handle` is the `cudaStream_t`, as TensorRT takes it.
    """

    handle: int

    def synchronize(self) -> None:
        """Wait until all enqueued work has run. Raises BackendError if some of it failed."""

    def destroy(self) -> None:
        """Destroy the stream; a second call does nothing."""


class Graph(Protocol):
    """A captured CUDA graph, ready to launch: it reads and writes the addresses that it was captured with."""

    def destroy(self) -> None:
        """Destroy the graph; a second call does nothing."""


class Timer(Protocol):
    """Two CUDA events: the time that the device took for the work enqueued between them."""

    def start(self, stream: Stream) -> None:
        """Record the first event on the stream."""
        self._record(0, stream)

    def stop(self, stream: Stream) -> None:
        """Record the second event on the stream."""
        self._record(1, stream)

    def _record(self, event: int, stream: Stream) -> None: ...

    def elapsed_ms(self) -> float:
        """Milliseconds between the events, both of which must have completed; resolution about half a microsecond."""

    def destroy(self) -> None:
        """Destroy the events; a second call does nothing."""


class HostDeviceBuffer:
    """Page-locked host memory and its counterpart on the device: the same bytes if `mapped`, else two copies.

    Attributes:
        host: the host's bytes, (nbytes,). Views of it are invalid after `free`.
        device_pointer: address on the device, aligned to 256 bytes or more.
        mapped: whether host and device share the memory (zero-copy), so that nothing is copied.
    """

    def __init__(self, memory: DeviceMemory, nbytes: int) -> None:
        self._memory = memory
        self.mapped = memory.mapped
        with ExitStack() as owned:
            self.host, self.device_pointer = memory.allocate_pair(nbytes, owned)
            self._owned = owned.pop_all()

    def to_device(self, nbytes: int, stream: Stream) -> None:
        """Enqueue the copy of the first `nbytes` bytes from host to device; does nothing if `mapped`."""
        host = self._first(nbytes)
        if not self.mapped:
            with self._memory.current():
                self._memory.copy_to_device(self.device_pointer, host, stream)

    def to_host(self, nbytes: int, stream: Stream) -> None:
        """Enqueue the copy of the first `nbytes` bytes from device to host; does nothing if `mapped`."""
        host = self._first(nbytes)
        if not self.mapped:
            with self._memory.current():
                self._memory.copy_to_host(host, self.device_pointer, stream)

    def _first(self, nbytes: int) -> Bytes:
        if not 0 < nbytes <= self.host.nbytes:
            raise BackendError("the copy exceeds the buffer", found=f"{nbytes} of {self.host.nbytes} bytes")
        return self.host[:nbytes]

    def free(self) -> None:
        """Free the memory; a second call does nothing. The caller must have synchronized the streams that use it."""
        self.host = np.empty(0, np.uint8)
        with self._memory.current():
            self._owned.close()


class DeviceMemory(Protocol):
    """One CUDA device; any thread may call it.

    Every call makes the device current in the calling thread for its duration. To do so once for a sequence of calls, also
    those of other CUDA libraries such as TensorRT, wrap them in `with memory.current():`.

    Every failure is a BackendError naming the CUDA call.

    Attributes:
        library: the Python library in use.
        name: of the device, such as "Orin".
        compute_capability: "major.minor", such as "8.7".
        integrated: whether the GPU shares the memory of the host, as on a Jetson.
        total_bytes: total memory of the device.
        mapped: whether its buffers are shared by host and device, as it was opened.
        can_capture: whether the library supports CUDA graphs; if not, `begin_capture`, `end_capture` and `launch` raise
            BackendError.
    """

    library: Library
    name: str
    compute_capability: str
    integrated: bool
    total_bytes: int
    mapped: bool
    can_capture: bool

    def current(self) -> AbstractContextManager[None]:
        """Make the device current in the calling thread for a while; may be nested."""

    def make_stream(self) -> Stream:
        """A new stream, neither the default one nor one that waits for it."""

    def allocate(self, nbytes: int) -> HostDeviceBuffer:
        """A new buffer of `nbytes` > 0 bytes, contents undefined."""
        with self.current():
            return HostDeviceBuffer(self, nbytes)

    def make_timer(self) -> Timer:
        """A new timer."""

    def bytes_in_use(self) -> int:
        """Memory of the device in use by all programs; where host and device share it, that of the host included."""

    def begin_capture(self, stream: Stream) -> None:
        """Record, rather than run, what this thread enqueues on the stream from now on."""

    def end_capture(self, stream: Stream) -> Graph:
        """Stop recording. Raises BackendError if something cannot be recorded; the stream is usable again either way."""

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Enqueue the whole graph on the stream."""

    # What a buffer calls, while the device is current:

    def allocate_pair(self, nbytes: int, owned: ExitStack) -> tuple[Bytes, int]:
        """The host's bytes and the device's address of a new buffer; `owned` is given the calls that free them."""

    def copy_to_device(self, pointer: int, host: Bytes, stream: Stream) -> None:
        """Enqueue the copy of page-locked bytes to an address on the device."""

    def copy_to_host(self, host: Bytes, pointer: int, stream: Stream) -> None:
        """Enqueue the copy from an address on the device that fills page-locked bytes."""


class Depth(threading.local):
    """How many `current()` blocks of a device are open in this thread."""

    value = 0
