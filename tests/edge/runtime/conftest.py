"""A fake GPU for both CUDA libraries, and a fake TensorRT that runs on fake memory."""

import sys
import types

import pytest
from cuda_fakes import LIBRARIES, FakeRuntime, Gpu, fake_pycuda
from trt_runner_fakes import FakeMemory, FakeTensorRT

from edge.runtime.open_device import open_device


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
