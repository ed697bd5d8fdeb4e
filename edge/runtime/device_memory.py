"""Memory and streams of a CUDA device: one protocol, one file per library that reaches CUDA from Python.

pycuda is installed or can be compiled on a Jetson; cuda-python (its package `cuda-bindings`) comes as wheels for x86-64 and
aarch64 and can capture CUDA graphs. Both work in the device's primary context, which TensorRT uses too. Nothing is loaded
before `open_device` is called.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from calib.errors import BackendError

Library = Literal["pycuda", "cuda-python"]


class Stream(Protocol):
    """A CUDA stream that does not wait for the default stream. Work that is enqueued on it runs in order, asynchronously."""

    @property
    def handle(self) -> int:
        """The `cudaStream_t`, as TensorRT takes it."""

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

    def stop(self, stream: Stream) -> None:
        """Record the second event on the stream."""

    def elapsed_ms(self) -> float:
        """Milliseconds between the events, both of which must have completed; resolution about half a microsecond."""

    def destroy(self) -> None:
        """Destroy the events; a second call does nothing."""


class HostDeviceBuffer(Protocol):
    """Page-locked host memory and its counterpart on the device: the same bytes if `mapped`, else two copies."""

    @property
    def host(self) -> npt.NDArray[np.uint8]:
        """The host's bytes, (nbytes,). Views of it are invalid after `free`."""

    @property
    def device_pointer(self) -> int:
        """Address on the device, aligned to 256 bytes or more."""

    @property
    def mapped(self) -> bool:
        """Whether host and device share the memory (zero-copy), so that nothing is copied."""

    def to_device(self, nbytes: int, stream: Stream) -> None:
        """Enqueue the copy of the first `nbytes` bytes from host to device; does nothing if `mapped`."""

    def to_host(self, nbytes: int, stream: Stream) -> None:
        """Enqueue the copy of the first `nbytes` bytes from device to host; does nothing if `mapped`."""

    def free(self) -> None:
        """Free the memory; a second call does nothing. The caller must have synchronized the streams that use it."""


class DeviceMemory(Protocol):
    """One CUDA device; any thread may call it.

    Every call makes the device current in the calling thread for its duration. To do so once for a sequence of calls, also
    those of other CUDA libraries such as TensorRT, wrap them in `with memory.current():`.

    Every failure is a BackendError naming the CUDA call.
    """

    @property
    def library(self) -> Library:
        """The Python library in use."""

    @property
    def name(self) -> str:
        """Name of the device, such as "Orin"."""

    @property
    def compute_capability(self) -> str:
        """ "major.minor", such as "8.7"."""

    @property
    def integrated(self) -> bool:
        """Whether the GPU shares the memory of the host, as on a Jetson."""

    @property
    def total_bytes(self) -> int:
        """Total memory of the device."""

    @property
    def can_capture(self) -> bool:
        """Whether the library supports CUDA graphs; if not, `begin_capture`, `end_capture` and `launch` raise BackendError."""

    def current(self) -> AbstractContextManager[None]:
        """Make the device current in the calling thread for a while; may be nested."""

    def make_stream(self) -> Stream:
        """A new stream, neither the default one nor one that waits for it."""

    def allocate(self, nbytes: int) -> HostDeviceBuffer:
        """A new buffer of `nbytes` > 0 bytes, contents undefined; `mapped` as the device was opened."""

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


class Depth(threading.local):
    """How many `current()` blocks of a device are open in this thread."""

    value = 0


def check_size(nbytes: int, host: npt.NDArray[np.uint8]) -> None:
    """Raise BackendError unless a buffer, empty once it is freed, holds `nbytes` bytes."""
    if not 0 < nbytes <= host.nbytes:
        raise BackendError("the copy exceeds the buffer", found=f"{nbytes} of {host.nbytes} bytes")
