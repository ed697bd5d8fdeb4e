"""Describe the machine that a figure was measured on."""

from dataclasses import dataclass

from calib.parallel import usable_cores
from edge.runtime.runner import Runner
from edge.runtime.trt_runner import TrtRunner
from engines import hardware

_LIBRARIES = ("ufovit-edge", "numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "cuda-python")
_BUSY = 0.5
"""Runnable programs per core above which other programs disturb the measurement."""


@dataclass(frozen=True)
class Machine:
    """A machine that runs a measurement.

    Attributes:
        system: operating system and architecture.
        processor: its name; for a Jetson, the module's.
        cores: that this process may use.
        load: mean number of runnable programs over the previous minute; None where the system does not report it.
        device: name of the GPU that ran the engine, "" on a CPU.
        libraries: installed distribution -> version.
    """

    system: str
    processor: str
    cores: int
    load: float | None
    device: str
    libraries: dict[str, str]

    @property
    def busy(self) -> bool:
        """Whether other programs were running at the start."""
        return self.load is not None and self.load > _BUSY * self.cores


def this_machine(runner: Runner) -> Machine:
    """Describe this machine."""
    return Machine(
        system=hardware.system(),
        processor=hardware.processor(),
        cores=usable_cores(),
        load=hardware.load_average(),
        device=runner.memory.name if isinstance(runner, TrtRunner) else "",
        libraries={name: version for name, version in hardware.versions(*_LIBRARIES).items() if version},
    )
