"""Oracle: counts worked out by hand from the shapes."""

import pytest
from onnx import TensorProto as T
from onnx import helper as h

from calib.collect import CollectConfig, collect_table
from calib.errors import GraphError
from calib.macs import count_macs
from calib.qdq_placement import plan_quantization
from calib.qdq_writer import insert_qdq

BY_HAND = {
    "stem/Conv": 8 * 4 * 4 * 3 * 9,
    "lpi/Conv": 8 * 4 * 4 * 1 * 9,
    "attn.k/MatMul": 16 * 8 * 8,
    "attn.v/MatMul": 16 * 8 * 8,
    "attn/kv/MatMul": 8 * 8 * 16,
    "attn/out/MatMul": 16 * 8 * 8,
    "logits": 5 * 8,  # unnamed Gemm: its first output
}


@pytest.mark.parametrize("batch", [1, 3])
def test_counts_are_those_by_hand(tiny, batch):
    assert count_macs(tiny, batch) == {name: batch * macs for name, macs in BY_HAND.items()}


def test_quantizing_does_not_change_the_count(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    table = collect_table(tiny_path, [images], plan, data_sha256="d", config=CollectConfig("minmax"))
    assert count_macs(insert_qdq(tiny, table, plan)) == BY_HAND


def test_the_model_is_left_alone(tiny):
    before = tiny.SerializeToString(deterministic=True)
    count_macs(tiny)
    assert tiny.SerializeToString(deterministic=True) == before


def test_casts_half_precision_and_gemm_transposed(make_model):
    nodes = [
        h.make_node("Cast", ["x"], ["x16"], to=T.FLOAT16),
        h.make_node("Cast", ["x16"], ["x32"], to=T.FLOAT),
        h.make_node("Gemm", ["x32", "w"], ["y"], name="g", transA=1),
    ]
    model = make_model(nodes, {}, [("x", T.FLOAT, [7, 2]), ("w", T.FLOAT, [7, 3])], [("y", T.FLOAT, [2, 3])])
    assert count_macs(model) == {"g": 2 * 3 * 7}


def test_an_unknown_shape_is_refused_with_the_node_named(make_model):
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        {},
        [("x", T.FLOAT, ["batch", "tokens", 4]), ("w", T.FLOAT, [4, 2])],
        [("y", T.FLOAT, ["batch", "tokens", 2])],
    )
    with pytest.raises(GraphError, match="node mm"):
        count_macs(model)
