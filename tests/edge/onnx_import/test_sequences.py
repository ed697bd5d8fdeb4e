"""Sequences of tensors become operators on tensors. Oracle: ONNX Runtime on the file as given."""

import numpy as np
import pytest
from import_graphs import SIDE, WIDTH, GraphWriter, run, save
from onnx import TensorProto, helper

from calib.errors import GraphError
from edge.onnx_import.import_model import import_onnx
from edge.onnx_import.imported import ImportOptions

IMAGES = np.random.default_rng(5).standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)


def at(g, sequence, position):
    return g.add("SequenceAt", sequence, g.const(position, np.int64))


def chunked(size, axis=1, **attributes):
    """The sum of the first and the last of the parts, as chunk writes it; `size` None for parts of 1."""
    g = GraphWriter()
    sizes = () if size is None else (g.const(size, np.int64),)
    parts = g.add("SplitToSequence", g.conv("x"), *sizes, axis=axis, **attributes)
    return g.model(g.add("Concat", at(g, parts, 0), at(g, parts, -1), axis=1))


def stacked(new_axis):
    g = GraphWriter()
    y = g.conv("x")
    parts = g.add("SequenceConstruct", y, g.add("Relu", y), g.add("Neg", y))
    return g.model(g.add("ConcatFromSequence", parts, axis=1, new_axis=new_axis))


def edited():
    """A list that grows and shrinks, as a loop over layers is traced."""
    g = GraphWriter()
    y = g.conv("x")
    parts = g.add("SequenceEmpty", dtype=TensorProto.FLOAT)
    for op in ("Relu", "Neg", "Abs"):
        parts = g.add("SequenceInsert", parts, g.add(op, y))
    parts = g.add("SequenceErase", g.add("SequenceInsert", parts, y, g.const(1, np.int64)), g.const(0, np.int64))
    length = g.add("Cast", g.add("SequenceLength", parts), to=TensorProto.FLOAT)
    return g.model(g.add("Mul", g.add("ConcatFromSequence", parts, axis=1), length))


def chosen_by_the_image():
    g = GraphWriter()
    parts = g.add("SplitToSequence", g.conv("x"), g.const(2, np.int64), axis=1)
    bright = g.add("Cast", g.add("Greater", g.add("ReduceMean", "x", keepdims=0), g.const(0.0)), to=TensorProto.INT64)
    return g.model(g.add("SequenceAt", parts, bright))


KNOWN = {
    "chunk": (lambda: chunked(4), ["Conv", "Split", "Concat"]),
    "chunk with a smaller rest": (lambda: chunked(3), ["Conv", "Split", "Concat"]),
    "split by sizes": (lambda: chunked([1, WIDTH - 1]), ["Conv", "Split", "Concat"]),
    "unbind with the axis": (lambda: chunked(None), ["Conv", "Split", "Concat"]),
    "unbind without the axis": (lambda: chunked(None, axis=-1, keepdims=0), ["Conv", "Split", "Squeeze", "Squeeze", "Concat"]),
    "cat": (lambda: stacked(0), ["Conv", "Relu", "Neg", "Concat"]),
    "stack": (lambda: stacked(1), ["Conv", "Relu", "Neg", *["Unsqueeze"] * 3, "Concat"]),
    "insert and erase": (edited, ["Conv", "Neg", "Abs", "Concat", "Mul"]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_sequences_become_operators_on_tensors(name, tmp_path):
    make, operators = KNOWN[name]
    model = make()
    result = import_onnx(save(model, tmp_path), ImportOptions())
    assert [node.op_type for node in result.model.graph.node] == operators
    assert "sequence" in {change.kind for change in result.changes}
    assert result.image_input.shape[0] is None
    np.testing.assert_allclose(run(result.model, x=IMAGES)[0], run(model, x=IMAGES)[0], rtol=1e-5, atol=1e-5)


def test_a_sequence_that_the_image_decides_is_refused_by_name(tmp_path):
    with pytest.raises(GraphError, match=r"in a sequence depend on the image[\s\S]*sequenceat_\d+ [\s\S]*--outputs"):
        import_onnx(save(chosen_by_the_image(), tmp_path), ImportOptions())


def test_weights_standardized_by_a_batch_norm_are_folded(tmp_path):
    """As TorchScript writes standardized weights at opset 13: BatchNormalization in training mode, which opset 14 lacks."""
    g = GraphWriter()
    weight, ones, zeros = g.random(1, WIDTH, 3 * 16), g.const(np.ones(WIDTH)), g.const(np.zeros(WIDTH))
    outputs = ["w", *(f"unread_{i}" for i in range(4))]
    g.nodes.append(
        helper.make_node("BatchNormalization", [weight, ones, zeros, zeros, ones], outputs, name="norm", momentum=1.0)
    )
    weight = g.add("Reshape", "w", g.ints(WIDTH, 3, 4, 4))
    model = g.model(g.add("Conv", "x", weight, strides=[4, 4]), opset=13)
    result = import_onnx(save(model, tmp_path), ImportOptions())
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    np.testing.assert_allclose(run(result.model, x=IMAGES)[0], run(model, x=IMAGES)[0], rtol=1e-5, atol=1e-5)
