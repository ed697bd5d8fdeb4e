"""The backends: their registry, loading one, and whether each works on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from calib.errors import InputError, MissingError

if TYPE_CHECKING:
    from engines.backend_protocol import Backend


@dataclass(frozen=True)
class BackendEntry:
    """A backend of the registry.

    Attributes:
        module: its dotted name, loaded when first used; it has BACKEND and `version()`, which raises MissingError.
        install: the command that makes it work.
        when_it_works: one sentence on what it does here.
    """

    module: str
    install: str
    when_it_works: str


BACKENDS: dict[str, BackendEntry] = {
    "ort": BackendEntry("engines.ort.backend", "pip install 'ufovit-edge[build]'", "ONNX Runtime builds and runs engines here"),
    "trt": BackendEntry(
        "engines.trt.trt_backend",
        "pip install 'ufovit-edge[trt]' on a machine with an NVIDIA GPU; on a Jetson it comes with JetPack 6.1 or newer",
        "TensorRT builds engines for this machine's GPU and runs them",
    ),
    "trt_rtx": BackendEntry(
        "engines.trt.rtx_backend",
        "pip install 'ufovit-edge[rtx]'",
        "TensorRT-RTX builds engines here; running them takes an RTX GPU",
    ),
    "torch_trt": BackendEntry(
        "engines.torch_tensorrt.backend",
        "scripts/install.sh torch-trt",
        "torch-tensorrt builds engines here, with --backend torch-tensorrt",
    ),
}


@dataclass(frozen=True)
class BackendProbe:
    """Whether a backend works here.

    Attributes:
        backend: its key in BACKENDS.
        works: whether it can build here.
        version: of its library, empty where it is missing.
        why: one sentence.
        install: the command that makes it work, None where it does.
    """

    backend: str
    works: bool
    version: str
    why: str
    install: str | None


def load_backend(name: str) -> Backend:
    """The backend of a name. Raises InputError listing the known names."""
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}", allowed=", ".join(BACKENDS))
    backend: Backend = import_module(BACKENDS[name].module).BACKEND
    return backend


def require_backend(name: str) -> str:
    """Load a backend's library; its version. Raises MissingError naming the command that installs it."""
    entry = BACKENDS[name]
    try:
        module: Any = import_module(entry.module)
    except ModuleNotFoundError as error:  # onnx: a device has none
        raise MissingError(f"{error.name} is not installed", next_command=entry.install) from error
    return str(module.version())


def probe_backend(name: str) -> BackendProbe:
    """Try one backend by loading its library."""
    entry = BACKENDS[name]
    try:
        version = require_backend(name)
    except MissingError as error:
        return BackendProbe(name, False, "", str(error).splitlines()[0], entry.install)
    return BackendProbe(name, True, version, entry.when_it_works, None)


def probe_backends() -> tuple[BackendProbe, ...]:
    """Every backend, in the order of the registry."""
    return tuple(map(probe_backend, BACKENDS))
