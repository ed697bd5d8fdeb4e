"""The fakes of edge.runtime.trt_runner notice planted faults and have the real library's names."""

import ast
import gc
import inspect
import itertools
import weakref
from pathlib import Path

import numpy as np
import pytest
from trt_runner_fakes import CLASSES, FakeBuffer, FakeContext, FakeEngine, FakeStream, FakeTensorRT, Fault, draw, plan, same

from calib.errors import InputError, MissingError
from edge.runtime import trt_runner
from edge.runtime.ort_runner import OrtRunner
from edge.runtime.runner import FakeRunner, Runner
from edge.runtime.trt_runner import TrtRunner
from engines.trt import api


@pytest.mark.parametrize("missing", ["to_device", "to_host"])
def test_a_missing_copy_is_seen(library, memory, monkeypatch, missing):
    monkeypatch.setattr(FakeBuffer, missing, lambda *_: None)
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        assert not same(runner(draw(3)), draw(3))


def test_a_missing_wait_is_seen(library, memory, monkeypatch):
    wait = FakeStream.synchronize
    monkeypatch.setattr(FakeStream, "synchronize", lambda _stream: None)
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        assert not same(runner(draw(3)), draw(3))
        with memory.current():
            wait(next(iter(memory.streams.values())))


def test_copies_in_another_order_are_seen(library, memory, monkeypatch):
    def early(self, nbytes, stream):
        self._copy("to_host", self.host, self.device, nbytes, stream)
        stream.queue.insert(0, stream.queue.pop())

    monkeypatch.setattr(FakeBuffer, "to_host", early)
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        assert not same(runner(draw(3)), draw(3))


def test_a_stale_address_is_seen(library, memory):
    with TrtRunner("trt", plan(), memory, graphs=False) as runner:
        with memory.current():
            elsewhere = memory.allocate(4 * 4 * CLASSES)
        library.contexts[0]().addresses["logits"] = elsewhere.device_pointer
        assert not same(runner(draw(3)), draw(3))
        with memory.current():
            elsewhere.free()
        with pytest.raises(KeyError):
            runner(draw(3))


def test_a_graph_that_outlives_its_shape_is_seen(library, memory, monkeypatch):
    with TrtRunner("trt", plan(), memory) as runner:
        for seed in range(3):
            runner(draw(3, seed))
        kept = runner._graph
        monkeypatch.setattr(kept, "destroy", lambda: None)
        runner(draw(2))
        runner._graph = kept
        with pytest.raises(Fault, match="has changed since"):
            runner(draw(2))
        runner._graph = None


def test_a_capture_without_a_plain_run_before_is_seen(library, memory):
    with TrtRunner("trt", plan(), memory) as runner:
        with memory.current():
            runner._set_batch(2)
        runner._warm = True
        assert same(runner(draw(2)), draw(2))
        assert "the capture was spoilt" in runner.notes[0]


def test_a_device_that_is_not_current_is_seen(memory):
    with pytest.raises(Fault, match="not current"):
        memory.make_stream()


HOLDERS = {"engine": "ICudaEngine", "context": "IExecutionContext", "_context": "IExecutionContext", "config": "IRuntimeConfig"}
RTX_ONLY = {
    "ICudaEngine.create_runtime_config",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
}


def names_used(*sources):
    """Dotted names of TensorRT's module in a source: what is asked of variables named as HOLDERS, and `module.A.B`."""
    found = set()
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(s)) for s in sources):
        if not isinstance(node, ast.Attribute):
            continue
        holder = getattr(node.value, "attr", getattr(node.value, "id", ""))
        if holder in HOLDERS:
            found.add(f"{HOLDERS[holder]}.{node.attr}")
        elif isinstance(node.value, ast.Attribute) and getattr(node.value.value, "id", "") == "module":
            found.add(f"{node.value.attr}.{node.attr}")
    return found


def missing_names(module, names):
    return sorted(n for n in names if not hasattr(getattr(module, n.partition(".")[0], None), n.partition(".")[2]))


def own_names():
    from edge.runtime import trt_io

    return names_used(*(Path(m.__file__).read_text(encoding="utf-8") for m in (trt_runner, trt_io)))


def test_names_are_found_in_the_source():
    names = own_names()
    assert names > RTX_ONLY
    assert {"IExecutionContext.execute_async_v3", "ICudaEngine.get_tensor_profile_shape", "TensorIOMode.INPUT"} < names
    assert len(names) > 20


@pytest.mark.parametrize("flavour", ["rtx", "trt"])
def test_every_name_is_one_of_the_real_library(flavour):
    try:
        module = api.load(flavour)
    except MissingError as missing:
        pytest.skip(f"{missing}")
    if isinstance(module, FakeTensorRT):
        pytest.fail("the fake is still there")
    names = own_names() if flavour == "rtx" else own_names() - RTX_ONLY
    assert missing_names(module, names) == []
    wrong = names_used("context.execute_async_v4(1)\nmodule.DataType.FLOAT32")
    assert missing_names(module, wrong) == ["DataType.FLOAT32", "IExecutionContext.execute_async_v4"], "control"


def test_every_name_is_one_of_the_fake(library, rtx_library, memory):
    """What the code asks of TensorRT, the fake answers, and nothing more is asked of it in these tests than that."""
    for fake, real in ((FakeEngine, "ICudaEngine"), (FakeContext, "IExecutionContext")):
        own = {n for n, _ in inspect.getmembers(fake, inspect.isfunction) if not n.startswith("_")} - {"answer"}
        assert own <= {n.partition(".")[2] for n in own_names() if n.startswith(real)}


def test_the_shipped_fake_answers_by_where_an_image_is_bright():
    with FakeRunner((3, 10, 6), 5) as runner:
        assert Runner in type(runner).__mro__
        images = np.zeros((5, 3, 10, 6), np.float32)
        for c in range(5):
            images[c, :, 2 * c : 2 * c + 2] = 1
        (logits,) = runner(images)
        assert (logits.dtype, logits.shape) == (np.float32, (5, 5))
        np.testing.assert_array_equal(logits, np.eye(5, dtype=np.float32))
        runner(images[:2])
        assert runner.batches == [5, 2]
        with pytest.raises(InputError, match="not float32"):
            runner(images.astype(np.float64))
        with pytest.raises(InputError, match="do not have the shape of the network's input"):
            runner(images[:, :, :9])
        assert not runner.closed
    assert runner.closed
    with pytest.raises(InputError, match="closed"):
        runner(images)
    with pytest.raises(InputError, match="fewer rows than classes"):
        FakeRunner((3, 4, 4), 5)


def test_the_shipped_fake_answers_what_it_is_given():
    answer = np.ones((2, 3), np.float32)
    runner = FakeRunner((3, 4, 4), 3, lambda images: (answer[: len(images)],))
    (found,) = runner(np.zeros((2, 3, 4, 4), np.float32))
    found[:] = 0
    assert (answer == 1).all(), "a copy"


def test_onnx_runtime_is_a_runner_that_closes(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Flatten", ["x"], ["y"])
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["b", 3, 4, 4]), ("y", ["b", 48]))]
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:])
    path = tmp_path / "flat.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    images = draw(2)
    with OrtRunner(path) as runner:
        assert Runner in type(runner).__mro__
        np.testing.assert_array_equal(runner(images)[0], images.reshape(2, -1))
    with pytest.raises(InputError, match="the runner is closed"):
        runner(images)
    runner.close()


def test_nothing_keeps_a_closed_runner_alive(library, memory):
    runner = TrtRunner("trt", plan(), memory)
    runner(draw(1))
    runner.close()
    there = weakref.ref(runner)
    del runner
    gc.collect()
    assert there() is None
