"""Measure the memory of this process (from Linux) and of the device (from CUDA)."""

from dataclasses import dataclass
from pathlib import Path

from edge.runtime.runner import Runner
from edge.runtime.trt_runner import TrtRunner

STATUS = Path("/proc/self/status")
_KIB = 1024


@dataclass(frozen=True)
class Resident:
    """Resident memory of a process, bytes: now, and its peak. None where the system does not report it."""

    now_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Memory:
    """Memory, bytes; None where it is not reported.

    Attributes:
        before_bytes: resident memory of this process before the build was opened: Python and its libraries.
        after_bytes: the same after the last run; `peak_bytes` is the peak since the process started.
        device_used_bytes: in use on the GPU at the end, by all programs; a Jetson shares it with the CPU.
    """

    before_bytes: int | None
    after_bytes: int | None
    peak_bytes: int | None
    device_used_bytes: int | None = None
    device_total_bytes: int | None = None


def resident(status: Path = STATUS) -> Resident:
    """Resident memory, from VmRSS and VmHWM of /proc/PID/status (proc(5))."""
    try:
        lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Resident(None, None)
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return Resident(_bytes(fields.get("VmRSS", "")), _bytes(fields.get("VmHWM", "")))


def _bytes(text: str) -> int | None:
    """Bytes of "1234 kB"."""
    number, _, unit = text.strip().partition(" ")
    return int(number) * _KIB if number.isascii() and number.isdigit() and unit.strip() == "kB" else None


def measure_memory(before: Resident, runner: Runner, status: Path = STATUS) -> Memory:
    """Memory now and before the runner was opened."""
    after = resident(status)
    device = (runner.memory.bytes_in_use(), runner.memory.total_bytes) if isinstance(runner, TrtRunner) else ()
    return Memory(before.now_bytes, after.now_bytes, after.peak_bytes, *device)
