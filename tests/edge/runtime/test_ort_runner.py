"""edge.runtime.ort_runner: many images on several threads at once. Oracle: onnxruntime itself, one image after the other."""

import threading

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from calib.errors import InputError
from calib.parallel import shared_cores
from edge.runtime.ort_runner import BATCH, OrtRunner, emulated_runner, run_all, tapped_batch


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A convolution and a product, batch free."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(16, 3, 3, 3)), "m": rng.normal(size=(16 * 36, 10))}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["batch", 3, 8, 8]), ("logits", ["batch", 10]))
    ]
    held = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = tmp_path_factory.mktemp("ort") / "g.onnx"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(100, 3, 8, 8)).astype(np.float32)


def test_many_images_at_once_answer_as_one_by_one(path, images):
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = np.concatenate([plain.run(None, {"image": image[None]})[0] for image in images])
    done = []
    (found,) = run_all(OrtRunner(path, throughput=True), np.split(images, [7, 40, 41]), done.append)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert done == [7, 40, 41, 100]
    assert not np.allclose(found[::-1], expected, rtol=1e-4, atol=1e-4), "the control: order is seen"


def test_an_emulated_runner_rounds_and_overflows_like_fp16(tmp_path):
    """(x * 300) / 300 in FP16, where x * 300 is rounded, and infinite from 219 on. Oracle: numpy's float16."""
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=half),
        helper.make_node("Mul", ["x", "c"], ["y"]),
        helper.make_node("Div", ["y", "c"], ["z"]),
        helper.make_node("Cast", ["z"], ["logits"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("image", "logits")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.float16(300), "c")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    images = np.array([[0.1, 1.7, 3.3, 1000.0], [-218.0, 219.0, 7.7, -0.3]], np.float32)
    with np.errstate(over="ignore"):
        expected = (images.astype(np.float16) * np.float16(300)) / np.float16(300)
    np.testing.assert_array_equal(emulated_runner(model, tmp_path / "g.onnx")(images)[0], expected.astype(np.float32))
    assert np.isinf(expected).any()
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    assert np.isfinite(OrtRunner(tmp_path / "g.onnx")(images)[0]).all(), "the control: the runtime alone computes in FP32"


def test_throughput_shares_out_the_cores_and_the_default_does_not(path, monkeypatch):
    monkeypatch.setattr("edge.runtime.ort_runner.shared_cores", lambda: (3, 2))
    asked = []
    real = onnxruntime.InferenceSession

    def session(model, options, **kwargs):
        asked.append(options.intra_op_num_threads)
        return real(model, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert OrtRunner(path, throughput=True).at_once == 3
    assert OrtRunner(path, 5).at_once == 1
    assert OrtRunner(path).at_once == 1
    assert asked == [2, 5, 0]


def test_runs_go_on_at_the_same_time(path, images):
    runner = OrtRunner(path, throughput=True)
    if runner.at_once == 1:
        pytest.skip("one core")
    meeting, seen = threading.Barrier(2), set()

    class Meeting:
        at_once = runner.at_once

        def __call__(self, batch):
            seen.add(threading.get_ident())
            meeting.wait(10)
            return runner(batch)

    run_all(Meeting(), np.split(images, 4))
    assert 2 <= len(seen) <= shared_cores()[0]
    assert threading.get_ident() not in seen


def test_images_that_the_graph_does_not_take_are_refused_at_once_too(path, images):
    with pytest.raises(InputError, match="does not take these images"):
        run_all(OrtRunner(path, throughput=True), [images, images[:, :, :4]])


@pytest.mark.parametrize(("size", "batch"), [(64, BATCH), (224, BATCH), (448, BATCH // 4), (896, 1), (4096, 1)])
def test_fewer_large_images_are_held_at_once(size, batch):
    assert tapped_batch(size) == batch
