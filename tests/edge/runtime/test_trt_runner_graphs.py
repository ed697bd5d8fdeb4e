"""edge.runtime.trt_runner: captured CUDA graphs and the time of an engine."""

import pytest
from trt_runner_fakes import FakeBuffer, calls, draw, in_thread, plan, same

from calib.errors import BackendError, InputError
from edge.runtime.trt_runner import TrtRunner


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
