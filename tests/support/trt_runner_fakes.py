"""A fake TensorRT and a fake CUDA device for the runner: they compute, and note every call."""

import itertools
import json
import threading
import types
import weakref
from contextlib import contextmanager
from enum import Enum

import numpy as np

from calib.errors import BackendError

SIZE, CLASSES = 4, 5
ELEMENTS = 3 * SIZE * SIZE
LOGITS, INDEX = "logits", "index"
WEIGHTS = np.random.default_rng(0).integers(-8, 9, (ELEMENTS, CLASSES))
NAN = 0xFF
"""Bytes of it make a NaN in float32."""


class Fault(AssertionError):
    """The code under test did what a real device would punish."""


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


class FakeLogger:
    class Severity(Enum):
        ERROR, WARNING, INFO, VERBOSE = range(4)


class Kinds:
    """Enumerations of the module, by the real names."""

    DataType = Enum("DataType", "FLOAT HALF INT8 INT32 UINT8")
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
        shape = {LOGITS: (self.shape[0], self.engine.classes), INDEX: (self.shape[0],)}[name]
        return self.engine.answer("get_tensor_shape", shape)

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
            images, logits, *index = (self.engine.module.memory.bytes_at[a] for a in addresses)
            images = images.view(np.uint8 if self.engine.dtypes[0] == "UINT8" else np.float32)
            images = images[: int(np.prod(shape))].reshape(shape[0], -1).astype(np.float32)
            answers = 2 * images[:, ::-1] @ WEIGHTS.astype(np.float32)
            logits.view(np.float32)[: answers.size] = answers.ravel()
            for output in index:
                output.view(np.int32)[: shape[0]] = answers.argmax(axis=1)

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


def plan(batches=(1, 2, 4), **more):
    return json.dumps({"names": ["images", LOGITS], "batches": batches, **more}).encode()


def two_output_plan(batches=(1, 2, 4)):
    """Of uint8 images; the second output is the index of the largest logit, int32."""
    ports = {"modes": ["INPUT", "OUTPUT", "OUTPUT"], "dtypes": ["UINT8", "FLOAT", "INT32"], "formats": ["LINEAR"] * 3}
    return plan(batches, **{"names": ["images", LOGITS, INDEX], **ports})


def draw(count, seed=1):
    return np.random.default_rng(seed).integers(-9, 10, (count, 3, SIZE, SIZE)).astype(np.float32)


def expected(images):
    flat = images.astype(np.int64).reshape(len(images), ELEMENTS)
    return np.array(
        [[2 * sum(row[ELEMENTS - 1 - i] * WEIGHTS[i, c] for i in range(ELEMENTS)) for c in range(CLASSES)] for row in flat]
    )


def same(outputs, images):
    """Bit for bit, of the right type, and none of them NaN."""
    (logits,), wanted = outputs, expected(images)
    return logits.dtype == np.float32 and logits.shape == wanted.shape and bool((logits == wanted).all())


def calls(memory, since=0):
    return memory.calls[since:]


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
