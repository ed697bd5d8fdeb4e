"""CUDA events through cuda-python: the timer of `edge.runtime.cuda_python_memory`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from calib.errors import BackendError
from edge.runtime.device_memory import Stream


class CudaPythonTimer:
    """A `Timer`. `call` calls a function of CUDA by name and raises BackendError; `current` makes the device current."""

    def __init__(self, call: Callable[..., Any], current: Callable[[], AbstractContextManager[None]]) -> None:
        self._call = call
        self._current = current
        self._events: list[Any] = []
        try:
            for _ in range(2):
                self._events.append(self._call("cudaEventCreate"))
        except BackendError:
            self.destroy()
            raise

    def start(self, stream: Stream) -> None:
        """See `Timer`."""
        self._record(0, stream)

    def stop(self, stream: Stream) -> None:
        """See `Timer`."""
        self._record(1, stream)

    def _record(self, event: int, stream: Stream) -> None:
        with self._current():
            self._call("cudaEventRecord", self._events[event], stream.handle)

    def elapsed_ms(self) -> float:
        """See `Timer`."""
        first, second = self._events
        with self._current():
            return float(self._call("cudaEventElapsedTime", first, second))

    def destroy(self) -> None:
        """See `Timer`."""
        events, self._events = self._events, []
        with self._current():
            for event in events:
                self._call("cudaEventDestroy", event)
