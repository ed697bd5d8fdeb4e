"""edge.runtime.trt_runner on a fake device and a fake TensorRT that compute something, late and in the order of the stream.

The oracle is the formula that the fake engine stands for, written out once more in integers. The fakes are strict: work put on
a stream runs when the stream is synchronized and not before, copies read their source then, memory holds NaN until it is
written, a freed address, a destroyed stream, a graph of a changed context and a call outside `current()` are faults. That
they are strict is tested too.
"""

import ast
import gc
import inspect
import itertools
import json
import sys
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from for_all import for_all

from calib.errors import BackendError, InputError, MissingError
from edge.runtime import trt_runner
from edge.runtime.ort_runner import OrtRunner
from edge.runtime.runner import FakeRunner, Runner
from edge.runtime.trt_io import split
from edge.runtime.trt_runner import TrtRunner
from engines.trt import api

SIZE, CLASSES = 4, 5
ELEMENTS = 3 * SIZE * SIZE
WEIGHTS = np.random.default_rng(0).integers(-8, 9, (ELEMENTS, CLASSES))
NAN = 0xFF
"""Bytes of it make a NaN in float32."""


class Fault(AssertionError):
    """The code under test did what a real device would punish."""


# The fake device ---------------------------------------------------------------------------------------------------------


COST_MS = {"to_device": 50.0, "to_host": 70.0, "execute": 1.5}
"""What the fake device takes for its work."""


class FakeTimer:
    def __init__(self, memory):
        self.memory, self.times = memory, [None, None]
        memory.timers += 1

    def start(self, stream):
        stream.put("first event", lambda: self.times.__setitem__(0, self.memory.now_ms))

    def stop(self, stream):
        stream.put("second event", lambda: self.times.__setitem__(1, self.memory.now_ms))

    def elapsed_ms(self):
        if None in self.times:
            raise Fault("an event that has not happened")
        return self.times[1] - self.times[0]

    def destroy(self):
        assert not any(stream.queue for stream in self.memory.streams.values()), "events are in use"
        self.memory.timers -= 1


class FakeStream:
    def __init__(self, memory, handle):
        self.memory, self.handle = memory, handle
        self.queue, self.recording, self.spoilt = [], None, False
        memory.live["stream"] += 1

    def put(self, name, work):
        self.memory.note(name)

        def timed():
            self.memory.now_ms += COST_MS.get(name, 0)
            work()

        (self.queue if self.recording is None else self.recording).append(timed)

    def synchronize(self):
        self.memory.note("synchronize")
        if self.recording is not None:
            raise Fault("a wait inside a capture")
        work, self.queue = self.queue, []
        for step in work:
            step()

    def destroy(self):
        self.memory.note("destroy stream")
        assert not self.queue, "work is left on the stream"
        if self.memory.streams.pop(self.handle, None):
            self.memory.live["stream"] -= 1


class FakeBuffer:
    def __init__(self, memory, nbytes):
        self.memory, self.mapped = memory, memory.mapped
        self.host = np.full(nbytes, NAN, np.uint8)
        self.device = self.host if self.mapped else self.host.copy()
        self.device_pointer = next(memory.addresses)
        memory.bytes_at[self.device_pointer] = self.device
        memory.live["buffer"] += 1

    def to_device(self, nbytes, stream):
        self._copy("to_device", self.device, self.host, nbytes, stream)

    def to_host(self, nbytes, stream):
        self._copy("to_host", self.host, self.device, nbytes, stream)

    def _copy(self, name, to, source, nbytes, stream):
        if not self.mapped:
            stream.put(name, lambda: to.__setitem__(slice(nbytes), source[:nbytes]))

    def free(self):
        self.memory.note("free")
        if self.memory.bytes_at.pop(self.device_pointer, None) is not None:
            self.host[:] = self.device[:] = NAN
            self.memory.live["buffer"] -= 1


class FakeGraph:
    def __init__(self, memory, work):
        self.memory, self.work = memory, work
        memory.live["graph"] += 1

    def destroy(self):
        self.memory.note("destroy graph")
        if self.work is not None:
            self.work = None
            self.memory.live["graph"] -= 1


class FakeMemory:
    """A `DeviceMemory`. `faults`: name of a call -> BackendError once."""

    library, name, compute_capability, integrated, total_bytes = "cuda-python", "Fake", "8.7", False, 1 << 30

    def __init__(self, *, can_capture=True, mapped=False):
        self.can_capture, self.mapped = can_capture, mapped
        self.addresses = itertools.count(1 << 20, 1 << 12)
        self.handles = itertools.count(77)
        self.bytes_at, self.streams, self.faults, self.calls = {}, {}, {}, []
        self.live = {"stream": 0, "buffer": 0, "graph": 0}
        self.depth = threading.local()
        self.now_ms, self.timers = 0.0, 0

    def note(self, name):
        if not getattr(self.depth, "value", 0):
            raise Fault(f"{name} in a thread whose device is not current")
        self.calls.append(name)
        if self.faults.pop(name, None):
            raise BackendError(f"CUDA failed in {name}", found="a planted fault")

    @contextmanager
    def current(self):
        self.depth.value = getattr(self.depth, "value", 0) + 1
        try:
            yield
        finally:
            self.depth.value -= 1

    def make_stream(self):
        self.note("make_stream")
        handle = next(self.handles)
        self.streams[handle] = FakeStream(self, handle)
        return self.streams[handle]

    def allocate(self, nbytes):
        self.note("allocate")
        return FakeBuffer(self, nbytes)

    def make_timer(self):
        self.note("make_timer")
        return FakeTimer(self)

    def begin_capture(self, stream):
        self.note("begin_capture")
        stream.recording, stream.spoilt = [], False

    def end_capture(self, stream):
        work, stream.recording = stream.recording, None  # it leaves the capture, whatever comes
        self.note("end_capture")
        if stream.spoilt:
            raise BackendError("CUDA failed in cudaStreamEndCapture", found="the capture was spoilt")
        return FakeGraph(self, work)

    def launch(self, graph, stream):
        if graph.work is None:
            raise Fault("a destroyed graph is launched")
        stream.put("launch", lambda work=tuple(graph.work): [step() for step in work])


# The fake TensorRT -------------------------------------------------------------------------------------------------------


class FakeLogger:
    class Severity(Enum):
        ERROR, WARNING, INFO, VERBOSE = range(4)


class Kinds:
    """Enumerations of the module, by the real names."""

    DataType = Enum("DataType", "FLOAT HALF INT8")
    TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
    TensorFormat = Enum("TensorFormat", "LINEAR CHW32")


class FakeContext:
    def __init__(self, engine, config):
        self.engine, self.config = engine, config
        self.addresses, self.shape, self.changes, self.flushed = {}, None, 0, False
        self.active_optimization_profile = engine.module.first_profile
        engine.module.contexts.append(weakref.ref(self))
        if engine.module.capturable is not None:
            self.is_stream_capturable = lambda _handle: engine.module.capturable

    def __del__(self):
        self.engine.module.memory.calls.append("context gone")

    def set_optimization_profile_async(self, index, handle):
        self.engine.module.memory.streams[handle].put("set profile", lambda: None)
        self.active_optimization_profile = index
        return self.engine.answer("set_optimization_profile_async", True)

    def set_input_shape(self, name, shape):
        assert isinstance(shape, tuple)
        assert name == self.engine.names[0]
        smallest, _, largest = self.engine.batches
        if not smallest <= shape[0] <= largest:
            raise Fault(f"batch {shape[0]} outside {smallest} to {largest}")
        self.shape, self.flushed = shape, False
        self.changes += 1
        return self.engine.answer("set_input_shape", True)

    def get_tensor_shape(self, name):
        assert name == self.engine.names[-1]
        return self.engine.answer("get_tensor_shape", (self.shape[0], self.engine.classes))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return self.engine.answer("set_tensor_address", True)

    def execute_async_v3(self, handle):
        stream, shape, changes = self.engine.module.memory.streams[handle], self.shape, self.changes
        addresses = [self.addresses[name] for name in self.engine.names]
        if stream.recording is not None and not self.flushed:
            stream.spoilt = True  # work that a new shape asks for cannot be recorded
        self.flushed = True

        def work():
            if changes != self.changes:
                raise Fault("the execution context has changed since this was put on the stream")
            images, logits = (self.engine.module.memory.bytes_at[a].view(np.float32) for a in addresses)
            images = images[: int(np.prod(shape))].reshape(shape[0], -1)
            logits[: shape[0] * self.engine.classes] = (2 * images[:, ::-1] @ WEIGHTS.astype(np.float32)).ravel()

        stream.put("execute", work)
        return self.engine.answer("execute_async_v3", True)


class FakeEngine:
    """Of the JSON that stands for a plan; logits = 2 * reversed image @ WEIGHTS."""

    def __init__(self, module, plan):
        self.module = module
        self.names, self.batches, self.classes = plan["names"], plan["batches"], plan.get("classes", CLASSES)
        self.modes, self.dtypes = plan.get("modes", ["INPUT", "OUTPUT"]), plan.get("dtypes", ["FLOAT", "FLOAT"])
        self.formats, self.inner = plan.get("formats", ["LINEAR", "LINEAR"]), plan.get("inner", [(3, SIZE, SIZE)] * 3)
        self.num_io_tensors = len(self.names)
        if hasattr(module, "CudaGraphStrategy"):
            self.create_runtime_config = lambda: self.answer("create_runtime_config", module.new_config())

    def __del__(self):
        self.module.memory.calls.append("engine gone")

    def answer(self, call, value):
        return self.module.answer(call, value)

    def _of(self, values, kind, name):
        return getattr(kind, values[self.names.index(name)])

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return self._of(self.modes, Kinds.TensorIOMode, name)

    def get_tensor_dtype(self, name):
        return self._of(self.dtypes, Kinds.DataType, name)

    def get_tensor_format(self, name):
        return self._of(self.formats, Kinds.TensorFormat, name)

    def get_tensor_shape(self, name):
        assert name == self.names[0]
        fixed = len(set(self.batches)) == 1
        return (
            self.batches[0] if fixed else -1,
            *(a if a == b else -1 for a, b in zip(self.inner[0], self.inner[2], strict=True)),
        )

    def get_tensor_profile_shape(self, name, profile):
        assert (name, profile) == (self.names[0], 0)
        if len(set(self.batches)) == 1:
            raise Fault("a tensor of one shape has no profile")
        return [(b, *inner) for b, inner in zip(self.batches, self.inner, strict=True)]

    def create_execution_context(self, *options):
        return self.answer("create_execution_context", FakeContext(self, *options or (None,)))


class FakeTensorRT(types.ModuleType):
    """The module. `faults`: name of a call -> (at which call, what it answers)."""

    DataType, TensorIOMode, TensorFormat, ILogger = Kinds.DataType, Kinds.TensorIOMode, Kinds.TensorFormat, FakeLogger
    Builder, __version__ = object, "0"
    NetworkDefinitionCreationFlag = Enum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")

    def __init__(self, memory, *, rtx=False):
        super().__init__("fake_tensorrt")
        self.memory, self.faults, self.counts, self.contexts, self.configs = memory, {}, {}, [], []
        self.capturable, self.first_profile, self.loggers, self.takes_strategy = None, 0, [], True
        module = self

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, logger):
                module.runtime = weakref.ref(self)
                self.logger = logger
                module.loggers.append(logger)

            def deserialize_cuda_engine(self, data):
                return module.answer("deserialize_cuda_engine", FakeEngine(module, json.loads(data)))

        self.Runtime = Runtime
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = Enum(
                "DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE"
            )
            self.CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")

    def new_config(self):
        module = self

        class Config:
            dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.LAZY
            _graphs = module.CudaGraphStrategy.DISABLED

            @property
            def cuda_graph_strategy(self):
                return self._graphs

            @cuda_graph_strategy.setter
            def cuda_graph_strategy(self, value):
                self._graphs = value if module.takes_strategy else self._graphs

        self.configs.append(Config())
        return self.configs[-1]

    def answer(self, call, value):
        self.memory.note(call)
        self.counts[call] = self.counts.get(call, 0) + 1
        at, wrong = self.faults.get(call, (0, None))
        if at == self.counts[call]:
            self.loggers[-1].log(FakeLogger.Severity.ERROR, f"planted in {call}")
            return wrong
        return value


# What the tests share ----------------------------------------------------------------------------------------------------


def plan(batches=(1, 2, 4), **more):
    return json.dumps({"names": ["images", "logits"], "batches": batches, **more}).encode()


def draw(count, seed=1):
    return np.random.default_rng(seed).integers(-9, 10, (count, 3, SIZE, SIZE)).astype(np.float32)


def expected(images):
    flat = images.astype(np.int64).reshape(len(images), ELEMENTS)
    return np.array(
        [[2 * sum(row[ELEMENTS - 1 - i] * WEIGHTS[i, c] for i in range(ELEMENTS)) for c in range(CLASSES)] for row in flat]
    )


def same(logits, images):
    """Bit for bit, of the right type, and none of them NaN."""
    wanted = expected(images)
    return logits.dtype == np.float32 and logits.shape == wanted.shape and bool((logits == wanted).all())


@pytest.fixture
def memory():
    return FakeMemory()


@pytest.fixture
def library(memory, monkeypatch):
    module = FakeTensorRT(memory)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def rtx_library(memory, monkeypatch):
    module = FakeTensorRT(memory, rtx=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return module


def calls(memory, since=0):
    return memory.calls[since:]


# Answers -----------------------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_images(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        assert (runner.image_shape, runner.batches) == ((3, SIZE, SIZE), (1, 2, 4))
        for seed, count in enumerate([1, 2, 3, 4, 4, 4, 2, 2, 2, 1, 3, 11]):
            images = draw(count, seed)
            assert same(runner(images), images)


def test_the_comparison_sees_damage():
    images = draw(3)
    right = expected(images).astype(np.float32)
    assert same(right, images)
    one_bad = right.copy()
    one_bad[2, 4] += 1
    for wrong in (
        2 * right,
        right / 2,
        0 * right,
        -right,
        right[::-1],
        right[:2],
        one_bad,
        right.astype(np.float64),
        right * np.nan,
    ):
        assert not same(wrong, images)


def test_an_answer_is_the_callers_own(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        first, second = draw(4, 1), draw(4, 2)
        kept = runner(first)
        assert same(runner(second), second)
        assert same(kept, first)
        assert kept.flags.owndata
        kept[:] = 0
        assert same(runner(second), second)


def test_images_may_lie_anyhow_in_memory(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        images = np.asfortranarray(draw(8))[::-2]
        assert not images.flags.c_contiguous
        assert same(runner(images), images)
        frozen = draw(2)
        frozen.flags.writeable = False
        assert same(runner(frozen), frozen)


def test_the_calls_of_one_batch(library, memory):
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        start = len(memory.calls)
        runner(draw(2))
        assert calls(memory, start) == [
            *("set_input_shape", "get_tensor_shape"),
            *("to_device", "execute", "execute_async_v3", "to_host", "synchronize"),
        ]
        start = len(memory.calls)
        runner(draw(2))
        assert calls(memory, start) == ["to_device", "execute", "execute_async_v3", "to_host", "synchronize"]


def test_one_context_one_stream_two_buffers(library, memory):
    runner = TrtRunner("trt", plan(), memory)
    assert memory.live == {"stream": 1, "buffer": 2, "graph": 0}
    assert len(library.contexts) == 1
    assert {len(b) for b in memory.bytes_at.values()} == {4 * 4 * ELEMENTS, 4 * 4 * CLASSES}, "the largest batch"
    (context,) = library.contexts
    assert context().active_optimization_profile == 0
    runner.close()


def test_another_profile_is_left(library, memory):
    library.first_profile = 1
    with TrtRunner("trt", plan(), memory) as runner:
        images = draw(3)
        assert same(runner(images), images)
        assert library.contexts[0]().active_optimization_profile == 0


def test_shared_memory_is_not_copied(library, memory):
    memory.mapped = True
    with TrtRunner("trt", plan(), memory) as runner:
        for seed in range(5):
            images = draw(3, seed)
            assert same(runner(images), images)
    assert not {"to_device", "to_host"} & set(memory.calls)


def test_an_engine_of_one_shape(library, memory):
    with TrtRunner("trt", plan((3, 3, 3)), memory) as runner:
        assert same(runner(draw(9)), draw(9))
        with pytest.raises(InputError, match=r"found: 4\n  allowed: 3 to 3 images"):
            runner(draw(4))


@pytest.mark.parametrize("allowed", [False, True])
def test_an_engine_that_carries_its_runtime(library, memory, allowed):
    with TrtRunner("trt", plan(), memory, version_compatible=allowed) as runner:
        assert library.runtime().engine_host_code_allowed is allowed
        assert same(runner(draw(1)), draw(1))


def test_the_first_device_is_opened_when_none_is_given(library, memory, monkeypatch):
    monkeypatch.setattr(trt_runner, "open_device", lambda: memory)
    with TrtRunner("trt", plan()) as runner:
        assert same(runner(draw(1)), draw(1))


# Batches -----------------------------------------------------------------------------------------------------------------


@for_all(smallest=range(1, 7), largest=range(1, 7))
def test_images_are_split_into_as_few_batches_as_can_be(smallest, largest):
    if smallest > largest:
        return
    for images in range(1, 40):
        counts = [k for k in range(1, 41) if k * smallest <= images <= k * largest]  # k batches can hold them
        if not counts:
            with pytest.raises(InputError, match=f"found: {images}\n  allowed: {smallest} to {largest} images"):
                split(images, smallest, largest)
            continue
        sizes = split(images, smallest, largest)
        assert (sum(sizes), len(sizes)) == (images, min(counts))
        assert smallest <= min(sizes) <= max(sizes) <= largest
        assert sizes == sorted(sizes, reverse=True)


def test_more_images_than_the_largest_batch(library, memory):
    with TrtRunner("trt", plan((2, 3, 4)), memory, graphs=False) as runner:
        start = len(memory.calls)
        assert same(runner(draw(9)), draw(9))
        assert calls(memory, start).count("execute") == 3
        assert split(9, 2, 4) == [4, 3, 2]
        with pytest.raises(InputError, match=r"hold so many images\n  found: 1\n  allowed: 2 to 4 images"):
            runner(draw(1))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[1.0]], "found: list"),
        (draw(1).astype(np.float64), "found: float64"),
        (draw(1).astype(np.uint8), "found: uint8"),
        (draw(1).astype(">f4"), "found: >f4"),
        (draw(1)[0], r"found: \(3, 4, 4\)\n  allowed: \(B, 3, 4, 4\), B > 0"),
        (draw(1)[:, :2], r"found: \(1, 2, 4, 4\)"),
        (draw(1).transpose(0, 2, 3, 1), r"found: \(1, 4, 4, 3\)"),
        (draw(1)[:0], r"found: \(0, 3, 4, 4\)"),
    ],
)
def test_wrong_images_are_refused_before_anything_is_done(library, memory, images, words):
    with TrtRunner("trt", plan(), memory) as runner:
        start = len(memory.calls)
        with pytest.raises(InputError, match=words):
            runner(images)
        assert calls(memory, start) == []
        assert same(runner(draw(2)), draw(2))


# Failures ----------------------------------------------------------------------------------------------------------------

STARTING = {
    "deserialize_cuda_engine": None,
    "create_execution_context": None,
    "set_optimization_profile_async": False,
    "set_input_shape": False,
    "set_tensor_address": False,
}


@pytest.mark.parametrize("call", STARTING)
def test_a_start_that_fails_says_which_call_and_gives_everything_back(library, memory, call):
    library.first_profile = 1
    library.faults[call] = (1, STARTING[call])
    with pytest.raises(BackendError, match=f"(?s)TensorRT.*planted in {call}") as caught:
        TrtRunner("trt", plan(), memory)
    if call != "deserialize_cuda_engine":
        assert f"TensorRT failed in {call}" in str(caught.value)
    assert f"ERROR: planted in {call}" in caught.value.log
    assert not any(memory.live.values())


def test_the_second_address_is_checked_too(library, memory):
    library.faults["set_tensor_address"] = (2, False)
    with pytest.raises(BackendError, match="set_tensor_address of logits"):
        TrtRunner("trt", plan(), memory)
    assert not any(memory.live.values())


@pytest.mark.parametrize("answer", [(4, CLASSES, -1), (3, CLASSES), (4,), (-1, CLASSES), (4, 0)])
def test_an_output_that_is_not_a_row_per_image_is_refused(library, memory, answer):
    library.faults["get_tensor_shape"] = (1, answer)
    with pytest.raises(BackendError, match="get_tensor_shape gives no shape"):
        TrtRunner("trt", plan(), memory)
    assert not any(memory.live.values())


@pytest.mark.parametrize("call", ["make_stream", "allocate"])
def test_a_device_that_fails_at_the_start(library, memory, call):
    memory.faults[call] = True
    with pytest.raises(BackendError, match=f"CUDA failed in {call}"):
        TrtRunner("trt", plan(), memory)
    assert not any(memory.live.values())


@pytest.mark.parametrize("call", ["set_input_shape", "execute_async_v3"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_batch_that_fails_says_which_call_and_the_next_one_works(library, memory, call, at):
    """Batches of sizes 1, 2, 3: each sets its shape."""
    with TrtRunner("trt", plan(), memory) as runner:
        library.faults[call] = (at + library.counts.get(call, 0), False)
        for count in (1, 2, 3):
            images = draw(count, count)
            if count == at:
                with pytest.raises(BackendError, match=f"TensorRT failed in {call}") as caught:
                    runner(images)
                assert f"ERROR: planted in {call}" in str(caught.value)
            assert same(runner(images), images)
    assert not any(memory.live.values())


def test_a_refused_batch_size_is_not_taken_for_the_last_one(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        assert same(runner(draw(3, 1)), draw(3, 1))
        library.faults["set_input_shape"] = (1 + library.counts["set_input_shape"], False)
        with pytest.raises(BackendError, match="set_input_shape"):
            runner(draw(1, 2))
        assert same(runner(draw(3, 3)), draw(3, 3)), "the context may have taken the other size"


def test_another_output_shape_than_at_the_start(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        library.faults["get_tensor_shape"] = (2, (2, CLASSES + 1))
        with pytest.raises(BackendError, match=r"found: \(2, 6\) for 2 images"):
            runner(draw(2))
        assert same(runner(draw(2)), draw(2))


@pytest.mark.parametrize("call", ["to_device", "execute", "to_host", "launch", "synchronize"])
@pytest.mark.parametrize("graphs", [False, True])
def test_a_device_that_fails_on_the_way(library, memory, call, graphs):
    if call == "launch" and not graphs:
        return
    with TrtRunner("trt", plan(), memory, graphs=graphs) as runner:
        for seed in range(3):
            runner(draw(2, seed))
        memory.faults[call] = True
        if graphs and call in ("to_device", "execute", "to_host"):  # those are in the graph now, and not called again
            assert same(runner(draw(2, 3)), draw(2, 3))
            memory.faults.clear()
            return
        with pytest.raises(BackendError, match=f"CUDA failed in {call}"):
            runner(draw(2, 3))
        assert same(runner(draw(2, 4)), draw(2, 4))


def test_an_interrupted_batch_leaves_nothing_on_the_stream(library, memory, monkeypatch):
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        runner(draw(2, 1))
        monkeypatch.setattr(FakeBuffer, "to_host", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runner(draw(2, 2))
        monkeypatch.undo()
        assert all(not stream.queue for stream in memory.streams.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": ["a", "b", "c"], "modes": ["INPUT", "INPUT", "OUTPUT"]}, "found: inputs: a, b; outputs: c"),
        ({"names": ["a", "b", "c"], "modes": ["INPUT", "OUTPUT", "OUTPUT"]}, "found: inputs: a; outputs: b, c"),
        ({"names": ["a", "b", "c"], "modes": ["INPUT", "OUTPUT", "NONE"]}, "one input and one output"),
        ({"names": ["b"], "modes": ["OUTPUT"]}, "inputs: none; outputs: b"),
        ({"dtypes": ["HALF", "FLOAT"]}, "not float32\n  where: images\n  found: DataType.HALF"),
        ({"dtypes": ["FLOAT", "INT8"]}, "not float32\n  where: logits"),
        ({"formats": ["CHW32", "LINEAR"]}, "not in row order\n  where: images\n  found: TensorFormat.CHW32"),
        ({"inner": [(3, 4, 4), (3, 4, 4), (3, 8, 8)]}, "varies beside its batch"),
    ],
)
def test_an_engine_of_other_inputs_or_outputs_is_refused(library, memory, change, words):
    with pytest.raises(InputError, match=words):
        TrtRunner("trt", plan(**change), memory)
    assert not any(memory.live.values())


def test_a_library_that_is_absent(memory, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingError, match=r"ufovit-edge\[trt\]"):
        TrtRunner("trt", plan(), memory)


@pytest.mark.parametrize("flavour", ["rtx", "trt"])
def test_the_real_library_refuses_what_is_no_engine(memory, flavour):
    try:
        api.load(flavour)
    except MissingError as missing:
        pytest.skip(f"{missing}")
    with pytest.raises(BackendError, match="does not load the engine"):
        TrtRunner(flavour, b"no engine" * 100, memory)
    assert not any(memory.live.values())


# Lifetime ----------------------------------------------------------------------------------------------------------------


def test_closing_gives_everything_back_in_order(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        for seed in range(3):
            runner(draw(2, seed))
        assert memory.live == {"stream": 1, "buffer": 2, "graph": 1}
        start = len(memory.calls)
    ended = calls(memory, start)
    assert ended == ["destroy graph", "free", "free", "context gone", "destroy stream", "engine gone"]
    assert not any(memory.live.values())
    runner.close()
    assert calls(memory, start) == ended, "a second close does nothing"
    with pytest.raises(InputError, match="the runner is closed"):
        runner(draw(2))
    with pytest.raises(InputError, match="the runner is closed"):
        runner.clone()


def test_a_clone_outlives_its_original(library, memory):
    original = TrtRunner("trt", plan(), memory)
    other = original.clone()
    assert len(library.contexts) == 2
    assert memory.live["stream"] == 2
    original.close()
    assert "engine gone" not in memory.calls
    assert same(other(draw(3)), draw(3))
    other.close()
    assert memory.calls[-1] == "engine gone"
    assert not any(memory.live.values())


# Threads -----------------------------------------------------------------------------------------------------------------


def in_thread(work, name=None):
    """The result of `work()`, or what it raised, in a thread of its own."""
    found = []

    def run():
        try:
            found.append(work())
        except Exception as error:  # noqa: BLE001  # handed to the test's own thread
            found.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()
    return found[0]


def test_another_thread_is_told_to_clone(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        start = len(memory.calls)
        error = in_thread(lambda: runner(draw(1)), "camera")
        assert isinstance(error, InputError)
        assert "belongs to another thread\n  found: camera\n  allowed: MainThread; clone()" in str(error)
        assert calls(memory, start) == []
        assert same(runner(draw(1)), draw(1))

        def work():
            with runner.clone() as mine:
                return mine(draw(4))

        assert same(in_thread(work), draw(4))


def test_a_thread_that_took_over_an_ended_threads_number_is_another(library, memory):
    runner = in_thread(lambda: TrtRunner("trt", plan(), memory))
    for _ in range(20):  # thread numbers are used again at once
        assert isinstance(in_thread(lambda: runner(draw(1))), InputError)
    runner.close()
    assert not any(memory.live.values())


def test_many_threads_on_one_engine(library, memory):
    original = TrtRunner("trt", plan(), memory)

    def work(seed):
        with original.clone() as mine:
            for step in range(12):
                images = draw(1 + (seed + step // 3) % 4, 100 * seed + step)
                if not same(mine(images), images):
                    return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(12)))
    original.close()
    assert not any(memory.live.values())


def test_closing_from_another_thread_waits_for_the_batch(library, memory, monkeypatch):
    runner = TrtRunner("trt", plan(), memory, graphs=False)
    closer = threading.Thread(target=runner.close)
    put = FakeStream.synchronize

    def slow(stream):
        monkeypatch.setattr(FakeStream, "synchronize", put)
        closer.start()
        closer.join(0.2)
        assert closer.is_alive()
        put(stream)

    monkeypatch.setattr(FakeStream, "synchronize", slow)
    assert same(runner(draw(3)), draw(3))
    closer.join()
    assert not any(memory.live.values())
    with pytest.raises(InputError, match="closed"):
        runner(draw(3))


# CUDA graphs -------------------------------------------------------------------------------------------------------------


def test_the_second_of_two_equal_batches_is_captured_and_then_replayed(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        found = []
        for seed in range(4):
            start, images = len(memory.calls), draw(3, seed)
            assert same(runner(images), images)
            found.append(calls(memory, start))
        plain = ["to_device", "execute", "execute_async_v3", "to_host"]
        assert found[0] == ["set_input_shape", "get_tensor_shape", *plain, "synchronize"]
        assert found[1] == ["begin_capture", *plain, "end_capture", "launch", "synchronize"]
        assert found[2] == found[3] == ["launch", "synchronize"]
        assert runner.uses_graph
        assert runner.notes == []


def test_a_batch_of_another_size_drops_the_graph_first(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        for seed in range(3):
            runner(draw(3, seed))
        start = len(memory.calls)
        assert same(runner(draw(2)), draw(2))
        assert calls(memory, start)[:2] == ["destroy graph", "set_input_shape"]
        assert not runner.uses_graph
        for seed in range(3):
            assert same(runner(draw(2, seed)), draw(2, seed))
        assert runner.uses_graph
        assert memory.live["graph"] == 1


def test_sizes_in_turn_are_never_captured(library, memory):
    with TrtRunner("trt", plan((1, 4, 4)), memory) as runner:
        for seed in range(4):
            assert same(runner(draw(6, seed)), draw(6, seed))
    assert "begin_capture" not in memory.calls


def test_graphs_that_are_not_wanted(library, memory):
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        for seed in range(4):
            assert same(runner(draw(3, seed)), draw(3, seed))
        assert runner.notes == []
        assert not runner.uses_graph
    assert "begin_capture" not in memory.calls


def test_a_device_library_without_graphs(library, memory):
    memory.can_capture, memory.library = False, "pycuda"
    with TrtRunner("trt", plan(), memory) as runner:
        for seed in range(4):
            assert same(runner(draw(3, seed)), draw(3, seed))
        assert runner.notes == ["pycuda has no CUDA graphs: every layer is launched by itself"]
    assert "begin_capture" not in memory.calls


@pytest.mark.parametrize("capturable", [False, True])
def test_a_context_is_asked_whether_it_can_be_captured(library, memory, capturable):
    library.capturable = capturable
    with TrtRunner("trt", plan(), memory) as runner:
        for seed in range(3):
            assert same(runner(draw(3, seed)), draw(3, seed))
        assert runner.uses_graph == capturable
        assert len(runner.notes) == 1 - capturable


@pytest.mark.parametrize("call", ["begin_capture", "to_device", "execute", "to_host", "end_capture"])
def test_a_capture_that_fails_is_noted_and_done_without(library, memory, call):
    with TrtRunner("trt", plan(), memory) as runner:
        runner(draw(3))
        memory.faults[call] = True
        for seed in range(4):
            assert same(runner(draw(3, seed)), draw(3, seed))
        assert len(runner.notes) == 1
        assert f"no CUDA graph, every layer is launched by itself: CUDA failed in {call}" in runner.notes[0]
        assert memory.calls.count("begin_capture") == 1
        assert "launch" not in memory.calls
    assert not any(memory.live.values())


def test_tensorrt_that_refuses_to_be_captured(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        runner(draw(3))
        library.faults["execute_async_v3"] = (2, False)
        assert same(runner(draw(3, 1)), draw(3, 1))
        assert "TensorRT failed in execute_async_v3" in runner.notes[0]
        assert "planted in execute_async_v3" in runner.notes[0]
        assert same(runner(draw(3, 2)), draw(3, 2))
    assert not any(memory.live.values())


def test_a_capture_that_is_interrupted_leaves_the_stream_usable(library, memory, monkeypatch):
    with TrtRunner("trt", plan(), memory) as runner:
        runner(draw(3))
        monkeypatch.setattr(FakeBuffer, "to_host", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runner(draw(3))
        monkeypatch.undo()
        assert same(runner(draw(3, 1)), draw(3, 1))
        assert runner.uses_graph
    assert not any(memory.live.values())


# TensorRT-RTX ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [True, False])
def test_rtx_compiles_first_and_captures_itself(rtx_library, memory, graphs):
    with TrtRunner("rtx", plan(), memory, graphs=graphs) as runner:
        (config,) = rtx_library.configs
        assert rtx_library.contexts[0]().config is config
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        assert config.cuda_graph_strategy.name == ("WHOLE_GRAPH_CAPTURE" if graphs else "DISABLED")
        assert runner.uses_graph == graphs
        for seed in range(4):
            assert same(runner(draw(3, seed)), draw(3, seed))
        assert runner.notes == []
    assert "begin_capture" not in memory.calls
    assert not any(memory.live.values())


def test_rtx_that_does_not_take_the_strategy_is_captured_from_outside(rtx_library, memory):
    rtx_library.takes_strategy, rtx_library.capturable = False, True
    with TrtRunner("rtx", plan(), memory) as runner:
        for seed in range(3):
            assert same(runner(draw(3, seed)), draw(3, seed))
        assert runner.uses_graph
    assert memory.calls.count("begin_capture") == 1


# Time of the engine alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [False, True])
def test_copies_are_not_in_the_time_of_the_engine(library, memory, graphs):
    with TrtRunner("trt", plan(), memory, graphs=graphs) as runner:
        for seed in range(3):
            runner(draw(2, seed))
        start, live = len(memory.calls), dict(memory.live)
        assert runner.compute_times_ms(4) == (1.5,) * 4
        made = calls(memory, start)
        assert not {"to_device", "to_host"} & set(made)
        assert made.count("launch") == (4 if graphs else 0)
        assert made.count("execute") == (1 if graphs else 4)
        assert (memory.live, memory.timers) == (live, 0)
        assert same(runner(draw(2, 9)), draw(2, 9)), "it goes on as before"
        assert runner.uses_graph == graphs
        assert runner.memory is memory


def test_what_has_not_run_is_not_timed(library, memory):
    runner = TrtRunner("trt", plan(), memory)
    with pytest.raises(InputError, match="no batch has run yet"):
        runner.compute_times_ms(3)
    runner(draw(1))
    assert isinstance(in_thread(lambda: runner.compute_times_ms(3)), InputError)
    assert len(runner.compute_times_ms(3)) == 3
    runner.close()
    with pytest.raises(InputError, match="closed"):
        runner.compute_times_ms(3)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("call", ["make_timer", "first event", "second event", "begin_capture", "end_capture", "launch"])
def test_a_device_that_fails_while_it_is_timed(library, memory, call, graphs):
    with TrtRunner("trt", plan(), memory, graphs=graphs) as runner:
        for seed in range(3):
            runner(draw(2, seed))
        live = dict(memory.live)
        memory.faults[call] = 1
        if graphs or call in ("make_timer", "first event", "second event"):
            with pytest.raises(BackendError, match=f"CUDA failed in {call}"):
                runner.compute_times_ms(2)
        memory.faults.clear()
        assert (memory.live, memory.timers) == (live, 0)
        assert runner.compute_times_ms(2) == (1.5, 1.5)
        assert same(runner(draw(2, 9)), draw(2, 9))


def test_rtx_without_a_configuration(rtx_library, memory):
    rtx_library.faults["create_runtime_config"] = (1, None)
    with pytest.raises(BackendError, match="TensorRT-RTX failed in create_runtime_config"):
        TrtRunner("rtx", plan(), memory)
    assert not any(memory.live.values())


# The fakes are strict ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["to_device", "to_host"])
def test_a_missing_copy_is_seen(library, memory, monkeypatch, missing):
    monkeypatch.setattr(FakeBuffer, missing, lambda *_: None)
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        assert not same(runner(draw(3)), draw(3))


def test_a_missing_wait_is_seen(library, memory, monkeypatch):
    wait = FakeStream.synchronize
    monkeypatch.setattr(FakeStream, "synchronize", lambda _stream: None)
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        assert not same(runner(draw(3)), draw(3))
        with memory.current():
            wait(next(iter(memory.streams.values())))


def test_copies_in_another_order_are_seen(library, memory, monkeypatch):
    def early(self, nbytes, stream):
        self._copy("to_host", self.host, self.device, nbytes, stream)
        stream.queue.insert(0, stream.queue.pop())

    monkeypatch.setattr(FakeBuffer, "to_host", early)
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        assert not same(runner(draw(3)), draw(3))


def test_a_stale_address_is_seen(library, memory):
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        with memory.current():
            elsewhere = memory.allocate(4 * 4 * CLASSES)
        library.contexts[0]().addresses["logits"] = elsewhere.device_pointer
        assert not same(runner(draw(3)), draw(3))
        with memory.current():
            elsewhere.free()
        with pytest.raises(KeyError):
            runner(draw(3))


def test_a_graph_that_outlives_its_shape_is_seen(library, memory, monkeypatch):
    with TrtRunner("trt", plan(), memory) as runner:
        for seed in range(3):
            runner(draw(3, seed))
        kept = runner._graph
        monkeypatch.setattr(kept, "destroy", lambda: None)
        runner(draw(2))
        runner._graph = kept
        with pytest.raises(Fault, match="has changed since"):
            runner(draw(2))
        runner._graph = None


def test_a_capture_without_a_plain_run_before_is_seen(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        with memory.current():
            runner._set_batch(2)
        runner._warm = True
        assert same(runner(draw(2)), draw(2))
        assert "the capture was spoilt" in runner.notes[0]


def test_a_device_that_is_not_current_is_seen(memory):
    with pytest.raises(Fault, match="not current"):
        memory.make_stream()


# Real names --------------------------------------------------------------------------------------------------------------

HOLDERS = {"engine": "ICudaEngine", "context": "IExecutionContext", "_context": "IExecutionContext", "config": "IRuntimeConfig"}
RTX_ONLY = {
    "ICudaEngine.create_runtime_config",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
}


def names_used(*sources):
    """Dotted names of TensorRT's module in a source: what is asked of variables named as HOLDERS, and `module.A.B`."""
    found = set()
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(s)) for s in sources):
        if not isinstance(node, ast.Attribute):
            continue
        holder = getattr(node.value, "attr", getattr(node.value, "id", ""))
        if holder in HOLDERS:
            found.add(f"{HOLDERS[holder]}.{node.attr}")
        elif isinstance(node.value, ast.Attribute) and getattr(node.value.value, "id", "") == "module":
            found.add(f"{node.value.attr}.{node.attr}")
    return found


def missing_names(module, names):
    return sorted(n for n in names if not hasattr(getattr(module, n.partition(".")[0], None), n.partition(".")[2]))


def own_names():
    from edge.runtime import trt_io

    return names_used(*(Path(m.__file__).read_text(encoding="utf-8") for m in (trt_runner, trt_io)))


def test_names_are_found_in_the_source():
    names = own_names()
    assert names > RTX_ONLY
    assert {"IExecutionContext.execute_async_v3", "ICudaEngine.get_tensor_profile_shape", "TensorIOMode.INPUT"} < names
    assert len(names) > 20


@pytest.mark.parametrize("flavour", ["rtx", "trt"])
def test_every_name_is_one_of_the_real_library(flavour):
    try:
        module = api.load(flavour)
    except MissingError as missing:
        pytest.skip(f"{missing}")
    if isinstance(module, FakeTensorRT):
        pytest.fail("the fake is still there")
    names = own_names() if flavour == "rtx" else own_names() - RTX_ONLY
    assert missing_names(module, names) == []
    wrong = names_used("context.execute_async_v4(1)\nmodule.DataType.FLOAT32")
    assert missing_names(module, wrong) == ["DataType.FLOAT32", "IExecutionContext.execute_async_v4"], "control"


def test_every_name_is_one_of_the_fake(library, rtx_library, memory):
    """What the code asks of TensorRT, the fake answers, and nothing more is asked of it in these tests than that."""
    for fake, real in ((FakeEngine, "ICudaEngine"), (FakeContext, "IExecutionContext")):
        own = {n for n, _ in inspect.getmembers(fake, inspect.isfunction) if not n.startswith("_")} - {"answer"}
        assert own <= {n.partition(".")[2] for n in own_names() if n.startswith(real)}


# Other runners -----------------------------------------------------------------------------------------------------------


def test_the_shipped_fake_answers_by_where_an_image_is_bright():
    with FakeRunner((3, 10, 6), 5) as runner:
        assert Runner in type(runner).__mro__
        images = np.zeros((5, 3, 10, 6), np.float32)
        for c in range(5):
            images[c, :, 2 * c : 2 * c + 2] = 1
        logits = runner(images)
        assert (logits.dtype, logits.shape) == (np.float32, (5, 5))
        np.testing.assert_array_equal(logits, np.eye(5, dtype=np.float32))
        runner(images[:2])
        assert runner.batches == [5, 2]
        with pytest.raises(InputError, match="not float32"):
            runner(images.astype(np.float64))
        with pytest.raises(InputError, match="not of the network's shape"):
            runner(images[:, :, :9])
        assert not runner.closed
    assert runner.closed
    with pytest.raises(InputError, match="closed"):
        runner(images)
    with pytest.raises(InputError, match="fewer rows than classes"):
        FakeRunner((3, 4, 4), 5)


def test_the_shipped_fake_answers_what_it_is_given():
    answer = np.ones((2, 3), np.float32)
    runner = FakeRunner((3, 4, 4), 3, lambda images: answer[: len(images)])
    found = runner(np.zeros((2, 3, 4, 4), np.float32))
    found[:] = 0
    assert (answer == 1).all(), "a copy"


def test_onnx_runtime_is_a_runner_that_closes(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Flatten", ["x"], ["y"])
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["b", 3, 4, 4]), ("y", ["b", 48]))]
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:])
    path = tmp_path / "flat.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    images = draw(2)
    with OrtRunner(path) as runner:
        assert Runner in type(runner).__mro__
        np.testing.assert_array_equal(runner(images), images.reshape(2, -1))
    with pytest.raises(InputError, match="the runner is closed"):
        runner(images)
    runner.close()


def test_nothing_keeps_a_closed_runner_alive(library, memory):
    runner = TrtRunner("trt", plan(), memory)
    runner(draw(1))
    runner.close()
    there = weakref.ref(runner)
    del runner
    gc.collect()
    assert there() is None
