"""`ufovit doctor`: check which backends and libraries work on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from calib.errors import MissingError

if TYPE_CHECKING:
    from engines.backends import BackendProbe

_SIGN = "pip install 'ufovit-edge[sign]'"


@dataclass(frozen=True)
class Library:
    """A library that some commands need besides the backends; `load` raises MissingError naming the install command."""

    name: str
    purpose: str
    distributions: tuple[str, ...]
    load: Callable[[], Any]

    def probe(self) -> BackendProbe:
        """Check the library by importing it."""
        from engines.backends import BackendProbe
        from engines.hardware import versions

        version = next(filter(None, versions(*self.distributions).values()), "")
        try:
            module = self.load()
        except MissingError as error:
            return BackendProbe(self.name, False, version, str(error).splitlines()[0], error.next_command)
        return BackendProbe(self.name, True, version or str(getattr(module, "__version__", "")), self.purpose, None)


def doctor() -> int:
    """List backends and libraries: which work here, and for each that does not, why and the command that installs it."""
    from rich.console import Console

    from calib.parallel import usable_cores
    from engines import hardware
    from engines.backends import probe_backends
    from engines.select_target import AUTO, resolve_target

    console = Console(soft_wrap=True)
    gpus = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in hardware.gpus()) or "none"
    console.print(f"{hardware.system()}, {usable_cores()} cores: {hardware.processor()}, NVIDIA GPUs: {gpus}")
    backends = probe_backends()
    _show(console, "backend", backends)
    _show(console, "library", tuple(library.probe() for library in _libraries()))
    resolution = resolve_target(AUTO)
    console.print(f"target auto resolves to {resolution.target.name}: {resolution.reason}")
    return 0 if any(probe.works for probe in backends) else 4


def _libraries() -> tuple[Library, ...]:
    from edge.camera import opencv
    from edge.runtime import cuda_python_memory, openvino_runner, pycuda_memory

    cv2 = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
    return (
        Library("OpenVINO", "runs INT8 graphs on x86 CPUs: --runner openvino", ("openvino",), openvino_runner.load),
        Library("OpenCV", "reads cameras, streams and videos", cv2, opencv.load_cv2),
        Library("OpenCV with GStreamer", "reads CSI cameras of a Jetson", cv2, opencv.load_with_gstreamer),
        Library("cryptography", "signs builds and checks signatures", ("cryptography",), _load_cryptography),
        Library("pycuda", "copies to and from an NVIDIA GPU", ("pycuda",), pycuda_memory.load),
        Library(
            "cuda-python",
            "the same, where pycuda is missing",
            ("cuda-python", "cuda-bindings"),
            cuda_python_memory.load,
        ),
    )


def _load_cryptography() -> Any:
    try:
        return import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        raise MissingError("cryptography is not installed", found=error, next_command=_SIGN) from error


def _show(console: Any, kind: str, probes: tuple[BackendProbe, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(kind, "works", "version", "why")
    for probe in probes:
        table.add_row(probe.backend, "yes" if probe.works else "no", probe.version, escape(probe.why))
    console.print(table)
    for probe in probes:
        if probe.install:
            console.print(f"{probe.backend} would work after: {probe.install}", markup=False, highlight=False)
