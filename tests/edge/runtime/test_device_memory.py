"""edge.runtime.device_memory on fakes of pycuda and cuda-python over one fake GPU, and its names against the real libraries.

The oracle is the fake GPU's own memory, looked at from outside. It is strict: a call in a thread without a context, a copy from
memory that is not page-locked, the default stream, a freed address, a thread that ends with a context on its stack are
faults. What the fakes take and answer follows pycuda's src/cpp/cuda.hpp and the documentation of cuda-bindings.
"""

import itertools
import threading

import numpy as np
import pytest
from cuda_fakes import LIBRARIES, POISON, CudaErrorT, N, pattern

from calib.errors import BackendError
from edge.runtime.open_device import open_device


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
        with pytest.raises(BackendError, match=f"exceeds the buffer\n  found: {nbytes} of 1000 bytes"):
            buffer.to_device(nbytes, stream)
    other.destroy()
    for use in (lambda: buffer.to_device(N, other), other.synchronize):
        with pytest.raises(BackendError):
            use()
    buffer.free()
    assert buffer.host.nbytes == 0
    for use in (lambda: buffer.to_device(N, stream), lambda: buffer.to_host(1, stream)):
        with pytest.raises(BackendError, match="exceeds the buffer"):
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
