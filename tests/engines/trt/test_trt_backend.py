"""TensorRT backend without a GPU: its calls to the builder, its handling of every result, and its outputs.

Oracle: the bindings of the oldest and the newest supported release (trt_bindings.py). The stand-in accepts only names and
calls that these declare; each test scripts its results and checks the calls.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from engine_graphs import convolutions
from trt_bindings import NEWEST, OLDEST, release
from trt_world import BATCHES, CACHE, INSPECTION, NAMES, PLAN, SHAPE, World

from calib.errors import BackendError, GraphError, MissingError, UsageError, VerdictError
from engines import hardware
from engines.build import build, build_graph
from engines.build_spec import BatchRange, BuilderOptions, BuildSpec
from engines.layer_records import GraphFacts, Layer, TensorInfo
from engines.targets import TARGETS
from engines.trt import api, trt_backend
from engines.trt.network import profile_shapes

FACTS = GraphFacts(
    (Layer("a", "MatMul", 64, "int8", ""),),
    ("a",),
    TensorInfo("image", (-1, *SHAPE), "float32"),
    TensorInfo("logits", (-1, 10), "float32"),
)
GIB = 1 << 30
JETSONS = {
    "orin-nano": ("NVIDIA Jetson Orin Nano Developer Kit", "8.7", 4 * GIB),
    "orin-nx": ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "8.7", 8 * GIB),
    "agx-orin": ("NVIDIA Jetson AGX Orin Developer Kit", "8.7", 32 * GIB),
    "thor": ("NVIDIA Jetson AGX Thor Developer Kit", "11.0", 64 * GIB),
}


def spec(target="desktop", **options):
    return BuildSpec(Path("graph.onnx"), TARGETS[target], "int8", BatchRange(*BATCHES), options=BuilderOptions(**options))


@pytest.fixture(params=[OLDEST, NEWEST])
def world(request, monkeypatch):
    """A release, on a machine with two GPUs."""
    monkeypatch.setattr(
        hardware, "gpus", lambda: (hardware.Gpu("NVIDIA GeForce RTX 3080", "8.6"), hardware.Gpu("another", "8.9"))
    )
    return World(release(request.param), trt_backend, monkeypatch)


@pytest.fixture
def jetson(monkeypatch, tmp_path):
    """jetson(module): sets the module in the device tree; the driver reports no GPU."""

    def become(module):
        (tmp_path / "model").write_bytes(module.encode() + b"\0")
        monkeypatch.setattr(hardware, "_DEVICE_TREE", tmp_path / "model")
        monkeypatch.setattr(hardware, "gpus", lambda: ())

    return become


def run(world, graph=b"onnx", **options):
    return trt_backend.build_engine(spec(**options), graph, lambda _share: None)


def flags(library, call="set_flag"):
    return {flag.name for (flag,) in library.called(call)}


def config_of(library, name):
    """The value written to a property of the only builder configuration."""
    (config,) = library.configs
    return config.__dict__["_values"].get(name)


def watched(world, script=None):
    """A stand-in that records the configurations that it creates."""
    library = world.library(script)
    library.configs = []

    def create(_builder):
        library.configs.append(library.new("IBuilderConfig"))
        return library.configs[-1]

    library.script["Builder", "create_builder_config"] = create
    return library


def test_a_build_for_this_machines_gpu(world):
    library = watched(world)
    built = run(world)
    assert (built.data, built.version) == (PLAN, world.release.version)
    assert (built.compute_capabilities, built.device) == (("8.6",), "NVIDIA GeForce RTX 3080")
    assert built.timing_cache is None
    assert library.called("create_timing_cache") == []
    assert library.called("set_memory_pool_limit") == [], "the library's default limit"
    assert flags(library) == set()
    assert flags(library, "clear_flag") == {"TF32"}, "FP32 is FP32"
    assert config_of(library, "profiling_verbosity").name == "DETAILED"
    assert config_of(library, "builder_optimization_level") is None
    assert library.called("set_shape") == [("image", *((batch, *SHAPE) for batch in BATCHES))]


def test_options_are_applied(world):
    library = watched(world)
    run(
        world,
        optimization_level=5,
        workspace_bytes=123 << 20,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        timing_cache=CACHE,
    )
    assert [(pool.name, size) for pool, size in library.called("set_memory_pool_limit")] == [("WORKSPACE", 123 << 20)]
    assert flags(library) == {"VERSION_COMPATIBLE"}
    assert config_of(library, "builder_optimization_level") == 5
    assert config_of(library, "hardware_compatibility_level").name == "AMPERE_PLUS"


def test_an_option_that_a_release_does_not_have_is_refused_by_name(world):
    watched(world)
    if "SAME_COMPUTE_CAPABILITY" in world.release.classes["HardwareCompatibilityLevel"].enum:
        run(world, hardware_compatibility="same_compute_capability")
        return
    with pytest.raises(UsageError, match=r"(?s)SAME_COMPUTE_CAPABILITY.*AMPERE_PLUS"):
        run(world, hardware_compatibility="same_compute_capability")


@pytest.mark.parametrize("target", JETSONS)
def test_a_jetson_builds_for_itself_in_a_quarter_of_its_memory(world, jetson, target):
    module, capability, memory = JETSONS[target]
    jetson(module)
    library = watched(world)
    built = trt_backend.build_engine(spec(target), b"onnx", lambda _share: None)
    assert (built.compute_capabilities, built.device) == ((capability,), module)
    assert [size for _, size in library.called("set_memory_pool_limit")] == [memory // 4]
    trt_backend.build_engine(spec(target, workspace_bytes=1 << 20), b"onnx", lambda _share: None)
    assert [size for _, size in library.called("set_memory_pool_limit")][1:] == [1 << 20], "unless the user sets a limit"


@pytest.mark.parametrize("target", JETSONS)
def test_a_jetson_does_not_build_for_another(world, jetson, target):
    watched(world)
    for module in ("", *(module for name, (module, *_) in JETSONS.items() if name != target)):
        jetson(module or "Raspberry Pi 5 Model B")
        with pytest.raises(MissingError, match=rf"{target} must be built on the {TARGETS[target].jetson} itself"):
            trt_backend.build_engine(spec(target), b"onnx", lambda _share: None)


def test_without_a_gpu_nothing_is_built(world, monkeypatch):
    monkeypatch.setattr(hardware, "gpus", lambda: ())
    library = watched(world)
    with pytest.raises(MissingError, match=r"(?s)this machine has no GPU.*--target rtx, or ufovit bundle") as caught:
        run(world)
    assert caught.value.exit_code == 4
    assert library.calls == []


def attached(library):
    """Contents of every timing cache attached to the configuration, in order."""
    calls = library.called("set_timing_cache")
    assert not any(ignore_mismatch for _, ignore_mismatch in calls), "a cache of another GPU is not accepted"
    return [library.caches[id(cache)] for cache, _ in calls]


def with_caches(world, script=None):
    """A stand-in that records the contents of its timing caches."""
    library = watched(world, script)
    library.caches, library.kept = {}, []

    def create(config, data):
        cache = library.new("ITimingCache")
        library.kept.append(cache)
        library.caches[id(cache)] = bytes(data)
        return cache

    library.script["IBuilderConfig", "create_timing_cache"] = create
    library.script.setdefault(("IBuilderConfig", "set_timing_cache"), True)
    return library


@pytest.mark.parametrize("earlier", [b"", b"of an earlier build"])
def test_a_timing_cache_is_used_and_returned_with_new_timings(world, earlier):
    library = with_caches(world)
    assert run(world, timing_cache=earlier).timing_cache == CACHE
    assert attached(library) == [earlier]
    assert "ERROR_ON_TIMING_CACHE_MISS" not in flags(library)


@pytest.mark.parametrize("answer", ["set_timing_cache", "create_timing_cache"])
def test_a_timing_cache_of_another_gpu_is_replaced_by_an_empty_one(world, answer):
    library = with_caches(world)
    create = library.script["IBuilderConfig", "create_timing_cache"]
    if answer == "set_timing_cache":
        library.script["IBuilderConfig", answer] = lambda _config, cache, _any: library.caches[id(cache)] == b""
    else:
        library.script["IBuilderConfig", answer] = lambda config, data: create(config, data) if data == b"" else None
    assert run(world, timing_cache=b"of another GPU").timing_cache == CACHE
    assert attached(library)[-1] == b""


def test_a_pinned_timing_cache_allows_no_timing(world):
    library = with_caches(world)
    built = run(world, timing_cache=b"pinned", pin_timing_cache=True)
    assert attached(library) == [b"pinned"]
    assert flags(library) == {"ERROR_ON_TIMING_CACHE_MISS"}
    assert built.timing_cache == b"pinned", "the manifest records the pinned file, not its serialization after the build"


@pytest.mark.parametrize("answer", ["set_timing_cache", "create_timing_cache"])
def test_a_pinned_timing_cache_of_another_gpu_is_refused(world, answer):
    library = with_caches(world)
    library.script["IBuilderConfig", answer] = False if answer == "set_timing_cache" else None
    with pytest.raises(BackendError, match="pinned timing cache is of another GPU or another TensorRT"):
        run(world, timing_cache=b"pinned", pin_timing_cache=True)
    assert library.called("build_serialized_network") == []


def test_without_the_flag_a_changed_cache_rejects_the_build(world, monkeypatch):
    monkeypatch.setattr(api.Builder, "refuses_new_timings", False)
    library = with_caches(world)
    assert run(world, timing_cache=CACHE, pin_timing_cache=True).timing_cache == CACHE
    assert flags(library) == set()
    with pytest.raises(BackendError, match=r"(?s)timed kernels that are not in the pinned.*without --pin-timing-cache"):
        run(world, timing_cache=b"less than that", pin_timing_cache=True)


def test_a_miss_in_a_pinned_timing_cache_is_a_library_error(world):
    """With ERROR_ON_TIMING_CACHE_MISS the builder returns no engine and logs the reason."""
    library = with_caches(world)
    library.script["Builder", "build_serialized_network"] = logging_reason(library, "Timing cache miss for node a")
    with pytest.raises(BackendError, match="Timing cache miss for node a"):
        run(world, timing_cache=b"pinned", pin_timing_cache=True)


def logging_reason(library, reason, answer=None):
    """A scripted result that logs `reason` on the current builder's logger."""

    def respond(target, *_arguments):
        logger = target.__dict__["_values"].get("logger") or library.loggers[-1]
        logger.log(library.members["ILogger.Severity", "ERROR"], reason)
        return answer

    return respond


REFUSALS = [
    ("Builder", "create_network", None, {}, "could not create a network"),
    ("OnnxParser", "parse", False, {}, "rejects the graph"),
    ("Builder", "create_builder_config", None, {}, "could not create a builder configuration"),
    ("IBuilderConfig", "add_optimization_profile", -1, {}, "rejects the batch sizes"),
    ("Builder", "build_serialized_network", None, {}, "built no engine"),
    ("IBuilderConfig", "get_timing_cache", None, {"timing_cache": b""}, "returned no timing cache"),
    ("ITimingCache", "serialize", None, {"timing_cache": b""}, "returned no timing cache"),
    ("IBuilderConfig", "set_timing_cache", False, {"timing_cache": b"x", "pin_timing_cache": True}, "pinned timing cache"),
    ("Runtime", "deserialize_cuda_engine", None, {}, "does not load the engine"),
    ("ICudaEngine", "create_engine_inspector", None, {}, "could not inspect the engine"),
    ("ICudaEngine", "create_execution_context", None, {}, "could not inspect the engine"),
]


@pytest.mark.parametrize(("owner", "name", "answer", "options", "words"), REFUSALS, ids=[f"{r[0]}.{r[1]}" for r in REFUSALS])
def test_a_failed_call_is_an_error_with_the_log(world, monkeypatch, owner, name, answer, options, words):
    library = world.library()
    library.loggers, make = [], api._make_logger

    def make_logger(module, lines):
        library.loggers.append(make(module, lines))
        return library.loggers[-1]

    monkeypatch.setattr(api, "_make_logger", make_logger)
    library.script[owner, name] = logging_reason(library, f"why {name} failed", answer)
    with pytest.raises(BackendError) as caught:
        build_graph(spec(**options), b"onnx", FACTS)
    assert words in str(caught.value)
    assert f"ERROR: why {name} failed" in str(caught.value)
    assert f"ERROR: why {name} failed" in caught.value.log
    assert caught.value.exit_code == 2


def test_an_exception_of_the_builder_is_an_error(world):
    library = world.library()

    def fail(*_arguments):
        raise RuntimeError("out of memory")

    library.script["Builder", "build_serialized_network"] = fail
    with pytest.raises(BackendError, match="out of memory"):
        run(world)


def test_the_inspector_uses_a_context_with_the_opt_batch(world):
    """Without it, TensorRT does not report the types of tensors that depend on the batch, and every layer counts as float."""
    library = world.library()
    assert trt_backend.engine_evidence(PLAN, b"onnx", FACTS).layers["a"].actual == "int8"
    ((name, shape),) = library.called("set_input_shape")
    assert (name, tuple(shape)) == (NAMES[0], (BATCHES[1], *SHAPE))
    assert ("EngineInspector", "execution_context") in library.touched
    order = [name for _, name, _ in library.calls]
    assert order.index("set_input_shape") < order.index("get_engine_information")


def test_a_receipt_below_its_floor_fails_the_build(world):
    world.library()
    assert build_graph(spec(), b"onnx", FACTS).receipt.int8_mac_fraction == 1.0
    half = str(INSPECTION).replace("'", '"').replace("Int8", "Half")
    world.library({("EngineInspector", "get_engine_information"): half})
    with pytest.raises(VerdictError, match=r"(?s)the INT8 share of the engine is below its floor.*a: int8 -> fp16"):
        build_graph(spec(), b"onnx", FACTS)


def test_from_a_file_to_an_engine(world, tmp_path):
    path = tmp_path / "graph.onnx"
    onnx.save(convolutions(), path)
    layer = {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Float"}], "Weights": {"Type": "Float"}}
    layers = [{**layer, "Name": name} for name in ("stem/Conv", "lpi/Conv", "head/Gemm")]
    library = world.library({("EngineInspector", "get_engine_information"): str({"Layers": layers}).replace("'", '"')})
    built = build(BuildSpec(path, TARGETS["desktop"], "fp32", BatchRange(*BATCHES)))
    assert (built.backend, built.data, built.receipt.actual) == ("trt", PLAN, {"fp32": 1.0})
    assert (built.input.name, built.outputs[0].shape) == ("image", (-1, 4))
    assert library.called("parse") == [(onnx.load(path).SerializeToString(deterministic=True),)]
    assert [p.name for p in tmp_path.iterdir()] == ["graph.onnx"]


def test_shapes_of_the_optimization_profile():
    batch = BatchRange(1, 2, 8)
    assert profile_shapes("image", (-1, 3, 4, 4), batch) == ((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4))
    assert profile_shapes("image", (4, 3, 4, 4), batch) is None
    for shape in ((-1, 3, -1, -1), (4, 3, -1, 4), (1, -1)):
        with pytest.raises(GraphError, match="only the batch may be symbolic"):
            profile_shapes("image", shape, batch)


def test_a_graph_of_fixed_batch_has_no_profile(world):
    library = watched(world, {("ITensor", "shape"): (4, *SHAPE)})
    assert run(world).data == PLAN
    assert library.called("add_optimization_profile") == []


def test_releases_without_strong_typing_are_refused_with_a_next_step(monkeypatch):
    old = SimpleNamespace(Builder=object, NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0), __version__="8.6.2")
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(
        MissingError, match=r"(?s)TensorRT 8\.6\.2 does not support strongly typed networks.*10\.3 or newer.*trtexec"
    ):
        api.load("trt")
