"""Drives: each takes one file of the project along its real code paths, with a stand-in for a TensorRT release underneath.

To cover new code, add a function to DRIVES. It calls `world.library(...)` with what the release answers, runs the code, and
asserts what it asked of TensorRT; that every name and every call fits the release is checked by the stand-in itself.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from trt_bindings import RTX
from trt_spec import Release
from trt_world import BATCHES, CACHE, CLASSES, INSPECTION, NAMES, PLAN, SHAPE, Memory, Stream, World

from calib.errors import BackendError, InputError
from engines import hardware
from engines.build_spec import BatchRange, BuilderOptions, BuildSpec
from engines.layer_records import GraphFacts, TensorInfo
from engines.targets import TARGETS

FACTS = GraphFacts((), ("a",), TensorInfo("image", (-1, *SHAPE), "float32"), TensorInfo("logits", (-1, CLASSES), "float32"))


def drive(name: str, release: Release, code: ModuleType | None = None) -> World:
    """Run a drive; `code` in place of the file that it drives."""
    file, run = DRIVES[name]
    with pytest.MonkeyPatch.context() as patch:
        world = World(release, code or importlib.import_module(file), patch)
        run(world)
    return world


def drive_builder(world: World) -> None:
    library = world.library()
    options = BuilderOptions(optimization_level=4, workspace_bytes=1 << 20, hardware_compatibility="ampere_plus")
    builder = world.code.Builder(world.flavour)
    network = builder.parse(b"onnx")
    flag = world.release.classes["NetworkDefinitionCreationFlag"].enum["STRONGLY_TYPED"][0]
    assert library.called("create_network") == [(1 << flag,)]
    config = builder.make_config(options)
    builder.add_profile(config, {"image": tuple((batch, *SHAPE) for batch in BATCHES)})
    assert builder.use_timing_cache(config, CACHE, pinned=False)
    assert builder.timing_cache(config) == CACHE
    shares: list[float] = []
    assert builder.build(network, config, shares.append) == PLAN
    assert shares == [0.5, 1.0, 1.0]
    assert builder.log == ["WARNING: a warning"]
    assert str(config.profiling_verbosity) == "ProfilingVerbosity.DETAILED"
    assert world.code.version(world.flavour) == world.release.version


def drive_options(world: World) -> None:
    """Options that a release may not have are refused by name; those that it has are set."""
    world.library()
    builder = world.code.Builder(world.flavour)
    level = world.release.classes["HardwareCompatibilityLevel"].enum
    options = BuilderOptions(hardware_compatibility="same_compute_capability")
    if "SAME_COMPUTE_CAPABILITY" in level:
        builder.make_config(options)
    else:
        with pytest.raises(InputError, match=r"AMPERE_PLUS"):
            builder.make_config(options)
    builder.make_config(BuilderOptions(version_compatible=True))


def drive_refusals(world: World) -> None:
    """What TensorRT answers with False or None ends in the toolkit's own error."""
    error = {
        ("ParserError", "node_name"): "attn/MatMul",
        ("ParserError", "node_operator"): "MatMul",
        ("ParserError", "desc"): "no",
    }
    world.library({("OnnxParser", "parse"): False, ("OnnxParser", "num_errors"): 1, **error})
    with pytest.raises(BackendError, match=r"attn/MatMul \(MatMul\): no"):
        world.code.Builder(world.flavour).parse(b"onnx")
    nothing = [
        ("Builder", "create_network", lambda b, _c: b.parse(b"")),
        ("Builder", "create_builder_config", lambda b, _c: b.make_config(BuilderOptions())),
        ("Builder", "build_serialized_network", lambda b, c: b.build(b.parse(b""), c, print)),
        ("IBuilderConfig", "get_timing_cache", lambda b, c: b.timing_cache(c)),
    ]
    for owner, name, call in nothing:
        if world.release.member(owner, name) is not None:
            whole = world.library()
            config = world.code.Builder(world.flavour).make_config(BuilderOptions())
            whole.script[owner, name] = None
            with pytest.raises(BackendError, match="TensorRT"):
                call(world.code.Builder(world.flavour), config)
    world.library({("IBuilderConfig", "set_timing_cache"): False, ("IBuilderConfig", "add_optimization_profile"): -1})
    builder = world.code.Builder(world.flavour)
    config = builder.make_config(BuilderOptions())
    assert not builder.use_timing_cache(config, CACHE, pinned=False)
    for call in (lambda: builder.use_timing_cache(config, CACHE, pinned=True), lambda: builder.add_profile(config, {})):
        with pytest.raises(BackendError):
            call()


def drive_runtime(world: World) -> None:
    world.library()
    runtime = world.code.Runtime(world.flavour)
    engine = runtime.deserialize(PLAN, version_compatible=True)
    assert json.loads(runtime.inspect(engine)) == INSPECTION
    for owner, name in (("Runtime", "deserialize_cuda_engine"), ("ICudaEngine", "create_engine_inspector")):
        world.library({(owner, name): None})
        runtime = world.code.Runtime(world.flavour)
        with pytest.raises(BackendError):
            runtime.inspect(runtime.deserialize(PLAN))


def drive_backend(world: World) -> None:
    """The backend of the flavour, from a graph's bytes to the engine and what is read from it."""
    world.patch.setattr(hardware, "gpus", lambda: (hardware.Gpu("a GPU", "8.6"),))
    pinned = BuilderOptions(timing_cache=CACHE, pin_timing_cache=True)
    spec = BuildSpec(Path("graph.onnx"), TARGETS["desktop"], "int8", BatchRange(*BATCHES), options=pinned)
    library = world.library()
    built = world.code.build_engine(spec, b"onnx", lambda _share: None)
    assert (built.data, built.version, built.timing_cache) == (PLAN, world.release.version, CACHE)
    assert library.called("set_shape") == [("image", *((batch, *SHAPE) for batch in BATCHES))]
    enum = world.release.classes["BuilderFlag"].enum
    wanted = {"ERROR_ON_TIMING_CACHE_MISS"} & enum.keys()
    assert {flag.name for (flag,) in library.called("set_flag")} == wanted
    assert world.code.engine_evidence(PLAN, b"onnx", FACTS).layers["a"].actual == "int8"


def drive_rtx_backend(world: World) -> None:
    library = world.library()
    spec = BuildSpec(Path("graph.onnx"), TARGETS["rtx"], "int8", BatchRange(*BATCHES))
    assert world.code.build_plan(spec, b"onnx", lambda _share: None).data == PLAN
    named = [capability.name for capability, _ in library.called("set_compute_capability")]
    assert named == [f"SM{c.replace('.', '')}" for c in TARGETS["rtx"].compute_capabilities]


def drive_runner(world: World) -> None:
    """A runner with CUDA graphs, one without, and a clone; images in one batch and in several."""
    library = world.library()
    images = np.ones((9, *SHAPE), np.float32)
    for graphs in (True, False):
        memory = Memory()
        runner = world.code.TrtRunner(world.flavour, PLAN, memory, graphs=graphs, version_compatible=graphs)
        assert (runner.image_shape, runner.batches) == (SHAPE, BATCHES)
        assert runner(images)[0].shape == (9, CLASSES)
        assert runner(images[:4])[0].shape == (4, CLASSES)
        clone = runner.clone()
        runner.close()
        assert clone(images[:2])[0].shape == (2, CLASSES)
        clone.close()
    assert {name: type(address) for name, address in library.called("set_tensor_address")} == dict.fromkeys(NAMES, int)
    assert {shape for _, shape in library.called("set_input_shape")} == {(batch, *SHAPE) for batch in (2, 3, 4)}
    assert set(library.called("execute_async_v3")) == {(Stream.handle,)}
    world.library({("ICudaEngine", "get_tensor_shape"): (2, *SHAPE)})
    fixed = world.code.TrtRunner(world.flavour, PLAN, Memory())
    assert fixed.batches == (2, 2, 2)
    fixed.close()
    if world.release.member("IRuntimeConfig", "cuda_graph_strategy"):
        declined = {("IRuntimeConfig", "cuda_graph_strategy"): lambda c: c._library.members["CudaGraphStrategy", "DISABLED"]}
        asked = world.library({**declined, ("IExecutionContext", "is_stream_capturable"): False})
        refused = world.code.TrtRunner(world.flavour, PLAN, Memory())
        assert asked.called("is_stream_capturable") == [(Stream.handle,)]
        assert len(refused.notes) == 1
        refused.close()
    moved = world.library({("IExecutionContext", "active_optimization_profile"): -1})
    world.code.TrtRunner(world.flavour, PLAN, Memory()).close()
    assert moved.called("set_optimization_profile_async") == [(0, Stream.handle)]


DRIVES: dict[str, tuple[str, Callable[[World], None]]] = {
    "builder": ("engines.trt.api", drive_builder),
    "options": ("engines.trt.api", drive_options),
    "refusals": ("engines.trt.api", drive_refusals),
    "runtime": ("engines.trt.api", drive_runtime),
    "backend": ("engines.trt.trt_backend", drive_backend),
    "rtx backend": ("engines.trt.rtx_backend", drive_rtx_backend),
    "runner": ("edge.runtime.trt_runner", drive_runner),
}
ONLY: dict[str, Callable[[str], bool]] = {
    "backend": lambda version: version != RTX,
    "rtx backend": lambda version: version == RTX,
}
"""Drive -> whether it is for a release; all others are for every release."""
