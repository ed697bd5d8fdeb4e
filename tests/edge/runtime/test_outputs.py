"""Networks of several outputs, integers too, and of uint8 images, by every runner. Oracle: onnx's reference evaluator."""

import importlib.util

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from trt_runner_fakes import ELEMENTS, draw, expected, two_output_plan
from two_output_graph import CLASSES, HEIGHT, SHAPES, WIDTH, pictures, two_output_graph

from calib.errors import InputError
from edge.runtime.openvino_runner import OpenVinoRunner
from edge.runtime.ort_runner import OrtRunner, emulated_runner, run_all, tapped_batch
from edge.runtime.runner import FakeRunner, check_outputs, join_outputs
from edge.runtime.trt_runner import TrtRunner
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
IMAGES = pictures(5)


@pytest.fixture(scope="module")
def wanted():
    return ReferenceEvaluator(two_output_graph()).run(None, {"image": IMAGES})


def saved(folder, batch="batch"):
    path = folder / f"{batch}.onnx"
    path.write_bytes(two_output_graph(batch).SerializeToString())
    return path


def check(found, wanted, count=5):
    """The outputs of the first `count` images, of the right shapes and types."""
    assert [output.shape for output in found] == [(count, *shape) for shape in SHAPES]
    assert [output.dtype for output in found] == [np.float32, np.float32, np.int64]
    for output, expectation in zip(found[:2], wanted, strict=False):
        np.testing.assert_allclose(output, expectation[:count], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[2], wanted[2][:count])
    assert len(set(wanted[2])) > 1, "control: the index depends on the picture"


@pytest.mark.parametrize("batch", ["batch", 1, 2, 4])
def test_onnx_runtime_gives_all_outputs_whatever_the_batch(tmp_path, wanted, batch):
    runner = OrtRunner(saved(tmp_path, batch), throughput=True)
    check(runner(IMAGES), wanted)
    check(runner(IMAGES[:3]), wanted, 3)
    check(run_all(runner, (IMAGES[:2], IMAGES[2:])), wanted)
    with pytest.raises(InputError, match="does not take these images"):
        runner(IMAGES.astype(np.float32))


@needs_openvino
@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_openvino_does_too(tmp_path, wanted, batch):
    with OpenVinoRunner(saved(tmp_path, batch), 1) as runner:
        assert (runner.image_shape, runner.dtype) == ((HEIGHT, WIDTH, 3), "uint8")
        first = runner(IMAGES)
        runner(IMAGES[::-1])
        check(first, wanted)
        with pytest.raises(InputError, match="images are not uint8"):
            runner(IMAGES.astype(np.float32))


@pytest.mark.parametrize("graphs", [False, True])
def test_tensorrt_copies_every_output(library, memory, graphs):
    with TrtRunner("trt", two_output_plan(), memory, graphs=graphs) as runner:
        for seed in range(4):
            images = np.abs(draw(7, seed)).astype(np.uint8)
            logits, index = runner(images)
            np.testing.assert_array_equal(logits, expected(images))
            np.testing.assert_array_equal(index, expected(images).argmax(axis=1))
            assert (logits.dtype, index.dtype) == (np.float32, np.int32)
        assert {len(b) for b in memory.bytes_at.values()} == {4 * ELEMENTS, 4 * 4 * 5, 4 * 4}, "uint8, float32, int32"
        with pytest.raises(InputError, match="images are not uint8"):
            runner(draw(2))
    assert memory.live == {"stream": 0, "buffer": 0, "graph": 0}


def test_a_typed_graph_keeps_float_outputs_in_fp32_and_integers_as_they_are(tmp_path, wanted):
    """Roundings of FP16 are emulated; the reference evaluator computes the typed graph in FP16 itself."""
    typed = type_graph(two_output_graph())
    kinds = [value.type.tensor_type.elem_type for value in typed.graph.output]
    assert kinds == [value.type.tensor_type.elem_type for value in two_output_graph().graph.output]
    emulated = emulated_runner(typed, tmp_path / "typed.onnx")(IMAGES)
    exact = ReferenceEvaluator(typed).run(None, {"image": IMAGES})
    for found, float32, half in zip(emulated[:2], wanted, exact, strict=False):
        assert found.dtype == half.dtype == np.float32
        np.testing.assert_allclose(found, float32, rtol=0, atol=0.02)
        np.testing.assert_allclose(half, float32, rtol=0, atol=0.02)
        np.testing.assert_array_equal(found, found.astype(np.float16), "rounded to FP16")
    assert not np.array_equal(emulated[0], wanted[0]), "control: something was rounded"
    assert emulated[2].dtype == np.int64
    assert [v.type.tensor_type.elem_type for v in emulated_graph(typed).graph.input] == [2], "uint8 stays"


def test_outputs_without_a_row_per_image_are_refused(tmp_path):
    good = [np.zeros((2, 3)), np.zeros(2, bool), np.zeros((2, 1), np.int8)]
    assert [output.dtype for output in check_outputs(good, 2, "g")] == [np.float32, np.uint8, np.int8]
    for bad in (np.zeros((3, 2)), np.zeros(()), [0.0, 1.0], np.array(["a", "b"]), np.zeros(2, complex)):
        with pytest.raises(InputError, match=r"one row per image\n  where: g\n  found: output 1: .* for 2 images"):
            check_outputs([good[0], bad], 2, "g")
    joined = join_outputs([(np.ones((2, 3)), np.arange(2)), (np.zeros((1, 3)), np.arange(1))])
    assert [output.tolist() for output in joined] == [[[1.0] * 3] * 2 + [[0.0] * 3], [0, 1, 0]]


def test_the_shipped_fake_takes_uint8_and_gives_several_outputs():
    given = (np.ones((2, 3), np.float32), np.arange(2))
    runner = FakeRunner((HEIGHT, WIDTH, 3), CLASSES, lambda _images: given, dtype=np.uint8)
    first, second = runner(IMAGES[:2])
    first[:] = second[:] = 7
    assert (given[0] == 1).all(), "a copy"
    with pytest.raises(InputError, match="images are not uint8"):
        runner(IMAGES[:2].astype(np.float32))


def test_rectangles_are_held_by_their_pixels():
    assert tapped_batch((448, 448)) == tapped_batch(448)
    assert tapped_batch((224, 448)) == 2 * tapped_batch(448)
