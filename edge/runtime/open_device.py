"""Open a CUDA device with the first library that works on this machine."""

from calib.errors import MissingError, UsageError
from edge.runtime import cuda_python_memory, pycuda_memory
from edge.runtime.device_memory import DeviceMemory, Library

_LIBRARIES = {"pycuda": pycuda_memory.open_memory, "cuda-python": cuda_python_memory.open_memory}
"""In the order of trial."""


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
    if library is not None and library not in _LIBRARIES:
        raise UsageError("no such CUDA library", found=library, allowed=", ".join(_LIBRARIES))
    refusals: dict[str, MissingError] = {}
    for name in [library] if library else _LIBRARIES:
        try:
            return _LIBRARIES[name](device, zero_copy)
        except MissingError as error:
            refusals[name] = error
    if len(refusals) == 1:
        raise next(iter(refusals.values()))
    reasons = "".join(f"\n{name}: {error}" for name, error in refusals.items())
    raise MissingError("no CUDA device can be used", found=reasons)
