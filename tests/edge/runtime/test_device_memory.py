"""edge.runtime.device_memory on fakes of pycuda and cuda-python over one fake GPU, and its names against the real libraries.

The oracle is the fake GPU's own memory, looked at from outside. It is strict: a call in a thread without a context, a copy from
memory that is not page-locked, the default stream, a freed address, a thread that ends with a context on its stack are
faults. What the fakes take and answer follows pycuda's src/cpp/cuda.hpp and the documentation of cuda-bindings.
"""

import ast
import ctypes
import gc
import inspect
import itertools
import os
import re
import subprocess
import sys
import threading
import types
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

from calib.errors import BackendError, InputError, MissingError
from edge.runtime import cuda_python_memory, cuda_python_timer, pycuda_memory
from edge.runtime.open_device import open_device

ROOT = Path(__file__).resolve().parents[3]
POISON = 0xFF
N = 1000


class CudaError(Exception):
    """What the fake GPU answers instead of success; each fake library says it in its own way."""

    def __init__(self, name):
        super().__init__(name)
        self.name = name


# The fake GPU ------------------------------------------------------------------------------------------------------------


class Memory:
    """A piece of the host's or the device's memory."""

    def __init__(self, nbytes, address, kind):
        self.bytes, self.address, self.kind = np.full(nbytes, POISON, np.uint8), address, kind


class Gpu:
    """Attributes: faults, names of calls that fail once; last_error, as cudaGetLastError has it."""

    def __init__(self, *, integrated=False, mappable=True, devices=1):
        self.integrated, self.mappable, self.devices = integrated, mappable, devices
        self.faults, self.calls, self.last_error = set(), [], "cudaSuccess"
        self.device, self.pinned, self.streams, self.graphs, self.events = {}, {}, {}, {}, {}
        self.now_ms = 0.0
        self.addresses = itertools.count(1 << 24, 1 << 16)
        self.handles = itertools.count(5)

    def fail(self, call):
        self.calls.append(call)
        if call in self.faults:
            self.faults.remove(call)
            raise CudaError("cudaErrorLaunchFailure")

    def allocate(self, call, nbytes):
        self.fail(call)
        assert nbytes > 0
        memory = Memory(nbytes, next(self.addresses), "device")
        self.device[memory.address] = memory
        return memory.address

    def pin(self, call, nbytes, *, mapped):
        """Real memory, because the library hands out its address."""
        self.fail(call)
        memory = (ctypes.c_uint8 * nbytes)()
        ctypes.memset(memory, POISON, nbytes)
        self.pinned[ctypes.addressof(memory)] = (memory, mapped)
        return memory

    def free(self, table, address):
        if table.pop(address, None) is None:
            raise CudaError("cudaErrorInvalidValue")

    def map(self, call, address):
        self.fail(call)
        memory, mapped = self.pinned[address]
        if not mapped:
            raise CudaError("cudaErrorInvalidValue")
        return ctypes.addressof(memory)

    def new_stream(self, call, flags):
        self.fail(call)
        handle = next(self.handles)
        self.streams[handle] = {"flags": flags, "queue": [], "recording": None, "spoilt": False}
        return handle

    def stream(self, handle):
        if handle not in self.streams:
            raise CudaError("cudaErrorInvalidResourceHandle")
        return self.streams[handle]

    def put(self, handle, work):
        stream = self.stream(handle)
        (stream["queue"] if stream["recording"] is None else stream["recording"]).append(work)

    def copy(self, call, to, source, nbytes, handle):
        """`to` and `source` are numpy arrays of the whole memories."""
        self.fail(call)
        if nbytes > min(to.nbytes, source.nbytes):
            raise CudaError("cudaErrorInvalidValue")
        self.put(handle, lambda: to.__setitem__(slice(nbytes), source[:nbytes]))

    def wait(self, call, handle):
        self.fail(call)
        stream = self.stream(handle)
        work, stream["queue"] = stream["queue"], []
        for step in work:
            step()

    def new_event(self, call):
        self.fail(call)
        handle = next(self.handles)
        self.events[handle] = None
        return handle

    def record(self, call, event, handle):
        self.fail(call)
        if event not in self.events:
            raise CudaError("cudaErrorInvalidResourceHandle")
        self.put(handle, lambda: self.events.__setitem__(event, self.now_ms))

    def between(self, call, first, second):
        self.fail(call)
        times = self.events[first], self.events[second]
        if None in times:
            raise CudaError("cudaErrorInvalidResourceHandle")
        return times[1] - times[0]

    def take(self, milliseconds, handle):
        """Put work on a stream that takes so long."""
        self.put(handle, lambda: setattr(self, "now_ms", self.now_ms + milliseconds))

    def look(self, pointer, nbytes):
        """The device's bytes at an address, as a kernel would see them."""
        if pointer in self.device:
            return self.device[pointer].bytes[:nbytes]
        memory, mapped = self.pinned[pointer]
        assert mapped
        return np.frombuffer(memory, np.uint8)[:nbytes]

    def host_view(self, address):
        return np.frombuffer(self.pinned[address][0], np.uint8)

    def clean(self):
        return not (self.device or self.pinned or self.streams or self.graphs or self.events)


# The fake libraries ------------------------------------------------------------------------------------------------------


def fake_pycuda(gpu):  # noqa: C901  # a module of small functions around one stack
    """The module pycuda.driver, as far as it is used; its context stack is one per thread."""
    driver = types.ModuleType("pycuda.driver")
    stacks = threading.local()
    driver.initialized, driver.retained, driver.opener = False, 0, None

    class Error(Exception):
        pass

    class LaunchError(Error):
        pass

    def stack():
        if not hasattr(stacks, "contexts"):
            stacks.contexts = []
        return stacks.contexts

    def guarded(call, work, *, context=True):
        assert driver.initialized, "init comes first"
        try:
            if context and not stack():
                raise Error(f"{call} failed: invalid device context")
            return work()
        except CudaError as error:
            raise LaunchError(f"{call} failed: {error.name}") from error

    class Context:
        valid = True

        def detach(self):
            assert self.valid
            self.valid = False
            driver.retained -= 1

        def __del__(self):
            if self.valid:
                gpu.calls.append("cuCtxDetach")  # pycuda's destructor fails to release a primary context and says so

        def push(self):
            guarded("cuCtxPushCurrent", lambda: gpu.fail("cuCtxPushCurrent"), context=False)
            stack().append(self)

        @staticmethod
        def pop():
            if not stack():
                raise Error("context::pop failed: invalid device context - cannot pop non-current context")
            stack().pop()

    class Device:
        def __init__(self, number):
            assert driver.initialized
            assert 0 <= number < gpu.devices

        @staticmethod
        def count():
            return gpu.devices

        def name(self):
            return "Fake"

        def compute_capability(self):
            return 8, 7

        def total_memory(self):
            return 1 << 33

        def get_attribute(self, which):
            return {"INTEGRATED": int(gpu.integrated), "CAN_MAP_HOST_MEMORY": int(gpu.mappable)}[which]

        def retain_primary_context(self):
            guarded("cuDevicePrimaryCtxRetain", lambda: gpu.fail("cuDevicePrimaryCtxRetain"), context=False)
            driver.retained, driver.opener = driver.retained + 1, threading.current_thread()
            return Context()

    class Stream:
        def __init__(self, flags=0):
            self.handle = guarded("cuStreamCreate", lambda: gpu.new_stream("cuStreamCreate", flags))

        def synchronize(self):
            guarded("cuStreamSynchronize", lambda: gpu.wait("cuStreamSynchronize", self.handle))

        def __del__(self):
            if not stack() and threading.current_thread() is not driver.opener:
                gpu.calls.append("leaked stream")  # pycuda warns and leaks
            elif "handle" in vars(self):
                gpu.streams.pop(self.handle)

    class Event:
        def __init__(self):
            self.handle = guarded("cuEventCreate", lambda: gpu.new_event("cuEventCreate"))

        def record(self, stream=None):
            guarded("cuEventRecord", lambda: gpu.record("cuEventRecord", self.handle, stream.handle))

        def time_since(self, other):
            return guarded("cuEventElapsedTime", lambda: gpu.between("cuEventElapsedTime", other.handle, self.handle))

        def __del__(self):
            if not stack() and threading.current_thread() is not driver.opener:
                gpu.calls.append("leaked event")  # as for streams
            elif "handle" in vars(self):
                gpu.events.pop(self.handle)

    def mem_get_info():
        used = sum(memory.bytes.nbytes for memory in gpu.device.values())
        return guarded("cuMemGetInfo", lambda: (gpu.fail("cuMemGetInfo"), ((1 << 33) - used, 1 << 33))[1])

    class DeviceAllocation:
        def __init__(self, nbytes):
            self.address = guarded("cuMemAlloc", lambda: gpu.allocate("cuMemAlloc", nbytes))

        def __int__(self):
            return self.address

        def free(self):
            guarded("cuMemFree", lambda: gpu.free(gpu.device, self.address))

    def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
        assert dtype is np.uint8
        assert order == "C"
        pinned = guarded("cuMemHostAlloc", lambda: gpu.pin("cuMemHostAlloc", shape, mapped=bool(mem_flags & 2)))

        class PagelockedHostAllocation(ctypes.c_uint8 * shape):
            def free(self):
                guarded("cuMemFreeHost", lambda: gpu.free(gpu.pinned, ctypes.addressof(pinned)))

            def get_device_pointer(self):
                return guarded(
                    "cuMemHostGetDevicePointer", lambda: gpu.map("cuMemHostGetDevicePointer", ctypes.addressof(pinned))
                )

        return np.ndarray(shape, np.uint8, buffer=PagelockedHostAllocation.from_buffer(pinned))

    def pinned_part(array):
        """The pinned memory that an array begins in, from its beginning on."""
        return gpu.host_view(array.__array_interface__["data"][0]), array.nbytes

    def memcpy_htod_async(dest, src, stream=None):
        view, n = pinned_part(src)
        to = gpu.device[int(dest)].bytes
        guarded("cuMemcpyHtoDAsync", lambda: gpu.copy("cuMemcpyHtoDAsync", to, view, n, stream.handle))

    def memcpy_dtoh_async(dest, src, stream=None):
        view, n = pinned_part(dest)
        source = gpu.device[int(src)].bytes
        guarded("cuMemcpyDtoHAsync", lambda: gpu.copy("cuMemcpyDtoHAsync", view, source, n, stream.handle))

    def init():
        if not gpu.devices:
            raise Error("cuInit failed: no CUDA-capable device is detected")
        driver.initialized = True

    driver.Error, driver.LaunchError, driver.Context, driver.Device, driver.Stream = Error, LaunchError, Context, Device, Stream
    driver.mem_alloc, driver.pagelocked_empty, driver.init = DeviceAllocation, pagelocked_empty, init
    driver.Event, driver.mem_get_info = Event, mem_get_info
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    driver.host_alloc_flags = types.SimpleNamespace(DEVICEMAP=2)
    driver.device_attribute = types.SimpleNamespace(INTEGRATED="INTEGRATED", CAN_MAP_HOST_MEMORY="CAN_MAP_HOST_MEMORY")
    driver.depth = lambda: len(stack())
    return driver


class CudaErrorT(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureInvalidated = 901


class CudaDeviceAttr(IntEnum):
    cudaDevAttrIntegrated = 18
    cudaDevAttrCanMapHostMemory = 19
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class CudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class CudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class Handle:
    """cudaStream_t and the like: int() gives the handle."""

    def __init__(self, value):
        self.value = value

    def __int__(self):
        return self.value


class FakeRuntime(types.ModuleType):
    """The module cuda.bindings.runtime: every function answers (error, results ...)."""

    cudaError_t, cudaDeviceAttr, cudaMemcpyKind, cudaStreamCaptureMode = (
        CudaErrorT,
        CudaDeviceAttr,
        CudaMemcpyKind,
        CudaStreamCaptureMode,
    )
    cudaStreamNonBlocking, cudaHostAllocDefault, cudaHostAllocMapped = 1, 0, 2

    def __init__(self, gpu):
        super().__init__("cuda.bindings.runtime")
        self.gpu, self.chosen = gpu, threading.local()
        self.driver, self.present = 13000, True

    def _answer(self, call, work=lambda: None, results=1):
        try:
            if call not in self.gpu.calls[-1:]:
                self.gpu.fail(call)
            found = work()
            return (CudaErrorT.cudaSuccess, found) if results else (CudaErrorT.cudaSuccess,)
        except CudaError as error:
            self.gpu.last_error = error.name
            return (CudaErrorT[error.name], None) if results else (CudaErrorT[error.name],)

    def cudaGetDeviceCount(self):
        if not self.present:
            return CudaErrorT.cudaErrorInsufficientDriver, None
        return (CudaErrorT.cudaSuccess, self.gpu.devices) if self.gpu.devices else (CudaErrorT.cudaErrorNoDevice, None)

    def cudaDriverGetVersion(self):
        return CudaErrorT.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self):
        return CudaErrorT.cudaSuccess, 13050

    def cudaGetErrorString(self, error):
        return CudaErrorT.cudaSuccess, f"text of {error.name}".encode()

    def cudaGetLastError(self):
        last, self.gpu.last_error = self.gpu.last_error, "cudaSuccess"
        return (CudaErrorT[last],)

    def cudaGetDeviceProperties(self, device):  # all devices are alike
        return self._answer("cudaGetDeviceProperties", lambda: types.SimpleNamespace(name=b"Fake", totalGlobalMem=1 << 33))

    def cudaDeviceGetAttribute(self, attribute, device):  # as above
        values = {18: int(self.gpu.integrated), 19: int(self.gpu.mappable), 75: 8, 76: 7}
        return self._answer("cudaDeviceGetAttribute", lambda: values[attribute])

    def cudaGetDevice(self):
        return CudaErrorT.cudaSuccess, getattr(self.chosen, "device", 0)

    def cudaSetDevice(self, device):
        self.chosen.device = device
        return self._answer("cudaSetDevice", results=0)

    def cudaStreamCreateWithFlags(self, flags):
        return self._answer(
            "cudaStreamCreateWithFlags", lambda: Handle(self.gpu.new_stream("cudaStreamCreateWithFlags", flags))
        )

    def cudaStreamSynchronize(self, stream):
        return self._answer("cudaStreamSynchronize", lambda: self.gpu.wait("cudaStreamSynchronize", int(stream)), 0)

    def cudaStreamDestroy(self, stream):
        return self._answer("cudaStreamDestroy", lambda: self.gpu.free(self.gpu.streams, int(stream)), 0)

    def cudaEventCreate(self):
        return self._answer("cudaEventCreate", lambda: Handle(self.gpu.new_event("cudaEventCreate")))

    def cudaEventRecord(self, event, stream):
        return self._answer("cudaEventRecord", lambda: self.gpu.record("cudaEventRecord", int(event), int(stream)), 0)

    def cudaEventElapsedTime(self, start, end):
        between = lambda: self.gpu.between("cudaEventElapsedTime", int(start), int(end))  # noqa: E731
        return self._answer("cudaEventElapsedTime", between)

    def cudaEventDestroy(self, event):
        if int(event) not in self.gpu.events:
            return (CudaErrorT.cudaErrorInvalidResourceHandle,)
        return self._answer("cudaEventDestroy", lambda: self.gpu.events.pop(int(event)), 0)

    def cudaMemGetInfo(self):
        used = sum(memory.bytes.nbytes for memory in self.gpu.device.values())
        error, free = self._answer("cudaMemGetInfo", lambda: (1 << 33) - used)
        return error, free, 1 << 33

    def cudaHostAlloc(self, size, flags):
        pin = lambda: ctypes.addressof(self.gpu.pin("cudaHostAlloc", size, mapped=bool(flags & 2)))  # noqa: E731
        return self._answer("cudaHostAlloc", pin)

    def cudaHostGetDevicePointer(self, host, flags):
        assert flags == 0
        return self._answer("cudaHostGetDevicePointer", lambda: self.gpu.map("cudaHostGetDevicePointer", host))

    def cudaFreeHost(self, pointer):
        return self._answer("cudaFreeHost", lambda: self.gpu.free(self.gpu.pinned, pointer), 0)

    def cudaMalloc(self, size):
        return self._answer("cudaMalloc", lambda: self.gpu.allocate("cudaMalloc", size))

    def cudaFree(self, pointer):
        return self._answer("cudaFree", lambda: self.gpu.free(self.gpu.device, pointer), 0)

    def cudaMemcpyAsync(self, to, source, count, kind, stream):
        def work():
            views = (
                (self.gpu.device[to].bytes, self.gpu.host_view(source))
                if kind is CudaMemcpyKind.cudaMemcpyHostToDevice
                else (self.gpu.host_view(to), self.gpu.device[source].bytes)
            )
            self.gpu.copy("cudaMemcpyAsync", *views, count, int(stream))

        return self._answer("cudaMemcpyAsync", work, 0)

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode is CudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        return self._answer("cudaStreamBeginCapture", lambda: self.gpu.stream(int(stream)).update(recording=[]), 0)

    def cudaStreamEndCapture(self, stream):
        def work():
            state = self.gpu.stream(int(stream))
            recorded, state["recording"] = state["recording"], None
            if state["spoilt"]:
                state["spoilt"] = False
                raise CudaError("cudaErrorStreamCaptureInvalidated")
            return self._keep(recorded)

        return self._answer("cudaStreamEndCapture", work)

    def _keep(self, recorded):
        handle = Handle(next(self.gpu.handles))
        self.gpu.graphs[handle.value] = recorded
        return handle

    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        return self._answer("cudaGraphInstantiate", lambda: self._keep(list(self.gpu.graphs[int(graph)])))

    def cudaGraphLaunch(self, executable, stream):
        work = lambda: [self.gpu.put(int(stream), step) for step in self.gpu.graphs[int(executable)]]  # noqa: E731
        return self._answer("cudaGraphLaunch", work, 0)

    def cudaGraphDestroy(self, graph):
        return self._answer("cudaGraphDestroy", lambda: self.gpu.free(self.gpu.graphs, int(graph)), 0)

    def cudaGraphExecDestroy(self, executable):
        return self._answer("cudaGraphExecDestroy", lambda: self.gpu.free(self.gpu.graphs, int(executable)), 0)


# What the tests share ----------------------------------------------------------------------------------------------------

LIBRARIES = ("pycuda", "cuda-python")


@pytest.fixture
def gpu():
    return Gpu()


@pytest.fixture
def modules(gpu, monkeypatch):
    """Both libraries, over one GPU."""
    found = types.SimpleNamespace(pycuda=fake_pycuda(gpu), runtime=FakeRuntime(gpu))
    package = types.ModuleType("pycuda")
    package.__path__, package.driver = [], found.pycuda
    for name, module in {
        "pycuda": package,
        "pycuda.driver": found.pycuda,
        "pycuda.autoinit": None,
        "pycuda.autoprimaryctx": None,
        "cuda": types.ModuleType("cuda"),
        "cuda.bindings": types.ModuleType("cuda.bindings"),
        "cuda.bindings.runtime": found.runtime,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.fixture(params=LIBRARIES)
def opened(request, modules):
    """zero_copy -> the device, through each library."""
    return lambda zero_copy=None, device=0: open_device(device, request.param, zero_copy=zero_copy)


def in_thread(work):
    """The result of `work()`, or what it raised, in a thread of its own."""
    found = []

    def run():
        try:
            found.append(work())
        except Exception as error:  # noqa: BLE001  # handed to the test's own thread
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def pattern(nbytes, seed):
    return np.random.default_rng(seed).integers(0, 255, nbytes, dtype=np.uint8)  # never POISON


# The contract ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrated", [False, True])
def test_what_a_device_says_of_itself(opened, gpu, integrated):
    gpu.integrated = integrated
    memory = opened()
    assert memory.library in LIBRARIES
    assert (memory.name, memory.compute_capability, memory.total_bytes) == ("Fake", "8.7", 1 << 33)
    assert memory.integrated is integrated
    assert memory.can_capture is (memory.library == "cuda-python")


def test_copies_run_in_the_order_of_the_stream_and_not_before_the_wait(opened, gpu):
    memory = opened()
    stream, buffer = memory.make_stream(), memory.allocate(N)
    assert not buffer.mapped
    assert (buffer.host.dtype, buffer.host.shape, buffer.host.flags.writeable) == (np.uint8, (N,), True)
    first, second = pattern(N, 1), pattern(N, 2)
    buffer.host[:] = first
    buffer.to_device(600, stream)
    assert (gpu.look(buffer.device_pointer, N) == POISON).all()
    stream.synchronize()
    assert (gpu.look(buffer.device_pointer, 600) == first[:600]).all()
    assert (gpu.look(buffer.device_pointer, N)[600:] == POISON).all()
    gpu.look(buffer.device_pointer, N)[:] = second
    buffer.to_host(700, stream)
    assert (buffer.host == first).all()
    stream.synchronize()
    assert (buffer.host[:700] == second[:700]).all()
    assert (buffer.host[700:] == first[700:]).all()
    buffer.free()
    stream.destroy()
    assert gpu.clean()


@pytest.mark.parametrize(
    ("integrated", "mappable", "zero_copy", "mapped"),
    [
        (False, True, None, False),
        (True, True, None, True),
        (True, True, False, False),
        (False, True, True, True),
        (True, False, None, False),
        (True, False, True, False),
    ],
)
def test_when_memory_is_shared(opened, gpu, integrated, mappable, zero_copy, mapped):
    gpu.integrated, gpu.mappable = integrated, mappable
    memory = opened(zero_copy)
    stream, buffer = memory.make_stream(), memory.allocate(N)
    assert buffer.mapped is mapped
    assert len(gpu.device) == 1 - mapped
    buffer.host[:] = pattern(N, 3)
    assert (gpu.look(buffer.device_pointer, N) == pattern(N, 3)).all() == mapped
    buffer.to_device(N, stream)
    buffer.to_host(N, stream)
    assert len(gpu.streams[stream.handle]["queue"]) == (0 if mapped else 2)
    stream.synchronize()
    assert (gpu.look(buffer.device_pointer, N) == pattern(N, 3)).all()
    buffer.free()
    stream.destroy()
    assert gpu.clean()


def test_buffers_do_not_overlap(opened, gpu):
    memory = opened()
    stream, buffers = memory.make_stream(), [memory.allocate(N) for _ in range(3)]
    for i, buffer in enumerate(buffers):
        buffer.host[:] = i
        buffer.to_device(N, stream)
    stream.synchronize()
    assert [set(gpu.look(b.device_pointer, N)) for b in buffers] == [{0}, {1}, {2}]
    assert [set(b.host) for b in buffers] == [{0}, {1}, {2}]


def test_a_stream_is_its_own_and_waits_for_no_other(opened, gpu):
    memory = opened()
    one, two = memory.make_stream(), memory.make_stream()
    assert one.handle != two.handle
    assert {one.handle, two.handle} == set(gpu.streams)
    assert all(stream["flags"] == 1 for stream in gpu.streams.values()), "cuda.h: CU_STREAM_NON_BLOCKING"
    one.destroy()
    assert set(gpu.streams) == {two.handle}
    one.destroy()
    two.destroy()
    assert gpu.clean()


def test_what_was_given_back_is_refused(opened, gpu):
    memory = opened()
    stream, other, buffer = memory.make_stream(), memory.make_stream(), memory.allocate(N)
    for nbytes in (0, -1, N + 1):
        with pytest.raises(BackendError, match=f"beyond the buffer\n  found: {nbytes} of 1000 bytes"):
            buffer.to_device(nbytes, stream)
    other.destroy()
    for use in (lambda: buffer.to_device(N, other), other.synchronize):
        with pytest.raises(BackendError):
            use()
    buffer.free()
    assert buffer.host.nbytes == 0
    for use in (lambda: buffer.to_device(N, stream), lambda: buffer.to_host(1, stream)):
        with pytest.raises(BackendError, match="beyond the buffer"):
            use()
    buffer.free()
    stream.destroy()
    assert gpu.clean()


def test_a_timer_tells_what_the_device_took(opened, gpu):
    memory = opened()
    stream, timer = memory.make_stream(), memory.make_timer()
    for milliseconds in (7.5, 0.25):
        gpu.take(100, stream.handle)  # before the first event
        timer.start(stream)
        gpu.take(milliseconds, stream.handle)
        timer.stop(stream)
        gpu.take(100, stream.handle)
        stream.synchronize()
        assert timer.elapsed_ms() == milliseconds
    timer.destroy()
    timer.destroy()
    stream.destroy()
    assert gpu.clean()
    assert "leaked event" not in gpu.calls


def test_a_timer_of_another_thread(opened, gpu):
    memory = opened()
    stream, timer = memory.make_stream(), in_thread(memory.make_timer)
    timer.start(stream)
    gpu.take(3, stream.handle)
    timer.stop(stream)
    stream.synchronize()
    assert in_thread(timer.elapsed_ms) == 3
    in_thread(timer.destroy)
    in_thread(stream.destroy)
    assert gpu.clean()


def test_a_second_event_that_cannot_be_made_leaves_none(modules, gpu):
    memory = open_device(0, "cuda-python")
    made = modules.runtime.cudaEventCreate
    asked = itertools.count()
    modules.runtime.cudaEventCreate = lambda: (CudaErrorT.cudaErrorLaunchFailure, None) if next(asked) else made()
    with pytest.raises(BackendError, match="cudaEventCreate"):
        memory.make_timer()
    assert gpu.clean()


def test_memory_in_use(opened, gpu):
    memory = opened(zero_copy=False)
    before = memory.bytes_in_use()
    buffer = memory.allocate(N)
    assert memory.bytes_in_use() - before == N
    buffer.free()
    assert memory.bytes_in_use() == before


def test_every_thread_may_use_the_device(opened, gpu, modules):
    memory = opened()

    def work():
        stream, buffer = memory.make_stream(), memory.allocate(N)
        buffer.host[:] = pattern(N, 4)
        buffer.to_device(N, stream)
        stream.synchronize()
        seen = gpu.look(buffer.device_pointer, N).copy()
        return stream, buffer, seen, modules.pycuda.depth()

    stream, buffer, seen, depth = in_thread(work)
    assert (seen == pattern(N, 4)).all()
    assert depth == 0, "pycuda ends the process if a thread ends with a context on its stack"
    buffer.to_host(N, stream)  # and from here on, in this one
    stream.synchronize()

    def end():
        buffer.free()
        stream.destroy()

    assert in_thread(end) is None
    assert "leaked stream" not in gpu.calls
    assert gpu.clean()


def test_a_block_makes_the_device_current_once(opened, gpu, modules):
    memory = opened()
    entered = "cuCtxPushCurrent" if memory.library == "pycuda" else "cudaSetDevice"
    before = gpu.calls.count(entered)
    with memory.current(), memory.current():
        stream = memory.make_stream()
        stream.synchronize()
    assert gpu.calls.count(entered) == before + 1
    with pytest.raises(ZeroDivisionError), memory.current():
        1 / 0  # noqa: B018  # the division is what is tested
    assert modules.pycuda.depth() == 0
    stream.synchronize()
    stream.destroy()


def test_the_device_that_was_current_is_so_again(modules, gpu):
    gpu.devices = 3
    memory = open_device(2, "cuda-python")
    modules.runtime.cudaSetDevice(1)
    with memory.current():
        assert modules.runtime.cudaGetDevice()[1] == 2
        with memory.current():
            assert modules.runtime.cudaGetDevice()[1] == 2
        assert modules.runtime.cudaGetDevice()[1] == 2
    assert modules.runtime.cudaGetDevice()[1] == 1


# Failures ----------------------------------------------------------------------------------------------------------------

CALLS = {
    "pycuda": {
        "cuDevicePrimaryCtxRetain": "open",
        "cuCtxPushCurrent": "stream",
        "cuStreamCreate": "stream",
        "cuMemHostAlloc": "buffer",
        "cuMemAlloc": "buffer",
        "cuMemHostGetDevicePointer": "mapped",
        "cuMemcpyHtoDAsync": "use",
        "cuMemcpyDtoHAsync": "use",
        "cuStreamSynchronize": "use",
        "cuEventCreate": "timer",
        "cuEventRecord": "timer",
        "cuEventElapsedTime": "timer",
        "cuMemGetInfo": "memory in use",
    },
    "cuda-python": {
        "cudaGetDeviceProperties": "open",
        "cudaDeviceGetAttribute": "open",
        "cudaSetDevice": "stream",
        "cudaStreamCreateWithFlags": "stream",
        "cudaHostAlloc": "buffer",
        "cudaMalloc": "buffer",
        "cudaHostGetDevicePointer": "mapped",
        "cudaMemcpyAsync": "use",
        "cudaStreamSynchronize": "use",
        "cudaStreamBeginCapture": "graph",
        "cudaStreamEndCapture": "graph",
        "cudaGraphInstantiate": "graph",
        "cudaGraphLaunch": "graph",
        "cudaEventCreate": "timer",
        "cudaEventRecord": "timer",
        "cudaEventElapsedTime": "timer",
        "cudaMemGetInfo": "memory in use",
    },
}


@pytest.mark.parametrize(("library", "call"), [(lib, c) for lib, calls in CALLS.items() for c in calls])
def test_a_cuda_call_that_fails_is_named_and_leaves_nothing(modules, gpu, library, call):
    """Once each, in a run through everything; what was made before it is given back, and then it works."""
    gpu.faults.add(call)
    made = []

    def everything():
        memory = open_device(0, library, zero_copy=CALLS[library][call] == "mapped")
        made.append(stream := memory.make_stream())
        made.append(buffer := memory.allocate(N))
        buffer.to_device(N, stream)
        buffer.to_host(N, stream)
        stream.synchronize()
        if memory.can_capture:
            memory.begin_capture(stream)
            made.append(graph := memory.end_capture(stream))
            memory.launch(graph, stream)
            stream.synchronize()
        made.append(timer := memory.make_timer())
        timer.start(stream)
        timer.stop(stream)
        stream.synchronize()
        timer.elapsed_ms()
        memory.bytes_in_use()

    def give_back():
        for thing in reversed(made):
            (thing.free if hasattr(thing, "free") else thing.destroy)()
        made.clear()

    with pytest.raises(BackendError, match=call):
        everything()
    assert not gpu.faults, "it was called"
    give_back()
    assert gpu.clean()
    everything()
    give_back()
    assert gpu.clean()


def test_all_calls_are_tried(modules, gpu):
    """What the code calls and CALLS does not list: queries of what there is, and what gives back."""
    source = cuda_python_source()
    called = set(re.findall(r'"(cuda[A-Z]\w+)"', source))
    rest = called - set(CALLS["cuda-python"])
    assert rest == {
        "cudaGetDevice",
        "cudaFree",
        "cudaFreeHost",
        "cudaStreamDestroy",
        "cudaEventDestroy",
        "cudaGraphDestroy",
        "cudaGraphExecDestroy",
    }


def test_a_driver_without_the_function(modules):
    memory = open_device(0, "cuda-python")
    modules.runtime.cudaStreamCreateWithFlags = lambda _flags: (_ for _ in ()).throw(RuntimeError('Function "cu…" not found'))
    with pytest.raises(BackendError, match=r"cudaStreamCreateWithFlags\n  found: Function"):
        memory.make_stream()


# CUDA graphs -------------------------------------------------------------------------------------------------------------


def test_a_graph_runs_when_it_is_launched_and_every_time(modules, gpu):
    memory = open_device(0, "cuda-python")
    stream, buffer = memory.make_stream(), memory.allocate(N)
    buffer.host[:] = pattern(N, 5)
    memory.begin_capture(stream)
    buffer.to_device(N, stream)
    graph = memory.end_capture(stream)
    stream.synchronize()
    assert (gpu.look(buffer.device_pointer, N) == POISON).all(), "recorded, not run"
    for seed in (6, 7):
        buffer.host[:] = pattern(N, seed)
        memory.launch(graph, stream)
        stream.synchronize()
        assert (gpu.look(buffer.device_pointer, N) == pattern(N, seed)).all()
    assert len(gpu.graphs) == 1, "only what is launched is kept"
    graph.destroy()
    graph.destroy()
    with pytest.raises(BackendError, match="the CUDA graph was destroyed"):
        memory.launch(graph, stream)
    buffer.free()
    stream.destroy()
    assert gpu.clean()


def test_a_spoilt_capture_leaves_stream_and_error_state_clean(modules, gpu):
    memory = open_device(0, "cuda-python")
    stream, buffer = memory.make_stream(), memory.allocate(N)
    memory.begin_capture(stream)
    gpu.streams[stream.handle]["spoilt"] = True
    with pytest.raises(BackendError, match="cudaStreamEndCapture\n  found: cudaErrorStreamCaptureInvalidated: text of"):
        memory.end_capture(stream)
    assert gpu.last_error == "cudaSuccess"
    buffer.host[:] = pattern(N, 8)
    buffer.to_device(N, stream)
    stream.synchronize()
    assert (gpu.look(buffer.device_pointer, N) == pattern(N, 8)).all()


def test_graphs_and_streams_of_another_library_are_refused(modules):
    one, other = open_device(0, "pycuda"), open_device(0, "cuda-python")
    for use in (
        lambda: one.begin_capture(one.make_stream()),
        lambda: one.end_capture(one.make_stream()),
        lambda: one.launch(object(), one.make_stream()),
    ):
        with pytest.raises(BackendError, match=r"pycuda has no CUDA graphs\n  next: pip install 'ufovit-edge\[cuda\]'"):
            use()
    with pytest.raises(BackendError, match="its own graphs only\n  found: object"):
        other.launch(object(), other.make_stream())
    with pytest.raises(BackendError, match="its own streams only\n  found: CudaPythonStream"):
        one.allocate(N).to_device(N, other.make_stream())


def test_a_library_without_graphs_says_so(modules, monkeypatch):
    monkeypatch.delattr(FakeRuntime, "cudaGraphLaunch")
    assert open_device(0, "cuda-python").can_capture is False


# Which library -----------------------------------------------------------------------------------------------------------


def absent(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_pycuda_comes_first(modules, monkeypatch):
    assert open_device().library == "pycuda"
    absent(monkeypatch, "pycuda", "pycuda.driver")
    assert open_device().library == "cuda-python"


def test_the_old_name_of_cuda_python(modules, monkeypatch):
    absent(monkeypatch, "cuda.bindings", "cuda.bindings.runtime")
    monkeypatch.setitem(sys.modules, "cuda.cudart", modules.runtime)
    memory = open_device(0, "cuda-python")
    memory.make_stream().destroy()


@pytest.mark.parametrize(
    ("library", "names", "extra"),
    [
        ("pycuda", ("pycuda", "pycuda.driver"), r"pycuda is not installed\n  next: pip install 'ufovit-edge\[pycuda\]'"),
        (
            "cuda-python",
            ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"),
            r"cuda-python is not installed\n  next: pip install 'ufovit-edge\[cuda\]'",
        ),
    ],
)
def test_a_library_that_is_not_installed(modules, monkeypatch, library, names, extra):
    absent(monkeypatch, *names)
    with pytest.raises(MissingError, match=extra):
        open_device(0, library)


def test_neither_library(modules, monkeypatch):
    absent(monkeypatch, "pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart")
    with pytest.raises(MissingError) as caught:
        open_device()
    assert str(caught.value).splitlines() == [
        "no CUDA device can be used",
        "  found: ",
        "  pycuda: pycuda is not installed",
        "    next: pip install 'ufovit-edge[pycuda]'",
        "  cuda-python: cuda-python is not installed",
        "    next: pip install 'ufovit-edge[cuda]'",
    ]


class Broken:
    """A finder that raises for one module."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def find_spec(self, name, _path=None, _target=None):
        if name == self.name:
            raise self.error


@pytest.mark.parametrize(
    ("library", "module", "error", "words"),
    [
        (
            "pycuda",
            "pycuda.driver",
            ImportError("libcuda.so.1: cannot open shared object file"),
            "no NVIDIA driver, or another CUDA than its own\n  found: libcuda.so.1",
        ),
        (
            "pycuda",
            "pycuda.driver",
            ModuleNotFoundError("No module named 'pytools'", name="pytools"),
            "pycuda does not load\n  found: No module named 'pytools'",
        ),
        (
            "cuda-python",
            "cuda.bindings.runtime",
            ModuleNotFoundError("No module named 'cuda.pathfinder'", name="cuda.pathfinder"),
            "cuda-python does not load\n  found: No module named 'cuda.pathfinder'",
        ),
        (
            "cuda-python",
            "cuda.bindings.runtime",
            ImportError("undefined symbol: x"),
            "cuda-python does not load\n  found: undefined",
        ),
    ],
)
def test_a_library_that_does_not_load(modules, monkeypatch, library, module, error, words):
    monkeypatch.delitem(sys.modules, module)
    for package in ("cuda", "cuda.bindings"):
        monkeypatch.setattr(sys.modules[package], "__path__", [], raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(module, error), *sys.meta_path])
    with pytest.raises(MissingError, match=words):
        open_device(0, library)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_machine_without_a_device(modules, gpu, library):
    gpu.devices = 0
    with pytest.raises(MissingError, match="CUDA finds no device\n  found: "):
        open_device(0, library)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_device_that_is_not_there(modules, gpu, library):
    gpu.devices = 2
    open_device(1, library)
    with pytest.raises(MissingError, match="no such CUDA device\n  found: 2\n  allowed: 0 to 1"):
        open_device(2, library)


def test_a_driver_older_than_the_library(modules):
    modules.runtime.present = False
    modules.runtime.driver = 12060
    with pytest.raises(MissingError) as caught:
        open_device(0, "cuda-python")
    assert "a driver for CUDA 12.6, cuda-python for CUDA 13.5" in str(caught.value)
    assert "next: pip install 'cuda-bindings==12.*'" in str(caught.value)
    modules.runtime.driver = 0
    with pytest.raises(MissingError, match="CUDA finds no NVIDIA driver"):
        open_device(0, "cuda-python")


def test_no_driver_up_to_cuda_python_12_6(modules):
    modules.runtime.cudaGetDeviceCount = lambda: (_ for _ in ()).throw(RuntimeError("Failed to dlopen libcuda.so.1"))
    with pytest.raises(MissingError, match="CUDA finds no NVIDIA driver\n  found: Failed to dlopen"):
        open_device(0, "cuda-python")


@pytest.mark.parametrize("number", [-1, -7])
def test_a_negative_number_is_refused(modules, number):
    with pytest.raises(InputError, match="allowed: 0 or more"):
        open_device(number)


def test_an_unknown_library_is_refused(modules):
    with pytest.raises(InputError, match="found: cupy\n  allowed: pycuda, cuda-python"):
        open_device(0, "cupy")


# Imports -----------------------------------------------------------------------------------------------------------------


def test_importing_loads_no_library():
    modules = ("device_memory", "open_device", "pycuda_memory", "cuda_python_memory", "runner", "trt_runner", "trt_io")
    heavy = {"pycuda", "cuda", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "torch"}
    imports = ", ".join(f"edge.runtime.{module}" for module in modules)
    code = f"import sys, {imports}; print(*sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


def test_the_primary_context_is_released_when_nothing_needs_it(modules, gpu):
    memory = open_device(0, "pycuda")
    stream = memory.make_stream()
    del memory
    gc.collect()
    assert modules.pycuda.retained == 1
    stream.synchronize()
    stream.destroy()
    del stream
    gc.collect()
    assert modules.pycuda.retained == 0
    assert "cuCtxDetach" not in gpu.calls


def test_pycudas_own_contexts_are_left_alone(modules):
    assert open_device(0, "pycuda").library == "pycuda", "importing pycuda.autoinit or autoprimaryctx would fail here"


# Real names --------------------------------------------------------------------------------------------------------------


def source_of(module):
    return Path(module.__file__).read_text(encoding="utf-8")


def cuda_python_source():
    """Of both modules that call it."""
    return source_of(cuda_python_memory) + source_of(cuda_python_timer)


def runtime_names(source):
    """Names of cuda-python in a source: attributes and strings that start with `cuda` and a capital."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
        if isinstance(name, str) and re.fullmatch(r"cuda[A-Z]\w+", name):
            names.add(name)
    return names


ENUMERATIONS = {
    r"cudaDevAttr\w+": "cudaDeviceAttr",
    r"cudaMemcpy(Host|Device)To\w+": "cudaMemcpyKind",
    r"cudaStreamCaptureMode\w+": "cudaStreamCaptureMode",
    r"cudaError[A-Z]\w+|cudaSuccess": "cudaError_t",
}


def missing_runtime_names(runtime, names):
    def holder(name):
        return next((getattr(runtime, e) for p, e in ENUMERATIONS.items() if re.fullmatch(p, name)), runtime)

    return sorted(n for n in names if not hasattr(holder(n), n))


def calls_made(source):
    """CUDA function -> number of arguments, of `_call(..., "name", ...)` and `runtime.name(...)`."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        strings = [i for i, a in enumerate(node.args) if isinstance(a, ast.Constant) and str(a.value).startswith("cuda")]
        if getattr(node.func, "attr", getattr(node.func, "id", "")) == "_call" and strings:
            found[node.args[strings[0]].value] = len(node.args) - strings[0] - 1
        elif isinstance(node.func, ast.Attribute) and re.fullmatch(r"cuda[A-Z]\w+", node.func.attr):
            found[node.func.attr] = len(node.args)
    return found


def wrong_counts(runtime, calls):
    """Functions that take another number of arguments, by the first line of their documentation."""
    wrong = []
    for name, count in calls.items():
        inner = re.match(rf"{name}\((.*?)\)", (getattr(runtime, name).__doc__ or "").strip())
        if inner is None or len([a for a in inner[1].split(",") if a.strip()]) != count:
            wrong.append(name)
    return sorted(wrong)


def real_runtime():
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return __import__(name, fromlist=["cudaMalloc"])
        except ImportError:
            continue
    return pytest.skip("cuda-python is not installed: pip install 'ufovit-edge[cuda]'")


def test_every_name_is_one_of_cuda_python():
    runtime, source = real_runtime(), cuda_python_source()
    names, calls = runtime_names(source), calls_made(source)
    assert len(names) > 30
    assert len(calls) > 15
    assert missing_runtime_names(runtime, names) == []
    assert wrong_counts(runtime, calls) == []
    assert missing_runtime_names(runtime, {"cudaMallok", "cudaDevAttrIntegral", "cudaMemcpyHostToHere"}) == [
        "cudaDevAttrIntegral",
        "cudaMallok",
        "cudaMemcpyHostToHere",
    ], "control"
    assert wrong_counts(runtime, {"cudaMalloc": 2, "cudaFree": 1}) == ["cudaMalloc"], "control"


def test_handles_of_cuda_python_are_numbers():
    assert int(real_runtime().cudaStream_t(5)) == 5


def test_arguments_of_these_types_are_taken():
    """Without a device every call answers an error; an argument of a wrong type would raise."""
    runtime = real_runtime()
    assert hasattr(runtime.cudaDeviceProp, "totalGlobalMem")
    assert isinstance(runtime.cudaDeviceProp().name, bytes)
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    calls = {
        "cudaGetDeviceProperties": (0,),
        "cudaDeviceGetAttribute": (runtime.cudaDeviceAttr.cudaDevAttrIntegrated, 0),
        "cudaSetDevice": (0,),
        "cudaStreamCreateWithFlags": (runtime.cudaStreamNonBlocking,),
        "cudaHostAlloc": (4096, runtime.cudaHostAllocMapped),
        "cudaHostGetDevicePointer": (4096, 0),
        "cudaMalloc": (4096,),
        "cudaMemcpyAsync": (4096, 8192, 64, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, 5),
        "cudaStreamSynchronize": (5,),
        "cudaStreamBeginCapture": (5, mode),
        "cudaStreamEndCapture": (5,),
        "cudaGraphInstantiate": (runtime.cudaGraph_t(5), 0),
        "cudaGraphLaunch": (runtime.cudaGraphExec_t(5), 5),
        "cudaGetDevice": (),
        "cudaEventCreate": (),
        "cudaEventRecord": (runtime.cudaEvent_t(5), 5),
        "cudaEventElapsedTime": (runtime.cudaEvent_t(5), runtime.cudaEvent_t(6)),
        "cudaEventDestroy": (runtime.cudaEvent_t(5),),
        "cudaMemGetInfo": (),
    }
    try:
        if runtime.cudaGetDeviceCount()[1]:
            pytest.skip("there is a device: it would work on addresses that are none")
    except RuntimeError:
        pytest.skip("this cuda-python loads the driver at every call")
    for name, arguments in calls.items():
        error, *rest = getattr(runtime, name)(*arguments)
        assert isinstance(error, runtime.cudaError_t), name
        assert len(rest) <= (2 if name == "cudaMemGetInfo" else 1), name
    with pytest.raises(TypeError):
        runtime.cudaMemcpyAsync(4096, 8192, 64, 1, "stream")
    assert {n: len(a) for n, a in calls.items()}.items() <= calls_made(cuda_python_source()).items()


def test_cuda_python_without_a_device_says_what_is_missing():
    runtime = real_runtime()
    try:
        if runtime.cudaGetDeviceCount()[1]:
            pytest.skip("there is a device: tests/gpu holds this")
    except RuntimeError:
        pass
    with pytest.raises(MissingError, match="CUDA finds no"):
        open_device(0, "cuda-python")


def test_every_name_is_one_of_the_fake_runtime(modules):
    source = cuda_python_source()
    assert missing_runtime_names(modules.runtime, runtime_names(source)) == []
    for name, count in calls_made(source).items():
        assert len(inspect.signature(getattr(modules.runtime, name)).parameters) == count, name


PYCUDA_HOLDERS = {
    "opened": "Device",
    "_context": "Context",
    "stream": "Stream",
    "native": "Stream",
    "_first": "Event",
    "_second": "Event",
    "_pinned": "HostPointer PagelockedHostAllocation",
    "pinned": "HostPointer PagelockedHostAllocation",
    "device": "DeviceAllocation",
}
OWN = {"handle", "native"}  # of a Stream of ours, which some variables of these names are


def pycuda_names(source):
    """(class or "", name) of pycuda.driver in a source, by the names of variables."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        holder = getattr(node.value, "attr", getattr(node.value, "id", ""))
        outer = getattr(getattr(node.value, "value", None), "attr", getattr(getattr(node.value, "value", None), "id", ""))
        if holder in ("driver", "_driver"):
            found.add(("", node.attr))
        elif outer in ("driver", "_driver"):
            found.add((holder, node.attr))
        elif holder in PYCUDA_HOLDERS and node.attr not in OWN:
            found.add((PYCUDA_HOLDERS[holder], node.attr))
    return found | {("Stream", "handle")}


def named_in_pycuda(text):
    """(class or "") -> names that pycuda's C++ wrapper gives to Python."""
    found = {"": set(re.findall(r'py::def\("(\w+)"', text)) | set(re.findall(r"DEF_SIMPLE_FUNCTION\((\w+)\)", text))}
    found[""] |= set(re.findall(r"DECLARE_EXC\((\w+),", text))
    starts = [(m.start(), m[1]) for m in re.finditer(r'py::(?:class_|enum_)<[^"]*?\(\s*"(\w+)"', text)]
    for (start, name), (end, _) in zip(starts, [*starts[1:], (len(text), "")], strict=True):
        block = text[start:end]
        found[""].add(name)
        found[name] = set(re.findall(r'(?:\.def|add_property|\.value|\.attr)\("(\w+)"', block))
        found[name] |= set(re.findall(r"DEF_SIMPLE_METHOD\((\w+)\)", block))
    return found


def missing_pycuda_names(there, names):
    return sorted(f"{c}.{n}" for c, n in names if not any(n in there.get(part, ()) for part in c.split(" ")))


def test_every_name_is_one_of_pycuda():
    """Against the C++ of the wrapper, because pycuda is source only and loads only where there is a driver."""
    folder = os.environ.get("PYCUDA_SOURCE")
    if not folder:
        pytest.skip("PYCUDA_SOURCE is not set: unpack `pip download --no-deps --no-binary :all: pycuda` and name its folder")
    there = named_in_pycuda((Path(folder) / "src" / "wrapper" / "wrap_cudadrv.cpp").read_text(encoding="utf-8"))
    assert len(there) > 40
    names = pycuda_names(source_of(pycuda_memory))
    assert len(names) > 20
    assert missing_pycuda_names(there, names) == []
    wrong = pycuda_names("opened.retain_context()\ndriver.mem_alok(1)\ndriver.host_alloc_flags.MAPPED\nself._context.pusch()")
    assert missing_pycuda_names(there, wrong) == [
        ".mem_alok",
        "Context.pusch",
        "Device.retain_context",
        "host_alloc_flags.MAPPED",
    ]
    assert "autoinit" not in re.sub(r'""".*?"""', "", source_of(pycuda_memory), flags=re.DOTALL)
