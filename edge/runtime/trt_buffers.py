"""The buffers of one input or output of a TensorRT engine, on both sides, for its largest batch."""

import math
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.runtime.device_memory import DeviceMemory, Stream
from edge.runtime.trt_io import PortType


class PortBuffer:
    """Memory for `batch` rows of `shape` of a tensor, at a fixed address of the device.

    `rows` is the host's side of it, (batch, *shape). `owned` frees the memory; `rows` is gone then.
    """

    def __init__(self, port: PortType, batch: int, shape: tuple[int, ...], memory: DeviceMemory, owned: ExitStack) -> None:
        self.name = port.name
        self._row_bytes = math.prod(shape) * np.dtype(port.dtype).itemsize
        self._buffer = memory.allocate(batch * self._row_bytes)
        owned.callback(self._buffer.free)
        self.address = self._buffer.device_pointer
        self.rows: npt.NDArray[Any] = self._buffer.host.view(port.dtype).reshape(batch, *shape)
        owned.callback(self._release)

    def to_device(self, batch: int, stream: Stream) -> None:
        """Enqueue the copy of the first rows to the device."""
        self._buffer.to_device(batch * self._row_bytes, stream)

    def to_host(self, batch: int, stream: Stream) -> None:
        """Enqueue the copy of the first rows from the device."""
        self._buffer.to_host(batch * self._row_bytes, stream)

    def _release(self) -> None:
        del self.rows  # a view of what is freed next
