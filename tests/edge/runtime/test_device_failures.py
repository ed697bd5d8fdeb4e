"""edge.runtime.device_memory: calls that fail, libraries and devices that are missing, contexts that are released."""

import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_fakes import LIBRARIES, POISON, FakeRuntime, N, cuda_python_source, pattern

from calib.errors import BackendError, InputError, MissingError
from edge.runtime.open_device import open_device

ROOT = Path(__file__).resolve().parents[3]


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
        "    pycuda: pycuda is not installed",
        "      next: pip install 'ufovit-edge[pycuda]'",
        "    cuda-python: cuda-python is not installed",
        "      next: pip install 'ufovit-edge[cuda]'",
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
