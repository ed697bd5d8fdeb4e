"""Memory and streams of a CUDA device: one protocol, one file per library that reaches CUDA from Python.

pycuda is what a Jetson has or can compile; cuda-python (its package `cuda-bindings`) comes as wheels for x86-64 and aarch64 and
can capture CUDA graphs. Both work in the device's primary context, which TensorRT uses too. Nothing is loaded before
`open_device` is called.
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
    """A CUDA stream that does not wait for the default stream. What is put on it runs in order, later."""

    @property
    def handle(self) -> int:
        """The `cudaStream_t`, as TensorRT takes it."""

    def synchronize(self) -> None:
        """Wait until all that was put on the stream has run. Raises BackendError for what failed meanwhile."""

    def destroy(self) -> None:
        """Give the stream back; a second call does nothing."""


class Graph(Protocol):
    """A captured CUDA graph, ready to be launched: all it does reads and writes the addresses that it was captured with."""

    def destroy(self) -> None:
        """Give the graph back; a second call does nothing."""


class Timer(Protocol):
    """Two CUDA events: how long the device itself took for what was put on a stream between them."""

    def start(self, stream: Stream) -> None:
        """Put the first event on the stream."""

    def stop(self, stream: Stream) -> None:
        """Put the second event on the stream."""

    def elapsed_ms(self) -> float:
        """Milliseconds from the first to the second, in steps of about half a microsecond; both have happened."""

    def destroy(self) -> None:
        """Give the events back; a second call does nothing."""


class HostDeviceBuffer(Protocol):
    """Page-locked host memory and its counterpart on the device: the same bytes, if `mapped`, else two copies."""

    @property
    def host(self) -> npt.NDArray[np.uint8]:
        """The host's bytes, (nbytes,). Views of it are dead after `free`."""

    @property
    def device_pointer(self) -> int:
        """Address on the device, aligned to 256 bytes or more."""

    @property
    def mapped(self) -> bool:
        """Whether host and device share the memory (zero-copy), so that nothing is copied."""

    def to_device(self, nbytes: int, stream: Stream) -> None:
        """Put the copy of the first `nbytes` bytes from host to device on the stream; nothing where `mapped`."""

    def to_host(self, nbytes: int, stream: Stream) -> None:
        """Put the copy of the first `nbytes` bytes from device to host on the stream; nothing where `mapped`."""

    def free(self) -> None:
        """Give the memory back; a second call does nothing. The caller has synchronized the streams that use it."""


class DeviceMemory(Protocol):
    """One CUDA device as seen from any thread.

    Every call makes the device current in the calling thread while it lasts. Wrap a sequence of calls, and the calls of
    other CUDA libraries such as TensorRT, in `with memory.current():`, and the device is made current once.

    Every failure is a BackendError naming the CUDA call.
    """

    @property
    def library(self) -> Library:
        """The Python library behind it."""

    @property
    def name(self) -> str:
        """Of the device, such as "Orin"."""

    @property
    def compute_capability(self) -> str:
        """ "major.minor", such as "8.7"."""

    @property
    def integrated(self) -> bool:
        """Whether the GPU shares the memory of the host, as on a Jetson."""

    @property
    def total_bytes(self) -> int:
        """Memory of the device."""

    @property
    def can_capture(self) -> bool:
        """Whether the library offers CUDA graphs; without, the three calls below raise BackendError."""

    def current(self) -> AbstractContextManager[None]:
        """Make the device current in the calling thread for a while; may be nested."""

    def make_stream(self) -> Stream:
        """A new stream, neither the default one nor one that waits for it."""

    def allocate(self, nbytes: int) -> HostDeviceBuffer:
        """A new buffer of `nbytes` > 0 bytes, contents undefined; `mapped` as the device was opened."""

    def make_timer(self) -> Timer:
        """A new timer."""

    def bytes_in_use(self) -> int:
        """Memory of the device that is taken, by whichever program; where host and device share it, the host's own included."""

    def begin_capture(self, stream: Stream) -> None:
        """From now on, what this thread puts on the stream is recorded rather than run."""

    def end_capture(self, stream: Stream) -> Graph:
        """Stop recording. Raises BackendError if something could not be recorded; the stream is usable again either way."""

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Put the whole graph on the stream."""


class Depth(threading.local):
    """How many `current()` blocks of a device are open in this thread."""

    value = 0


def check_size(nbytes: int, host: npt.NDArray[np.uint8]) -> None:
    """Raises BackendError unless a buffer, empty once it is freed, holds `nbytes` bytes."""
    if not 0 < nbytes <= host.nbytes:
        raise BackendError("a copy beyond the buffer", found=f"{nbytes} of {host.nbytes} bytes")
