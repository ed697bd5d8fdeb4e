"""The two products of an attention are found whatever lies between them, and leave INT8 as one. Oracle: graphs by hand."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib.attention_products import attention_products, join_attention, readers_of_attention
from calib.placement import leaving_order
from calib.sensitivity import GroupNoise


@pytest.fixture
def attention(make_model):
    """x (b, 4, 8) -> softmax((x Wq) (x Wk)^T / 3 + bias + the mask M Wm) (x Wv) -> a linear layer -> softmax."""
    rng = np.random.default_rng(0)
    constants = {f"w{i}": rng.normal(size=(8, 8)).astype(np.float32) for i in ("q", "k", "v", "o")}
    constants |= {"m": np.ones((4, 8), np.float32), "wm": np.ones((8, 4), np.float32), "three": np.float32(3)}
    n = h.make_node
    nodes = [
        n("MatMul", ["x", "wq"], ["q"], name="q"),
        n("MatMul", ["x", "wk"], ["k"], name="k"),
        n("MatMul", ["x", "wv"], ["v"], name="v"),
        n("Transpose", ["k"], ["kt"], name="kt", perm=[0, 2, 1]),
        n("MatMul", ["q", "kt"], ["logits"], name="first"),
        n("Div", ["logits", "three"], ["scaled"], name="scaled"),
        n("MatMul", ["m", "wm"], ["mask"], name="constant mask"),
        n("Add", ["scaled", "mask"], ["masked"], name="masked"),
        n("Softmax", ["masked"], ["p"], name="softmax", axis=-1),
        n("Identity", ["p"], ["dropped"], name="dropout"),
        n("MatMul", ["dropped", "v"], ["mixed"], name="second"),
        n("MatMul", ["mixed", "wo"], ["o"], name="out"),
        n("Softmax", ["o"], ["y"], name="classes", axis=-1),
    ]
    return make_model(nodes, constants, [("x", T.FLOAT, ["b", 4, 8])], [("y", T.FLOAT, ["b", 4, 8])])


def test_the_products_around_a_softmax_are_found_and_no_others(attention):
    assert attention_products(attention) == (("first", "second"),)
    for node in attention.graph.node:
        if node.name == "dropout":
            node.op_type = "Relu"  # no engine fuses that
    assert attention_products(attention) == ()


def test_they_are_one_group_with_the_noise_and_the_work_of_both(attention):
    noises = [
        GroupNoise(("q", "k", "v"), 768, 30.0),
        GroupNoise(("first",), 128, 20.0),
        GroupNoise(("second",), 128, 10.0),
        GroupNoise(("out",), 256, 25.0),
    ]
    joined = join_attention(noises, attention)
    assert [group.nodes for group in joined] == [("q", "k", "v"), ("first", "second"), ("out",)]
    assert (joined[0], joined[2]) == (noises[0], noises[3])
    assert joined[1].macs == 256
    assert joined[1].isolated_db == pytest.approx(-10 * np.log10(0.11))
    assert join_attention(noises[:2], attention) == noises[:2], "the other product is in float already"


def test_groups_of_several_heads_that_share_a_product_become_one(attention):
    noises = [GroupNoise(("first", "out"), 1, 300.0), GroupNoise(("q",), 1, 300.0), GroupNoise(("second",), 1, 300.0)]
    joined = join_attention(noises, attention)
    assert [group.nodes for group in joined] == [("first", "out", "second"), ("q",)]
    assert joined[0].isolated_db == pytest.approx(300 - 10 * np.log10(2))


def test_the_layer_that_reads_an_attention_leaves_only_after_it(attention):
    noises = [GroupNoise((name,), 100, db) for name, db in (("q", 50.0), ("first", 30.0), ("second", 30.0), ("out", 10.0))]
    joined = join_attention(noises, attention)
    after = readers_of_attention(joined, attention)
    assert after == {2: frozenset({1})}
    free, bound = (leaving_order(joined, [True] * 3, 400, 0.75, limits) for limits in ({}, after))
    assert [group.nodes[0] for group in free.costs[: free.leaving]] == ["out", "first"]
    assert [group.nodes[0] for group in bound.costs[: bound.leaving]] == ["first", "out"]
    assert readers_of_attention(noises[3:], attention) == {}, "the attention is in float already"
