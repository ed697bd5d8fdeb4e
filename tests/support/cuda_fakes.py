"""A fake GPU that pycuda and cuda-python reach, and what they are called with."""

import ctypes
import itertools
import threading
import types
from enum import IntEnum
from pathlib import Path

import numpy as np

from edge.runtime import cuda_python_memory

POISON = 0xFF
N = 1000


class CudaError(Exception):
    """What the fake GPU answers instead of success; each fake library says it in its own way."""

    def __init__(self, name):
        super().__init__(name)
        self.name = name


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


LIBRARIES = ("pycuda", "cuda-python")


def pattern(nbytes, seed):
    return np.random.default_rng(seed).integers(0, 255, nbytes, dtype=np.uint8)  # never POISON


def source_of(module):
    return Path(module.__file__).read_text(encoding="utf-8")


def cuda_python_source():
    return source_of(cuda_python_memory)
