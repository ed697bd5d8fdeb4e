"""Open a CUDA device with the first library that works on this machine."""

from __future__ import annotations

import importlib
from typing import Protocol

from calib.errors import MissingError, UsageError
from edge.runtime.device_memory import DeviceMemory, Library

_MODULES: dict[str, str] = {
    "pycuda": "edge.runtime.pycuda_memory",
    "cuda-python": "edge.runtime.cuda_python_memory",
}
"""Library -> the module whose `open_memory(device, zero_copy)` opens a device with it, in the order of trial."""


class CudaLibrary(Protocol):
    """The interface of the modules in `_MODULES`."""

    def open_memory(self, device: int, zero_copy: bool | None) -> DeviceMemory:
        """As `open_device`, with this library. Raises MissingError naming what is absent: library, driver or device."""


def open_device(device: int = 0, library: Library | None = None, *, zero_copy: bool | None = None) -> DeviceMemory:
    """Open a CUDA device.

    Args:
        device: device number.
        library: None for the first that works, pycuda before cuda-python.
        zero_copy: whether buffers are mapped into the device's address space rather than copied. None: on integrated GPUs,
            where both sides have the same memory; elsewhere every access would cross the bus.

    Raises:
        UsageError: an unknown library, a negative number.
        MissingError: no library, no driver or no such device, with the reason of each library.
    """
    if device < 0:
        raise UsageError("no such CUDA device", found=device, allowed="0 or more")
    if library is not None and library not in _MODULES:
        raise UsageError("no such CUDA library", found=library, allowed=", ".join(_MODULES))
    refusals: dict[str, MissingError] = {}
    for name in [library] if library else _MODULES:
        opener: CudaLibrary = importlib.import_module(_MODULES[name])
        try:
            return opener.open_memory(device, zero_copy)
        except MissingError as error:
            refusals[name] = error
    if len(refusals) == 1:
        raise next(iter(refusals.values()))
    raise MissingError("no CUDA device can be used", found="".join(f"\n  {n}: {_indented(e)}" for n, e in refusals.items()))


def _indented(error: MissingError) -> str:
    return str(error).replace("\n", "\n  ")
