"""Wrap the Python API of TensorRT: a call that returns None or False on failure raises an error with the library's log.

The only module that imports TensorRT. Flavours: "rtx" is the module `tensorrt_rtx` (TensorRT for RTX), "trt" the module
`tensorrt`, 10.3 to 11.4. Their API names agree from TensorRT 11 on. Differences between releases are detected with `hasattr`,
never by version: 11 has strongly typed networks only and dropped all precision flags, so those are never used.
"""

import contextlib
import gc
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from calib.errors import BackendError, MissingError, UsageError
from engines.backend_protocol import Advance
from engines.build_spec import BuilderOptions
from engines.targets import TRTEXEC
from engines.trt.interruptible import park_if_exiting, run_interruptible

T = TypeVar("T")
Flavour = Literal["rtx", "trt"]
_MODULES: dict[str, str] = {"rtx": "tensorrt_rtx", "trt": "tensorrt"}
_NAMES: dict[str, str] = {"rtx": "TensorRT-RTX", "trt": "TensorRT"}
_SHOWN_LINES = 12


def load(flavour: Flavour) -> Any:
    """Import the TensorRT module. Raises MissingError with the pip extra if it, or a shared library of it, is missing."""
    name, extra = _MODULES[flavour], f"pip install 'ufovit-edge[{flavour}]'"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"{_NAMES[flavour]} is not installed", found=error, next_command=extra) from error
    except (OSError, RuntimeError) as error:  # a shared library of the package is missing or does not load
        raise MissingError(f"{_NAMES[flavour]} does not load", found=error, next_command=extra) from error
    if not hasattr(module, "Builder"):
        raise MissingError(f"{_NAMES[flavour]} is an empty placeholder package", where=name, next_command=extra)
    if not hasattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):  # 8.5 and 8.6: JetPack 5 and 6.0
        raise MissingError(
            f"{_NAMES[flavour]} {module.__version__} does not support strongly typed networks",
            where=name,
            allowed="TensorRT 10.3 or newer: JetPack 6.1 or newer",
            next_command=TRTEXEC,
        )
    return module


def version(flavour: Flavour) -> str:
    """Version of the library. Raises MissingError like `load`."""
    return str(load(flavour).__version__)


class _Library:
    """A loaded TensorRT and its log: messages as "SEVERITY: text", in order, without verbose ones."""

    def __init__(self, flavour: Flavour) -> None:
        self.module = load(flavour)
        self.name = _NAMES[flavour]
        self.log: list[str] = []
        self._logger = _make_logger(self.module, self.log)

    def _warnings(self) -> list[str]:
        return [line for line in self.log if not line.startswith("INFO")]

    def _error(self, what: str, reasons: list[str] | None = None) -> BackendError:
        """The error with the library's reasons, by default the warnings and errors in its log."""
        lines = (self._warnings() if reasons is None else reasons)[:_SHOWN_LINES]
        return BackendError(what, found="\n    ".join(lines) or "no reason given", log=tuple(self.log))

    def _returned(self, value: T | None, failure: str) -> T:
        """What a call of the library returned; None is its failure."""
        if value is None:
            raise self._error(f"{self.name} {failure}")
        return value

    def _construct(self, constructor: Callable[[], T], what: str) -> T:
        """Construct an object of the library. Its constructor raises TypeError on failure, for example without a driver."""
        try:
            with _collection_paused():
                return constructor()
        except TypeError as error:
            found = "\n    ".join(self._warnings()[:_SHOWN_LINES]) or error
            raise MissingError(what, found=found, next_command="nvidia-smi shows whether the driver works") from error


class Builder(_Library):
    """A TensorRT builder and its log."""

    def __init__(self, flavour: Flavour) -> None:
        super().__init__(flavour)
        self._builder = self._construct(lambda: self.module.Builder(self._logger), f"{self.name} could not create a builder")

    def parse(self, onnx_bytes: bytes) -> Any:
        """Parse an ONNX model to a strongly typed network. Raises BackendError naming the nodes that the parser rejects."""
        strongly_typed = 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = self._returned(self._builder.create_network(strongly_typed), "could not create a network")
        parser = self.module.OnnxParser(network, self._logger)
        # In a thread, because the library discards exceptions raised in its callbacks, a KeyboardInterrupt included.
        if not run_interruptible(lambda: parser.parse(onnx_bytes)):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            reasons = [f"{e.node_name() or 'graph'} ({e.node_operator() or '?'}): {e.desc().strip()}" for e in errors]
            raise self._error(f"{self.name} rejects the graph", reasons or None)
        return network

    def make_config(self, options: BuilderOptions) -> Any:
        """Create a builder configuration with layer names kept in the engine and TF32 disabled: FP32 means FP32.

        Raises UsageError for an option that this release does not have.
        """
        config = self._returned(self._builder.create_builder_config(), "could not create a builder configuration")
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        if hasattr(self.module.BuilderFlag, "TF32"):
            config.clear_flag(self.module.BuilderFlag.TF32)
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(self.module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            config.set_flag(self._member("BuilderFlag", "VERSION_COMPATIBLE"))
        if options.hardware_compatibility != "none":
            level = self._member("HardwareCompatibilityLevel", options.hardware_compatibility.upper())
            config.hardware_compatibility_level = level
        return config

    def use_timing_cache(self, config: Any, cache: bytes, *, pinned: bool) -> bool:
        """Attach a timing cache, b"" for an empty one. Returns whether it is used: one of another GPU or release is not.

        If pinned, the build may not time any kernel: raises BackendError for a cache of another GPU or release.
        """
        own = config.create_timing_cache(cache)
        attached = own is not None and bool(config.set_timing_cache(own, False))
        if not attached and pinned:
            raise self._error("the pinned timing cache is of another GPU or another TensorRT")
        if not attached:
            config.set_timing_cache(config.create_timing_cache(b""), False)
        if pinned and self.refuses_new_timings:
            config.set_flag(self.module.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
        return attached

    @property
    def refuses_new_timings(self) -> bool:
        """Whether this release itself can fail a build on a timing cache miss."""
        return hasattr(self.module.BuilderFlag, "ERROR_ON_TIMING_CACHE_MISS")

    def timing_cache(self, config: Any) -> bytes:
        """Serialize the timing cache after a build. Raises BackendError if the library returns none."""
        cache = config.get_timing_cache()
        return bytes(self._returned(None if cache is None else cache.serialize(), "returned no timing cache"))

    def _member(self, enumeration: str, name: str) -> Any:
        known = getattr(self.module, enumeration)
        if not hasattr(known, name):
            allowed = ", ".join(n for n in dir(known) if n.isupper())
            found = f"{enumeration}.{name}"
            raise UsageError(f"{self.name} {self.module.__version__} does not have this option", found=found, allowed=allowed)
        return getattr(known, name)

    def add_profile(self, config: Any, shapes: Mapping[str, tuple[tuple[int, ...], ...]]) -> None:
        """Add an optimization profile: input name -> its (min, opt, max) shapes."""
        profile = self._builder.create_optimization_profile()
        for name, triple in shapes.items():
            profile.set_shape(name, *triple)
        if config.add_optimization_profile(profile) < 0:
            raise self._error(f"{self.name} rejects the batch sizes", [str(dict(shapes)), *self._warnings()])

    def set_compute_capabilities(self, config: Any, capabilities: tuple[str, ...]) -> None:
        """Build for these compute capabilities, "major.minor", not this machine's. Raises UsageError for an unknown one."""
        known = self.module.ComputeCapability
        members = [getattr(known, f"SM{c.replace('.', '')}", None) for c in capabilities]
        unknown = [c for c, m in zip(capabilities, members, strict=True) if m is None]
        if unknown:
            allowed = ", ".join(sorted(n for n in dir(known) if n.startswith("SM")))
            raise UsageError(f"{self.name} does not support this compute capability", found=", ".join(unknown), allowed=allowed)
        config.num_compute_capabilities = len(members)
        for i, member in enumerate(members):
            config.set_compute_capability(member, i)

    def build(self, network: Any, config: Any, advance: Advance) -> bytes:
        """Build and serialize the engine. Raises BackendError with the library's log on failure.

        Ctrl-C ends the wait at once, and the build itself at its next step, which may take many seconds.
        """
        cancelled = threading.Event()
        if hasattr(config, "progress_monitor"):
            config.progress_monitor = _make_monitor(self.module, advance, cancelled)
        try:
            plan = run_interruptible(lambda: self._builder.build_serialized_network(network, config), cancelled)
        except RuntimeError as error:
            raise self._error(f"{self.name} built no engine", [str(error), *self._warnings()]) from error
        return bytes(self._returned(plan, "built no engine"))


class Runtime(_Library):
    """A TensorRT runtime, which loads engines. Its engines and their contexts must not outlive it."""

    def __init__(self, flavour: Flavour) -> None:
        super().__init__(flavour)
        self._runtime = self._construct(lambda: self.module.Runtime(self._logger), f"{self.name} could not create a runtime")

    def deserialize(self, engine: bytes, *, version_compatible: bool = False) -> Any:
        """Load an engine. The bytes run as code: pass only bytes that `authenticate` returned.

        Raises BackendError with the library's log if it does not load, for example on another GPU model.
        """
        if version_compatible:
            self._runtime.engine_host_code_allowed = True  # such an engine contains the runtime of its own release
        return self._returned(self._runtime.deserialize_cuda_engine(engine), "does not load the engine")

    def inspect(self, engine: Any) -> str:
        """Layer information of a loaded engine, as JSON; see `engines.engine_inspector`.

        Uses a context with the opt batch size: without one, the types of tensors that depend on the batch are not reported.
        """
        inspector, context = engine.create_engine_inspector(), engine.create_execution_context()
        if inspector is None or context is None:
            raise self._error(f"{self.name} could not inspect the engine")
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == self.module.TensorIOMode.INPUT:
                context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
        inspector.execution_context = context
        return str(inspector.get_engine_information(self.module.LayerInformationFormat.JSON))


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Disable garbage collection inside the block.

    While TensorRT creates a builder it holds a lock and calls the logger. If an older builder were collected there, its
    destructor would wait for the same lock, in the same thread, forever.
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
            module.ILogger.__init__(self)  # the bindings require the explicit call

        def log(self, severity: Any, message: str) -> None:
            park_if_exiting()
            name = str(severity).rpartition(".")[2]
            if name != "VERBOSE":
                lines.append(f"{name}: {message}")

    return Logger()


def _make_monitor(module: Any, advance: Advance, cancelled: threading.Event) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # as above
        """Reports the outermost phase only: the number of inner phases is unknown."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self._outer = ""
            self._steps = 1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            park_if_exiting()
            if parent_phase is None:
                self._outer, self._steps = phase_name, max(num_steps, 1)

        def step_complete(self, phase_name: str, step: int) -> bool:
            park_if_exiting()
            if phase_name == self._outer:
                advance((step + 1) / self._steps)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            park_if_exiting()
            if phase_name == self._outer:
                advance(1.0)

    return Monitor()
