"""What this machine can do: facts for `ufovit doctor` and for target "auto". Nothing is built; a probe never raises."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from calib.errors import MissingError

_SECONDS = 10


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


def gpu_compute_capabilities() -> tuple[str, ...]:
    """Compute capabilities, "major.minor", of the NVIDIA GPUs that the driver shows; empty without driver or GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run(
            [program, "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip().replace(".", "", 1).isdigit())


def _rtx_version() -> str:
    from engines.trt_api import version

    return version("rtx")


def _ort_version() -> str:
    from engines.ort import version

    return version()


_VERSIONS: dict[str, Callable[[], str]] = {"ort": _ort_version, "trt_rtx": _rtx_version}
_MENDS = {"ort": "pip install 'ufovit-edge[build]'", "trt_rtx": "pip install 'ufovit-edge[rtx]'"}
_WORKS = {
    "ort": "ONNX Runtime builds and runs engines here",
    "trt_rtx": "TensorRT-RTX builds engines here; running them takes an RTX GPU",
}
