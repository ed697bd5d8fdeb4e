"""The backend registry: list, load and probe the backends of this machine."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from calib.errors import MissingError, UsageError
from engines.backend_protocol import Backend


@dataclass(frozen=True)
class BackendEntry:
    """One backend in the registry, the command that installs it, and what it does then, one sentence.

    `module` is a dotted name, loaded on first use; it defines BACKEND and `version()`, which raises MissingError.
    """

    module: str
    install: str
    capability: str


BACKENDS: dict[str, BackendEntry] = {
    "ort": BackendEntry("engines.ort.backend", "pip install 'ufovit-edge[build]'", "ONNX Runtime builds and runs engines here"),
    "openvino": BackendEntry(
        "engines.openvino.backend",
        "pip install 'ufovit-edge[openvino]'",
        "OpenVINO builds and runs engines for the CPU here",
    ),
    "trt": BackendEntry(
        "engines.trt.trt_backend",
        "pip install 'ufovit-edge[trt]' on a machine with an NVIDIA GPU; on a Jetson it comes with JetPack 6.1 or newer",
        "TensorRT builds engines for this machine's GPU and runs them",
    ),
    "trt_rtx": BackendEntry(
        "engines.trt.rtx_backend",
        "pip install 'ufovit-edge[rtx]'",
        "TensorRT-RTX builds engines here; running them requires an RTX GPU",
    ),
    "torch_trt": BackendEntry(
        "engines.torch_tensorrt.backend",
        "scripts/install.sh torch-trt",
        "torch-tensorrt builds engines here, with --backend torch-tensorrt",
    ),
}


@dataclass(frozen=True)
class BackendProbe:
    """Whether a backend, a key of BACKENDS, can build on this machine, and why, one sentence.

    `version` is "" if its library is missing; `install`, the command that installs it, is None if it works.
    """

    backend: str
    works: bool
    version: str
    why: str
    install: str | None


def load_backend(name: str) -> Backend:
    """Load a backend by name. Raises UsageError listing the known names."""
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}", where="--backend", allowed=", ".join(BACKENDS))
    backend: Backend = import_module(BACKENDS[name].module).BACKEND
    return backend


def require_backend(name: str) -> str:
    """Load a backend's library and return its version. Raises MissingError with the command that installs it."""
    entry = BACKENDS[name]
    try:
        module: Any = import_module(entry.module)
    except ModuleNotFoundError as error:  # onnx is not installed on a device
        raise MissingError(f"{error.name} is not installed", next_command=entry.install) from error
    return str(module.version())


def probe_backend(name: str) -> BackendProbe:
    """Probe one backend by loading its library."""
    entry = BACKENDS[name]
    try:
        version = require_backend(name)
    except MissingError as error:
        return BackendProbe(name, False, "", str(error).splitlines()[0], entry.install)
    return BackendProbe(name, True, version, entry.capability, None)


def probe_backends() -> tuple[BackendProbe, ...]:
    """Probe every backend, in registry order."""
    return tuple(map(probe_backend, BACKENDS))
