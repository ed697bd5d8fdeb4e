"""The backends: their registry, loading one, and whether each works on this machine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from calib.errors import InputError

if TYPE_CHECKING:
    from engines.backend_protocol import Backend


from collections.abc import Callable
from dataclasses import dataclass

from calib.errors import MissingError
from engines.hardware import gpus, jetson_module


@dataclass(frozen=True)
class BackendProbe:
    """Whether a backend works here.

    Attributes:
        backend: its key in `engines.backends.BACKENDS`.
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


def _rtx_version() -> str:
    from engines.trt.api import version

    return version("rtx")


def _ort_version() -> str:
    try:
        from engines.ort.backend import version
    except ModuleNotFoundError as error:  # onnx: a device has none
        raise MissingError(f"{error.name} is not installed", next_command=_MENDS["ort"]) from error
    return version()


def _trt_version() -> str:
    from engines.trt.api import version

    found = version("trt")
    if not jetson_module() and not gpus():
        raise MissingError("TensorRT builds on the GPU that the engine is for, and this machine has none", found=found)
    return found


def _torch_trt_version() -> str:
    from engines.torch_tensorrt.backend import version

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


BACKENDS: dict[str, str] = {
    "ort": "engines.ort.backend",
    "trt": "engines.trt.trt_backend",
    "trt_rtx": "engines.trt.rtx_backend",
    "torch_trt": "engines.torch_tensorrt.backend",
}
"""Backend name -> module, whose BACKEND is loaded when first used."""


def load_backend(name: str) -> Backend:
    """The backend of a name. Raises InputError listing the known names."""
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}", allowed=", ".join(BACKENDS))
    backend: Backend = import_module(BACKENDS[name]).BACKEND
    return backend
