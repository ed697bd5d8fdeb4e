"""The surroundings of a drive: a release that answers as if all went well, a changed file, a CUDA device that does nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from trt_bindings import ROOT
from trt_fake import Library
from trt_spec import Release

from engines.trt import api

SHAPE, CLASSES, BATCHES = (3, 4, 4), 10, (2, 3, 4)
PLAN, CACHE = b"plan", b"timings"
NAMES = ("image", "logits")
INSPECTION = {"Layers": [{"Name": "a", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Int8"}] * 2}]}


@dataclass
class World:
    """One drive of one release: `code` is the driven file, or a variant of it."""

    release: Release
    code: ModuleType
    patch: pytest.MonkeyPatch
    libraries: list[Library] = field(default_factory=list)

    @property
    def flavour(self) -> api.Flavour:
        return "rtx" if "ComputeCapability" in self.release.classes else "trt"

    def library(self, script: dict[tuple[str, str], Any] | None = None) -> Library:
        """A stand-in of the release, from now on what the code loads; `script` changes what it answers."""
        made = Library(self.release, {**answers(), **(script or {})})
        self.libraries.append(made)
        for module in {api, self.code}:
            if hasattr(module, "load"):
                self.patch.setattr(module, "load", lambda _flavour: made.module)
        return made

    def missed(self) -> set[tuple[str, str]]:
        """What was asked for and is not in the release, so that the code had to do without."""
        return set().union(*(library.missed for library in self.libraries))

    def touched(self) -> set[str]:
        """Names of everything that was used."""
        return {name for library in self.libraries for _, name in library.touched}


def variant(file: str, *changes: tuple[str, str]) -> ModuleType:
    """The module of a file with its text changed: each pair is what is replaced, and by what."""
    source = (ROOT / f"{file.replace('.', '/')}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    made = ModuleType(file)
    exec(compile(source, f"variant of {file}", "exec"), made.__dict__)
    return made


def answers() -> dict[tuple[str, str], Any]:
    """What a release answers when all goes well."""
    return {
        ("Builder", "build_serialized_network"): _build,
        ("IBuilderConfig", "add_optimization_profile"): 0,
        ("IBuilderConfig", "get_timing_cache"): lambda config: config._library.new("ITimingCache"),
        ("ITimingCache", "serialize"): lambda cache: cache._library.new("IHostMemory", data=CACHE),
        ("INetworkDefinition", "num_inputs"): 1,
        ("ITensor", "name"): NAMES[0],
        ("ITensor", "shape"): (-1, *SHAPE),
        ("EngineInspector", "get_engine_information"): json.dumps(INSPECTION),
        ("ICudaEngine", "num_io_tensors"): 2,
        ("ICudaEngine", "get_tensor_name"): lambda _engine, index: NAMES[index],
        ("ICudaEngine", "get_tensor_mode"): _mode,
        ("ICudaEngine", "get_tensor_dtype"): lambda engine, _name: engine._library.members["DataType", "FLOAT"],
        ("ICudaEngine", "get_tensor_format"): lambda engine, _name: engine._library.members["TensorFormat", "LINEAR"],
        ("ICudaEngine", "get_tensor_shape"): lambda _engine, name: (-1, *(SHAPE if name == NAMES[0] else (CLASSES,))),
        ("ICudaEngine", "get_tensor_profile_shape"): lambda *_asked: [(batch, *SHAPE) for batch in BATCHES],
        ("IExecutionContext", "set_input_shape"): _set_shape,
        ("IExecutionContext", "get_tensor_shape"): lambda context, _name: (context.__dict__["batch"], CLASSES),
    }


def _build(builder: Any, _network: Any, config: Any) -> Any:
    """As the library does: the logger and the progress monitor are called while it builds."""
    library = builder._library
    builder.logger.log(library.members["ILogger.Severity", "WARNING"], "a warning")
    builder.logger.log(library.members["ILogger.Severity", "VERBOSE"], "details")
    monitor = config.__dict__["_values"].get("progress_monitor")
    if monitor is not None:
        monitor.phase_start("Build", None, 2)
        monitor.phase_start("Inner", "Build", 1)
        assert all([monitor.step_complete("Inner", 0), monitor.step_complete("Build", 0), monitor.step_complete("Build", 1)])
        monitor.phase_finish("Inner")
        monitor.phase_finish("Build")
    return library.new("IHostMemory", data=PLAN)


def _mode(engine: Any, name: str) -> Any:
    return engine._library.members["TensorIOMode", "INPUT" if name == NAMES[0] else "OUTPUT"]


def _set_shape(context: Any, _name: str, shape: Any) -> bool:
    context.__dict__["batch"] = shape[0]
    return True


class Stream:
    handle = 4096

    def synchronize(self) -> None:
        pass

    destroy = synchronize


class Buffer:
    mapped = False

    def __init__(self, nbytes: int) -> None:
        self.host = np.zeros(nbytes, np.uint8)
        self.device_pointer = 1 << 40

    def to_device(self, nbytes: int, _stream: Stream) -> None:
        assert 0 < nbytes <= self.host.nbytes

    to_host = to_device

    def free(self) -> None:
        pass


class Memory:
    """A CUDA device that does nothing; see `edge.runtime.device_memory`."""

    library, name, compute_capability, integrated, total_bytes, can_capture = "pycuda", "none", "8.7", True, 1 << 30, True

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        yield

    def make_stream(self) -> Stream:
        return Stream()

    def allocate(self, nbytes: int) -> Buffer:
        return Buffer(nbytes)

    def begin_capture(self, stream: Stream) -> None:
        pass

    def end_capture(self, _stream: Stream) -> Stream:
        return Stream()

    def launch(self, graph: Stream, stream: Stream) -> None:
        pass
