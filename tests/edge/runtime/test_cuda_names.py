"""Every name and type of the CUDA libraries that the code and its fakes use exists in the real ones."""

import ast
import inspect
import os
import re
from pathlib import Path

import pytest
from cuda_fakes import cuda_python_source, source_of

from calib.errors import MissingError
from edge.runtime import pycuda_memory
from edge.runtime.open_device import open_device


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
    """CUDA function -> number of arguments, of `call("name", ...)` and `runtime.name(...)`."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        strings = [i for i, a in enumerate(node.args) if isinstance(a, ast.Constant) and str(a.value).startswith("cuda")]
        if getattr(node.func, "attr", getattr(node.func, "id", "")) == "call" and strings:
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
