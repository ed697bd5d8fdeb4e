"""edge.runtime.trt_runner: engines, batches and devices that fail; closing, clones and threads."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from trt_runner_fakes import CLASSES, FakeBuffer, FakeStream, calls, draw, in_thread, plan, same

from calib.errors import BackendError, InputError, MissingError
from edge.runtime.trt_runner import TrtRunner
from engines.trt import api

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


@pytest.mark.parametrize("answer", [(4, CLASSES, -1), (3, CLASSES), (), (-1, CLASSES), (4, 0)])
def test_an_output_that_is_not_a_row_per_image_is_refused(library, memory, answer):
    library.faults["get_tensor_shape"] = (1, answer)
    with pytest.raises(BackendError, match="get_tensor_shape returned a shape"):
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
        ({"names": ["a", "b", "c"], "modes": ["INPUT", "OUTPUT", "NONE"]}, "one input, and outputs"),
        ({"names": ["a"], "modes": ["INPUT"]}, "found: inputs: a; outputs: none"),
        ({"names": ["b"], "modes": ["OUTPUT"]}, "inputs: none; outputs: b"),
        ({"dtypes": ["HALF", "FLOAT"]}, "type that cannot be read\n  where: images\n  found: DataType.HALF"),
        ({"dtypes": ["FLOAT", "HALF"]}, "type that cannot be read\n  where: logits"),
        ({"formats": ["CHW32", "LINEAR"]}, "not in row order\n  where: images\n  found: TensorFormat.CHW32"),
        ({"inner": [(3, 4, 4), (3, 4, 4), (3, 8, 8)]}, "has a dynamic dimension besides the batch"),
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
