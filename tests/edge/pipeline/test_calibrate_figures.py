"""What `ufovit calibrate` reports about shares and losses, also where they cannot be measured. Oracle: figures by hand."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib.calibration_table import CalibrationTable
from calib.qdq_placement import QuantPlan
from edge.pipeline.calibrate_figures import Int8Share, int8_share
from edge.tasks.holdout_loss import measure_loss

TABLE = CalibrationTable("", "", 64, "mse", {}, float_nodes=("budgeted",))


def test_layers_that_cannot_be_counted_are_listed_and_leave_a_floor_undecided():
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["y"], name="free"),
        h.make_node("MatMul", ["v", "w"], ["z"], name="budgeted"),
        h.make_node("MatMul", ["u", "w"], ["t"], name="kept"),
    ]
    inputs = [("x", [2, "tokens", 4]), ("w", [4, 2]), ("v", [3, 4]), ("u", [9, 4])]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info(name, T.FLOAT, shape) for name, shape in inputs],
        [h.make_tensor_value_info(name, T.FLOAT, None) for name in "yzt"],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10)
    share = int8_share(model, QuantPlan((), {"kept": "excluded by 'k*'"}), TABLE)
    assert share.lines == (
        "INT8         0.0% of the multiply-accumulates, 0 activations",
        "  in float   kept: 75.00% of the multiply-accumulates, excluded by 'k*'",
        "  in float   budgeted: 25.00% of the multiply-accumulates, for the accuracy budget",
        "  not counted  free: the graph has no Q/DQ on operand A and operand B: its multiply-accumulates are unknown: "
        "the shape of y cannot be inferred: (2, ?, 2)",
    )
    assert share.undecided == ("free",)
    del model.graph.node[1:]
    nothing = int8_share(model, QuantPlan(()), TABLE)
    assert nothing.share is None
    assert nothing.lines[0] == "INT8         share unknown, 0 activations"
    assert nothing.judge(0.1)[0] == 3


@pytest.mark.parametrize(
    ("share", "undecided", "floor", "code"),
    [
        (0.9, (), None, 0),
        (0.9, (), 0.9, 0),
        (0.9, (), 0.91, 1),
        (0.9, ("lstm",), 0.9, 3),
        (0.9, ("lstm",), 0.91, 1),
        (None, ("lstm",), None, 0),
        (None, ("lstm",), 0.0, 3),
    ],
)
def test_the_floor(share, undecided, floor, code):
    assert Int8Share(share, (), undecided).judge(floor)[0] == code


def logits(seed=0, images=64):
    return np.random.default_rng(seed).normal(size=(images, 5)).astype(np.float32)


def test_losses_of_outputs_of_every_kind():
    before = logits()
    maps, counts = before.reshape(64, 5, 1), (before * 10).astype(np.int64)
    after = before * np.float32(1.01)  # noise of 1 % of the signal: 40 dB
    changed = counts.copy()
    changed[:16] += 1
    loss = measure_loss(
        ["a", "map", "count", "same", "none", "fixed"],
        (before, maps, counts, before, before * 0, np.ones_like(before)),
        (after, maps * np.float32(0.9), changed, before, before * 0, np.ones_like(before)),
        before.argmax(1),
        "64 images",
    )
    assert loss.lines == (
        "a            SQNR 40.0 dB, agreement 100.00% on 64 images",
        "map          SQNR 20.0 dB on 64 images",
        "count        75.00% of the values equal on 64 images",
        "same         no difference in any value: SQNR is infinite, agreement 100.00% on 64 images",
        "none         not judged: the float graph's output is zero for every image: SQNR and agreement are undefined",
        "fixed        not judged: the float graph's output is the same for every image: SQNR and agreement are undefined",
        "top-1        100.00% float, 100.00% INT8",
    )
    assert loss.undefined == ("none", "fixed")


@pytest.mark.parametrize("spoil", [lambda x: 2 * x, lambda x: x / 2, lambda x: -x, lambda x: 0 * x, lambda x: x[::-1]])
def test_a_spoiled_output_shows(spoil):
    before = logits()
    (line,) = measure_loss(["y"], (before,), (spoil(before),), None, "64 images").lines
    assert float(line.split()[2]) < 7


def test_few_images_are_said():
    few = logits(images=5)
    assert "5 images judge: too few" in measure_loss(["y"], (few,), (few,), None, "5 images").lines[-1]
    many = logits(images=32)
    assert len(measure_loss(["y"], (many,), (many,), None, "32 images").lines) == 1
