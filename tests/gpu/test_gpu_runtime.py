"""edge.runtime on a real device: memory, copies, shared memory, CUDA graphs, threads, and an engine of each TensorRT at hand.

The oracles: torch, which looks at the same device addresses and the same device; and for the engine, integer arithmetic, which
FP32 holds exactly, so that every answer is equal to the bit. Run with `pytest tests/gpu -m gpu`.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from calib.errors import InputError, MissingError
from edge.runtime.open_build import open_runner
from edge.runtime.open_device import open_device
from edge.runtime.ort_runner import OrtRunner
from edge.runtime.trt_runner import TrtRunner
from engines.trt import api

pytestmark = pytest.mark.gpu
N = 1 << 20
SIZE, CLASSES, LARGEST = 8, 10, 4
WEIGHTS = np.random.default_rng(0).integers(-4, 5, (3 * SIZE * SIZE, CLASSES))


@pytest.fixture(params=["pycuda", "cuda-python"])
def library(request):
    try:
        open_device(0, request.param)
    except MissingError as missing:
        pytest.skip(f"{missing}")
    return request.param


@pytest.fixture(params=[False, True], ids=["copied", "shared"])
def memory(library, request):
    return open_device(0, library, zero_copy=request.param)


class OnDevice:
    """Bytes at a device address, for torch."""

    def __init__(self, pointer, nbytes):
        self.__cuda_array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (pointer, False), "version": 3}


def look(buffer):
    """A torch tensor of the device's side of a buffer, without a copy."""
    return torch.as_tensor(OnDevice(buffer.device_pointer, buffer.host.nbytes), device="cuda")


def pattern(seed):
    return np.random.default_rng(seed).integers(0, 256, N, dtype=np.uint8)


# Memory ------------------------------------------------------------------------------------------------------------------


def test_what_the_device_says_of_itself(memory):
    there = torch.cuda.get_device_properties(0)
    assert memory.name == there.name
    assert memory.compute_capability == f"{there.major}.{there.minor}"
    assert memory.total_bytes == there.total_memory
    assert memory.integrated == bool(there.is_integrated)


def test_bytes_go_there_and_back(memory):
    stream, buffer = memory.make_stream(), memory.allocate(N)
    assert stream.handle not in (0, 1, 2), "the default streams"
    assert buffer.device_pointer % 256 == 0
    buffer.host[:] = pattern(1)
    buffer.to_device(N, stream)
    stream.synchronize()
    there = look(buffer)
    np.testing.assert_array_equal(there.cpu().numpy(), pattern(1))
    there.copy_(torch.from_numpy(pattern(2)))
    torch.cuda.synchronize()
    buffer.to_host(N // 2, stream)
    stream.synchronize()
    np.testing.assert_array_equal(buffer.host[: N // 2], pattern(2)[: N // 2])
    np.testing.assert_array_equal(buffer.host[N // 2 :], pattern(2 if buffer.mapped else 1)[N // 2 :])
    buffer.free()
    stream.destroy()


def test_memory_is_shared_by_default_where_the_gpu_has_none_of_its_own(library):
    memory = open_device(0, library)
    buffer = memory.allocate(N)
    assert buffer.mapped == memory.integrated
    buffer.free()


def test_freed_memory_is_free(library):
    memory = open_device(0, library)
    memory.allocate(N).free()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(8):
        memory.allocate(256 * N).free()
    assert torch.cuda.mem_get_info()[0] >= before - 256 * N


def test_threads_share_a_device(memory):
    def work(seed):
        stream, buffer = memory.make_stream(), memory.allocate(N)
        right = True
        for step in range(5):
            expected = pattern(10 * seed + step)
            buffer.host[:] = expected
            buffer.to_device(N, stream)
            stream.synchronize()
            right = right and bool((look(buffer).cpu().numpy() == expected).all())
        buffer.free()
        stream.destroy()
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_a_graph_copies_what_is_there_when_it_is_launched(library):
    memory = open_device(0, library, zero_copy=False)
    if not memory.can_capture:
        pytest.skip(f"{library} has no CUDA graphs")
    stream, buffer = memory.make_stream(), memory.allocate(N)
    look(buffer).zero_()
    torch.cuda.synchronize()
    buffer.host[:] = pattern(3)
    memory.begin_capture(stream)
    buffer.to_device(N, stream)
    graph = memory.end_capture(stream)
    stream.synchronize()
    assert not look(buffer).any(), "recorded, not run"
    for seed in (4, 5):
        buffer.host[:] = pattern(seed)
        memory.launch(graph, stream)
        stream.synchronize()
        np.testing.assert_array_equal(look(buffer).cpu().numpy(), pattern(seed))
    graph.destroy()
    buffer.free()
    stream.destroy()


def test_a_timer_agrees_with_torchs(library):
    """The same two moments on one stream, by two pairs of events; the work between them takes some milliseconds."""
    memory = open_device(0, library)
    stream, timer = memory.make_stream(), memory.make_timer()
    torchs = torch.cuda.ExternalStream(stream.handle)
    matrix = torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    found = []
    for products in (20, 80):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(torchs):
            matrix @ matrix  # what the first product loads is in nobody's time
            timer.start(stream)
            begin.record()
            for _ in range(products):
                matrix @ matrix
            end.record()
            timer.stop(stream)
        stream.synchronize()
        found.append(timer.elapsed_ms())
        assert found[-1] == pytest.approx(begin.elapsed_time(end), rel=0.05, abs=0.1)
    assert found[1] > 2 * found[0], "control: more work"
    timer.destroy()
    stream.destroy()


def test_memory_in_use_is_what_torch_sees(library):
    memory = open_device(0, library, zero_copy=False)
    free, total = torch.cuda.mem_get_info()
    assert memory.bytes_in_use() == pytest.approx(total - free, abs=64 * N)
    before = memory.bytes_in_use()
    buffer = memory.allocate(256 * N)
    assert memory.bytes_in_use() >= before + 256 * N
    buffer.free()


def test_torch_goes_on_working_beside_it(library):
    """Both use the device's primary context."""
    before = torch.arange(1000, device="cuda")
    memory = open_device(0, library)
    buffer = memory.allocate(N)
    assert int(before.sum()) == 499500
    buffer.free()
    del memory, buffer
    assert int(torch.arange(1000, device="cuda").sum()) == 499500


# Engines -----------------------------------------------------------------------------------------------------------------


def graph():
    """logits = relu(image) @ WEIGHTS, batch free."""
    flat = helper.make_node("Flatten", ["images"], ["flat"])
    relu = helper.make_node("Relu", ["flat"], ["positive"])
    product = helper.make_node("MatMul", ["positive", "weights"], ["logits"])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", ["batch", 3, SIZE, SIZE]), ("logits", ["batch", CLASSES]))
    ]
    weights = numpy_helper.from_array(WEIGHTS.astype(np.float32), "weights")
    made = helper.make_graph([flat, relu, product], "tiny", ends[:1], ends[1:], [weights])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def build(module, compute_capability):
    """The serialized engine, batches 1 to LARGEST. Skips the test where this TensorRT has no kernels for the device."""
    logger = module.Logger(module.Logger.ERROR)
    builder = module.Builder(logger)
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = module.OnnxParser(network, logger)
    assert parser.parse(graph())
    config = builder.create_builder_config()
    if hasattr(module.BuilderFlag, "TF32"):
        config.clear_flag(module.BuilderFlag.TF32)
    if hasattr(config, "set_compute_capability"):
        member = getattr(module.ComputeCapability, f"SM{compute_capability.replace('.', '')}", None)
        if member is None:
            pytest.skip(f"this TensorRT has no kernels for compute capability {compute_capability}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(member, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((b, 3, SIZE, SIZE) for b in (1, 2, LARGEST)))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture(scope="module", params=["trt", "rtx"])
def engine(request):
    """(flavour, bytes)"""
    try:
        module = api.load(request.param)
    except MissingError as missing:
        pytest.skip(f"{missing}")
    return request.param, build(module, "{}.{}".format(*torch.cuda.get_device_capability(0)))


def draw(count, seed):
    return np.random.default_rng(seed).integers(-9, 10, (count, 3, SIZE, SIZE)).astype(np.float32)


def expected(images):
    return (np.maximum(images.astype(np.int64), 0).reshape(len(images), -1) @ WEIGHTS).astype(np.float32)


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
def test_an_engine_answers_the_same_with_and_without_graphs(engine, memory, graphs):
    with TrtRunner(*engine, memory, graphs=graphs) as runner:
        assert (runner.image_shape, runner.batches) == ((3, SIZE, SIZE), (1, 2, LARGEST))
        for seed, count in enumerate([1, 1, 1, 1, 4, 4, 4, 2, 2, 2, 2, 3, 11]):
            images = draw(count, seed)
            np.testing.assert_array_equal(runner(images)[0], expected(images))
            if graphs and memory.can_capture and seed in (3, 10):
                assert runner.uses_graph, runner.notes
        if not graphs:
            assert not runner.uses_graph


def test_an_answer_is_the_callers_own(engine, memory):
    with TrtRunner(*engine, memory) as runner:
        (first,) = runner(draw(4, 1))
        runner(draw(4, 2))
        np.testing.assert_array_equal(first, expected(draw(4, 1)))


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
def test_the_engine_alone_is_timed_and_goes_on(engine, memory, graphs):
    with TrtRunner(*engine, memory, graphs=graphs) as runner:
        for seed in range(4):
            runner(draw(4, seed))
        started = time.perf_counter()
        times = runner.compute_times_ms(50)
        wall_ms = 1e3 * (time.perf_counter() - started)
        assert len(times) == 50
        assert min(times) > 0
        assert sum(times) < wall_ms
        np.testing.assert_array_equal(runner(draw(4, 9))[0], expected(draw(4, 9)))
        runner(draw(1, 1))
        assert len(runner.compute_times_ms(5)) == 5


def test_a_build_folder_runs_here():
    """UFOVIT_BUILD names a build for this GPU: the engine itself is opened and agrees with the FP32 graph about its image."""
    folder = os.environ.get("UFOVIT_BUILD")
    if not folder:
        pytest.skip("UFOVIT_BUILD is not set: name a build folder for this GPU")
    opened = open_runner(Path(folder))
    assert opened.name == "trt", opened.notes
    with opened.runner:
        images = np.repeat(opened.golden.tensor[None], opened.batch.max, axis=0)
        first, *others = opened.runner(images)[0]
        np.testing.assert_allclose(others, [first] * len(others), rtol=1e-2, atol=1e-2)
        np.testing.assert_array_equal(opened.runner(images)[0][0], first)
    reference = Path(folder) / opened.manifest.onnx.file
    if reference.exists():
        assert OrtRunner(reference)(images[:1])[0].argmax() == first.argmax()


def test_threads_with_clones(engine, memory):
    with TrtRunner(*engine, memory) as original:

        def work(seed):
            with original.clone() as runner:
                return all(
                    (runner(draw(1 + seed % 4, 100 * seed + step)) == expected(draw(1 + seed % 4, 100 * seed + step))).all()
                    for step in range(50)
                )

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))
            assert isinstance(pool.submit(lambda: original(draw(1, 0))).exception(), InputError)


def test_bytes_that_are_no_engine(engine, memory):
    flavour, data = engine
    with pytest.raises(InputError, match="does not load the engine"):
        TrtRunner(flavour, data[: len(data) // 2], memory)


def test_the_comparison_sees_damage(engine, memory):
    with TrtRunner(*engine, memory) as runner:
        images = draw(4, 3)
        for other in (-images, images[::-1], images + 1):
            assert not (runner(other) == expected(images)).all()
