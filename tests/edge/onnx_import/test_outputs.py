"""Outputs that an option names, and outputs whose size depends on the image. Oracle: ONNX Runtime on the file as given."""

import re

import numpy as np
import onnx
import pytest
from import_graphs import SIDE, WIDTH, GraphWriter, plain, run, save, zip_map

from calib.errors import GraphError, UsageError
from edge.onnx_import.check_rewrites import rewrite
from edge.onnx_import.import_model import import_onnx
from edge.onnx_import.imported import ImportOptions
from edge.onnx_import.measured_run import random_images

IMAGES = np.random.default_rng(5).standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)


def detector(masked=False):
    """16 boxes with scores of 3 classes; those that NonMaxSuppression, or a threshold and NonZero, leave."""
    g = GraphWriter()
    tokens = g.tokens()
    boxes, scores = g.add("MatMul", tokens, g.random(WIDTH, 4)), g.add("MatMul", tokens, g.random(WIDTH, 3))
    if masked:
        best = g.add("ReduceMax", scores, axes=[2], keepdims=0)
        chosen = g.add("Transpose", g.add("NonZero", g.add("Greater", best, g.const(0.5))), perm=[1, 0])
    else:
        limits = g.const([5], np.int64), g.const([0.5]), g.const([0.0])
        chosen = g.add("NonMaxSuppression", boxes, g.add("Transpose", scores, perm=[0, 2, 1]), *limits)
        chosen = g.add("Gather", chosen, g.ints(0, 2), axis=1)
    return g.model(g.add("GatherND", boxes, chosen))


def tapped(model, names, image):
    """Inner tensors of a file as ONNX Runtime computes them."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return run(model, x=image)


@pytest.mark.parametrize("masked", [False, True])
def test_an_output_sized_by_the_image_is_refused_and_the_way_out_works(tmp_path, masked):
    model = detector(masked)
    path = save(model, tmp_path)
    with pytest.raises(GraphError, match="size of an output depends on what the image shows") as refusal:
        import_onnx(path, ImportOptions())
    assert re.search(rf"node {'nonzero' if masked else 'nonmaxsuppression'}_\d+ ", str(refusal.value))
    names = re.search(r"--outputs ([^ ,]+(?:,[^ ,]+)*)", refusal.value.next_command)[1].split(",")
    assert len(names) == (1 if masked else 2)
    result = import_onnx(path, ImportOptions(outputs=tuple(names)))
    assert [value.name for value in result.model.graph.output] == names
    assert result.image_input.shape[0] is None, "what made one batch depend on another is gone"
    for expected, output in zip(tapped(model, names, IMAGES), run(result.model, x=IMAGES), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    record = rewrite(result.model, [IMAGES], result)
    assert record.parity.sqnr_db >= 100
    assert [output.name for output in record.outputs] == names


def test_named_outputs_come_in_the_order_of_the_option(tmp_path):
    model = plain()
    conv, head = model.graph.node[0].output[0], model.graph.node[-1].output[0]
    result = import_onnx(save(model, tmp_path), ImportOptions(outputs=(head, conv)))
    assert [output.shape for output in result.outputs] == [(-1, 5), (-1, WIDTH, 4, 4)]
    assert [change.node for change in result.changes if change.kind == "output"] == [conv]
    for expected, output in zip(tapped(model, [head, conv], IMAGES), run(result.model, x=IMAGES), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    whole = import_onnx(save(model, tmp_path), ImportOptions(outputs=(head,)))
    assert whole.model == import_onnx(save(model, tmp_path), ImportOptions()).model, "the graph's own output changes nothing"


@pytest.mark.parametrize("name", ["conv_0", "relu_1_outs", "x"])
def test_a_tensor_that_is_not_there_is_refused_with_those_that_are(tmp_path, name):
    with pytest.raises(UsageError, match="does not compute") as refusal:
        import_onnx(save(plain(), tmp_path), ImportOptions(outputs=(name,)))
    assert refusal.value.allowed == {"conv_0": "conv_0_out", "x": "matmul_4_out"}.get(name, refusal.value.allowed)
    assert "relu_1_out" in refusal.value.allowed or name != "relu_1_outs"


def test_an_output_that_no_engine_can_give_can_be_left_out(tmp_path):
    path = save(zip_map(), tmp_path)
    with pytest.raises(GraphError, match="--outputs"):
        import_onnx(path, ImportOptions())
    result = import_onnx(path, ImportOptions(outputs=(plain().graph.output[0].name,)))
    images = random_images(result.image_input, 2)
    np.testing.assert_allclose(run(result.model, x=images)[0], run(plain(), x=images)[0], rtol=1e-5)
