"""The machine that a figure comes from: without it, no figure means anything."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edge.runtime.runner import Runner
from edge.runtime.trt_runner import TrtRunner
from engines.hardware import jetson_module, versions

_LIBRARIES = ("ufovit-edge", "numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "cuda-python")
_BUSY = 0.5
"""Runnable programs per core above which somebody else is at work."""


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        system: operating system and architecture.
        processor: its name; of a Jetson, the module's.
        cores: that this process may use.
        load: mean number of runnable programs over the minute before; None where the system does not tell.
        device: name of the GPU that ran the engine, "" on a CPU.
        libraries: installed distribution -> version, of those that matter here.
    """

    system: str
    processor: str
    cores: int
    load: float | None
    device: str
    libraries: dict[str, str]

    @property
    def busy(self) -> bool:
        """Whether other programs were at work when it began."""
        return self.load is not None and self.load > _BUSY * self.cores


def this_machine(runner: Runner) -> Machine:
    """What this machine is."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        processor=jetson_module() or _processor(),
        cores=len(os.sched_getaffinity(0)),
        load=_load(),
        device=runner.memory.name if isinstance(runner, TrtRunner) else "",
        libraries={name: version for name, version in versions(*_LIBRARIES).items() if version},
    )


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """As the kernel names it."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.processor() or "unknown")


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
