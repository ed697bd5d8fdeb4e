"""`ufovit doctor`: check which backends and libraries work on this machine."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from rich.markup import escape
from rich.table import Table

from calib.errors import MissingError
from calib.parallel import usable_cores
from edge.cli.console import SafeConsole
from engines import hardware
from engines.backends import BackendProbe, probe_backends
from engines.select_target import AUTO, resolve_target


def doctor() -> int:
    """List backends and libraries: which work here, and for each that does not, why and the command that installs it."""
    console = SafeConsole(soft_wrap=True)
    gpus = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in hardware.gpus()) or "none"
    console.print(f"{hardware.system()}, {usable_cores()} cores: {hardware.processor()}, NVIDIA GPUs: {gpus}", markup=False)
    backends = probe_backends()
    _show(console, "backend", backends)
    _show(console, "library", tuple(_probe_libraries()))
    resolution = resolve_target(AUTO)
    console.print(f"target auto resolves to {resolution.target.name}: {resolution.reason}", markup=False)
    return 0 if any(probe.works for probe in backends) else 4


def _probe_libraries() -> Iterator[BackendProbe]:
    """The libraries that some commands need besides the backends."""
    from edge.camera import opencv
    from edge.runtime import cuda_python_memory, pycuda_memory

    cv2 = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
    cuda = ("cuda-python", "cuda-bindings")
    yield _probe("OpenCV", "reads cameras, streams and videos", cv2, opencv.load_cv2)
    yield _probe("OpenCV with GStreamer", "reads CSI cameras of a Jetson", cv2, opencv.load_with_gstreamer)
    yield _probe("cryptography", "signs builds and checks signatures", ("cryptography",), _load_cryptography)
    yield _probe("pycuda", "copies to and from an NVIDIA GPU", ("pycuda",), pycuda_memory.load)
    yield _probe("cuda-python", "the same, where pycuda is missing", cuda, cuda_python_memory.load)


def _probe(name: str, purpose: str, distributions: tuple[str, ...], load: Callable[[], Any]) -> BackendProbe:
    """Check a library by importing it; `load` raises MissingError naming the install command."""
    version = next(filter(None, hardware.versions(*distributions).values()), "")
    try:
        module = load()
    except MissingError as error:
        return BackendProbe(name, False, version, str(error).splitlines()[0], error.next_command)
    return BackendProbe(name, True, version or str(getattr(module, "__version__", "")), purpose, None)


def _load_cryptography() -> Any:
    try:
        return import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        install = "pip install 'ufovit-edge[sign]'"
        raise MissingError("cryptography is not installed", found=error, next_command=install) from error


def _show(console: SafeConsole, kind: str, probes: tuple[BackendProbe, ...]) -> None:
    table = Table(kind, "works", "version", "why")
    for probe in probes:
        table.add_row(probe.backend, "yes" if probe.works else "no", escape(probe.version), escape(probe.why))
    console.print(table)
    for probe in probes:
        if probe.install:
            console.print(f"{probe.backend} would work after: {probe.install}", markup=False, highlight=False)
