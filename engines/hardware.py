"""Detect the hardware of this machine: processor, load, GPUs, Jetson module, installed libraries. Never raises."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_TIMEOUT_SECONDS = 10
_DEVICE_TREE = Path("/proc/device-tree/model")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as reported by its driver; the compute capability is "major.minor"."""

    name: str
    compute_capability: str


def jetson_module() -> str:
    """Name of this Jetson module, such as "NVIDIA Jetson Orin Nano Developer Kit"; "" on any other machine."""
    try:
        model = _DEVICE_TREE.read_bytes().rstrip(b"\0").decode(errors="replace").strip()
    except OSError:
        return ""
    return model if "Jetson" in model or platform.release().endswith("-tegra") else ""


def system() -> str:
    """Operating system, architecture and Python version."""
    return f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"


def processor() -> str:
    """Name of the Jetson module, else of the processor according to the kernel; "unknown" if there is none."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return jetson_module() or next(names, platform.processor() or "unknown")


def load_average() -> float | None:
    """Mean number of runnable processes over the last minute; None if the system does not report it."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def gpu_compute_capabilities() -> tuple[str, ...]:
    """Compute capabilities, "major.minor", of the NVIDIA GPUs of this machine; empty without driver or GPU."""
    return tuple(gpu.compute_capability for gpu in gpus())


def can_drive_gpu() -> bool:
    """Whether pycuda or cuda-python, which copy to and from a GPU, is installed."""
    return any(find_spec(name) is not None for name in ("pycuda", "cuda"))


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver reports; empty without driver or GPU."""
    executable = shutil.which("nvidia-smi")
    if executable is None:
        return ()
    try:
        completed = subprocess.run(
            [executable, "--query-gpu=compute_cap,name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (line.partition(",") for line in completed.stdout.splitlines())
    return tuple(Gpu(name.strip(), cc.strip()) for cc, _, name in rows if cc.strip().replace(".", "", 1).isdigit())


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions of distributions, "" for missing ones; imports nothing."""
    installed = {}
    for name in distributions:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = ""
    return installed
