"""The only door to TensorRT. Its Python API answers failures with None or False; here each becomes an error with its reason.

Flavours: "rtx" is the module `tensorrt_rtx` (TensorRT for RTX), "trt" the module `tensorrt`. Their API names agree from
TensorRT 11 on. What differs between releases is asked of the module itself (`hasattr`), never derived from a version.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from calib.errors import InputError, MissingError
from engines.backend import Advance
from engines.errors import BackendError
from engines.interruptible import checkpoint, run

Flavour = Literal["rtx", "trt"]
_MODULES: dict[str, str] = {"rtx": "tensorrt_rtx", "trt": "tensorrt"}
_NAMES: dict[str, str] = {"rtx": "TensorRT-RTX", "trt": "TensorRT"}
_SHOWN_LINES = 12


def load(flavour: Flavour) -> Any:
    """The TensorRT module. Raises MissingError naming the pip extra when it, or a library that it needs, is absent."""
    name, extra = _MODULES[flavour], f"pip install 'ufovit-edge[{flavour}]'"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"{_NAMES[flavour]} is not installed", found=error, next_command=extra) from error
    except (OSError, RuntimeError) as error:  # the package is there, a shared library of it is not or does not load
        raise MissingError(f"{_NAMES[flavour]} does not load", found=error, next_command=extra) from error
    if not hasattr(module, "Builder"):
        raise MissingError(f"{_NAMES[flavour]} is an empty placeholder package", where=name, next_command=extra)
    return module


def version(flavour: Flavour) -> str:
    """Version of the library; raises MissingError like `load`."""
    return str(load(flavour).__version__)


class Builder:
    """One builder and the log that its library wrote.

    Attributes:
        module: the TensorRT module.
        log: lines "SEVERITY: text", in order, verbose ones left out.
    """

    def __init__(self, flavour: Flavour) -> None:
        self.module = load(flavour)
        self.name = _NAMES[flavour]
        self.log: list[str] = []
        self._logger = _make_logger(self.module, self.log)
        with _collection_paused():
            self._builder = self.module.Builder(self._logger)

    def parse(self, onnx_bytes: bytes) -> Any:
        """The strongly typed network of an ONNX model. Raises BackendError naming the nodes that the parser refuses."""
        flags = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self._builder.create_network(0 if flags is None else 1 << int(flags))
        parser = self.module.OnnxParser(network, self._logger)
        # In a thread, because the library swallows what is raised in its callbacks: a Ctrl-C, too, if it arrived there.
        if not run(lambda: parser.parse(onnx_bytes)):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            reasons = [f"{e.node_name() or 'graph'} ({e.node_operator() or '?'}): {e.desc().strip()}" for e in errors]
            raise self._error(f"{self.name} does not accept the graph", reasons or self._complaints())
        return network

    def make_config(self) -> Any:
        """A builder configuration with the names of layers kept in the engine and without TF32: FP32 means FP32."""
        config = self._builder.create_builder_config()
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        if hasattr(self.module.BuilderFlag, "TF32"):
            config.clear_flag(self.module.BuilderFlag.TF32)
        return config

    def add_profile(self, config: Any, shapes: Mapping[str, tuple[tuple[int, ...], ...]]) -> None:
        """One optimization profile: input name -> its (min, opt, max) shapes."""
        profile = self._builder.create_optimization_profile()
        for name, triple in shapes.items():
            profile.set_shape(name, *triple)
        if config.add_optimization_profile(profile) < 0:
            raise self._error(f"{self.name} refuses the batch sizes", [str(dict(shapes)), *self._complaints()])

    def set_compute_capabilities(self, config: Any, capabilities: tuple[str, ...]) -> None:
        """Build for these GPU generations, "major.minor", rather than for this machine's."""
        known = self.module.ComputeCapability
        members = [getattr(known, f"SM{c.replace('.', '')}", None) for c in capabilities]
        unknown = [c for c, m in zip(capabilities, members, strict=True) if m is None]
        if unknown:
            allowed = ", ".join(sorted(n for n in dir(known) if n.startswith("SM")))
            raise InputError(f"{self.name} knows no such compute capability", found=", ".join(unknown), allowed=allowed)
        config.num_compute_capabilities = len(members)
        for i, member in enumerate(members):
            config.set_compute_capability(member, i)

    def build(self, network: Any, config: Any, advance: Advance) -> bytes:
        """The serialized engine. Raises BackendError with the library's last words when there is none.

        Ctrl-C ends the wait at once, and the build itself at its next step, which may be many seconds away.
        """
        cancelled = threading.Event()
        if hasattr(config, "progress_monitor"):
            config.progress_monitor = _make_monitor(self.module, advance, cancelled)
        try:
            plan = run(lambda: self._builder.build_serialized_network(network, config), cancelled)
        except RuntimeError as error:
            raise self._error(f"{self.name} built no engine", [str(error), *self._complaints()]) from error
        if plan is None:
            raise self._error(f"{self.name} built no engine", self._complaints())
        return bytes(plan)

    def _complaints(self) -> list[str]:
        return [line for line in self.log if not line.startswith("INFO")]

    def _error(self, what: str, reasons: list[str]) -> BackendError:
        found = "\n    ".join(reasons[:_SHOWN_LINES]) or "no reason given"
        return BackendError(what, found=found, log=tuple(self.log))


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """No garbage collection inside the block.

    While TensorRT makes a builder it holds a lock and calls the logger. Were an older builder collected in there, its
    destructor would wait for the same lock, in the same thread, for ever.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _make_logger(module: Any, lines: list[str]) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]  # the base class is known only when the library is loaded
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # the bindings demand the explicit call

        def log(self, severity: Any, message: str) -> None:
            checkpoint()
            name = str(severity).rpartition(".")[2]
            if name != "VERBOSE":
                lines.append(f"{name}: {message}")

    return Logger()


def _make_monitor(module: Any, advance: Advance, cancelled: threading.Event) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # as above
        """Follows the outermost phase only: inner ones come and go in unknown number."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._outer = ""
            self._steps = 1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            checkpoint()
            if parent_phase is None:
                self._outer, self._steps = phase_name, max(num_steps, 1)

        def step_complete(self, phase_name: str, step: int) -> bool:
            checkpoint()
            if phase_name == self._outer:
                advance((step + 1) / self._steps)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            checkpoint()
            if phase_name == self._outer:
                advance(1.0)

    return Monitor()
