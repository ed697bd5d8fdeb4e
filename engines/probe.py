"""What this machine can do: facts for `ufovit doctor` and for target "auto". Nothing is built; a probe never raises."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from calib.errors import MissingError

_SECONDS = 10
_DEVICE_TREE = Path("/proc/device-tree/model")
TRTEXEC = (
    "JetPack 6.1 or newer where the module takes it; else try trtexec --onnx=model.int8.onnx --int8 --fp16 "
    "--saveEngine=engine.plan with the Q/DQ graph of `ufovit build`, if its parser knows the graph's opset"
)
"""The way for TensorRT 8.5 and 8.6, which are not supported: their networks are typed by flags, not by the graph."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver shows it; the compute capability is "major.minor"."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class BackendProbe:
    """Whether a backend works here.

    Attributes:
        backend: its key in `engines.build.BACKENDS`.
        works: whether it can build here.
        version: of its library, empty where it is missing.
        why: one sentence.
        mend: the command that makes it work, None where it does or nothing does.
    """

    backend: str
    works: bool
    version: str
    why: str
    mend: str | None


def probe_backend(backend: str) -> BackendProbe:
    """Try one backend by loading its library."""
    try:
        version = _VERSIONS[backend]()
    except MissingError as error:
        return BackendProbe(backend, False, "", str(error).splitlines()[0], _MENDS[backend])
    return BackendProbe(backend, True, version, _WORKS[backend], None)


def require_backend(backend: str) -> None:
    """Load a backend's library. Raises MissingError naming the command that mends it."""
    _VERSIONS[backend]()


def probe_backends() -> tuple[BackendProbe, ...]:
    """Every backend, in the order of the registry."""
    return tuple(probe_backend(name) for name in _VERSIONS)


def jetson_module() -> str:
    """The Jetson module that this machine is, such as "NVIDIA Jetson Orin Nano Developer Kit"; "" for any other machine."""
    try:
        model = _DEVICE_TREE.read_bytes().rstrip(b"\0").decode(errors="replace").strip()
    except OSError:
        return ""
    return model if "Jetson" in model or platform.release().endswith("-tegra") else ""


def gpu_compute_capabilities() -> tuple[str, ...]:
    """Compute capabilities, "major.minor", of the NVIDIA GPUs that the driver shows; empty without driver or GPU."""
    return tuple(gpu.compute_capability for gpu in gpus())


def can_drive_gpu() -> bool:
    """Whether a library is installed that copies to and from a GPU: pycuda or cuda-python."""
    return any(find_spec(name) is not None for name in ("pycuda", "cuda"))


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver shows; none without driver or GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run(
            [program, "--query-gpu=compute_cap,name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (line.partition(",") for line in answer.stdout.splitlines())
    return tuple(Gpu(name.strip(), cc.strip()) for cc, _, name in rows if cc.strip().replace(".", "", 1).isdigit())


def _rtx_version() -> str:
    from engines.trt_api import version

    return version("rtx")


def _ort_version() -> str:
    try:
        from engines.ort import version
    except ModuleNotFoundError as error:  # onnx: a device has none
        raise MissingError(f"{error.name} is not installed", next_command=_MENDS["ort"]) from error
    return version()


def _trt_version() -> str:
    from engines.trt_api import version

    found = version("trt")
    if not jetson_module() and not gpus():
        raise MissingError("TensorRT builds on the GPU that the engine is for, and this machine has none", found=found)
    return found


def _torch_trt_version() -> str:
    from engines.torch_trt import version

    return version()


_VERSIONS: dict[str, Callable[[], str]] = {
    "ort": _ort_version,
    "trt": _trt_version,
    "trt_rtx": _rtx_version,
    "torch_trt": _torch_trt_version,
}
_MENDS = {
    "ort": "pip install 'ufovit-edge[build]'",
    "trt": "pip install 'ufovit-edge[trt]' on a machine with an NVIDIA GPU; on a Jetson it comes with JetPack 6.1 or newer",
    "trt_rtx": "pip install 'ufovit-edge[rtx]'",
    "torch_trt": "scripts/install.sh torch-trt",
}
_WORKS = {
    "ort": "ONNX Runtime builds and runs engines here",
    "trt": "TensorRT builds engines for this machine's GPU and runs them",
    "trt_rtx": "TensorRT-RTX builds engines here; running them takes an RTX GPU",
    "torch_trt": "torch-tensorrt builds engines here, with --backend torch-tensorrt",
}
