"""Oracles: counts worked out by hand from the shapes, torch's flop counter, which is not ours."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.collect import CollectConfig, collect_table
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
    counted = count_macs(tiny, batch)
    assert counted.by_name == {name: batch * macs for name, macs in BY_HAND.items()}
    assert counted.total == batch * sum(BY_HAND.values())
    assert counted.not_counted == {}


def test_quantizing_does_not_change_the_count(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    table = collect_table(tiny_path, [images], plan, data_sha256="d", config=CollectConfig("minmax"))
    assert count_macs(insert_qdq(tiny, table, plan)).by_name == BY_HAND


def test_the_model_is_left_alone(tiny):
    before = tiny.SerializeToString(deterministic=True)
    count_macs(tiny, measure=True)
    assert tiny.SerializeToString(deterministic=True) == before


def test_casts_half_precision_and_gemm_transposed(make_model):
    nodes = [
        h.make_node("Cast", ["x"], ["x16"], to=T.FLOAT16),
        h.make_node("Cast", ["x16"], ["x32"], to=T.FLOAT),
        h.make_node("Gemm", ["x32", "w"], ["y"], name="g", transA=1),
    ]
    model = make_model(nodes, {}, [("x", T.FLOAT, [7, 2]), ("w", T.FLOAT, [7, 3])], [("y", T.FLOAT, [2, 3])])
    assert count_macs(model).by_name == {"g": 2 * 3 * 7}


def one_node(make_model, shapes, op_type, opset=20, kinds=(), domain="", **attributes):
    """A graph of one node `n` whose inputs have the shapes; None leaves an input out."""
    names = ["" if shape is None else f"x{i}" for i, shape in enumerate(shapes)]
    kinds = dict(enumerate(kinds))
    inputs = [(name, kinds.get(i, T.FLOAT), list(shapes[i])) for i, name in enumerate(names) if name]
    outputs = 3 if op_type == "LSTM" else 2 if op_type in ("GRU", "RNN") else 1
    node = h.make_node(op_type, names, [f"y{i}" for i in range(outputs)], name="n", domain=domain, **attributes)
    model = make_model([node], {}, inputs, [("y0", T.UNDEFINED, None)], opset)
    if domain:
        model.opset_import.append(h.make_opsetid(domain, 1))
    return count_macs(model)


@pytest.mark.parametrize(
    ("op_type", "shapes", "opset", "attributes", "macs"),
    [
        ("MatMul", [(5, 1, 3, 4), (2, 4, 6)], 20, {}, 5 * 2 * 3 * 4 * 6),
        ("MatMul", [(4,), (4,)], 20, {}, 4),
        ("DeformConv", [(2, 4, 6, 6), (8, 2, 3, 3), (2, 18, 4, 4)], 20, {"group": 2}, 2 * 8 * 4 * 4 * 2 * 9),
        ("LSTM", [(7, 2, 5), (2, 24, 5), (2, 24, 6)], 20, {"hidden_size": 6, "direction": "bidirectional"}, 14 * 2 * 24 * 11),
        ("GRU", [(7, 2, 5), (1, 18, 5), (1, 18, 6)], 20, {"hidden_size": 6}, 14 * 18 * 11),
        ("RNN", [(7, 2, 5), (1, 6, 5), (1, 6, 6)], 20, {"hidden_size": 6}, 14 * 6 * 11),
        ("Einsum", [(2, 3, 4), (2, 5, 4)], 20, {"equation": "bnd,bmd->bnm"}, 2 * 3 * 5 * 4),
        ("Einsum", [(2, 3, 4), (4, 5)], 20, {"equation": "...d, de"}, 2 * 3 * 4 * 5),
        ("Einsum", [(2, 3, 4), (1, 4, 5)], 20, {"equation": "...ij,...jk->...ik"}, 2 * 3 * 4 * 5),
        ("Einsum", [(3, 4), (4, 5), (5, 6)], 20, {"equation": "ab,bc,cd->ad"}, 3 * 4 * 5 + 3 * 5 * 6),
        ("Einsum", [(3,), (4,)], 20, {"equation": "i,j->ij"}, 12),
        # 2 heads of 8, 5 queries, 7 keys: scores and mix
        ("Attention", [(3, 5, 16), (3, 7, 16), (3, 7, 16)], 23, {"q_num_heads": 2, "kv_num_heads": 2}, 2 * 3 * 2 * 5 * 7 * 8),
        # grouped queries: 4 heads read 2, values of 6; the past gives 3 more keys
        (
            "Attention",
            [(1, 4, 5, 8), (1, 2, 7, 8), (1, 2, 7, 6), None, (1, 2, 3, 8), (1, 2, 3, 6)],
            23,
            {},
            4 * 5 * 10 * (8 + 6),
        ),
    ],
)
def test_operators_by_formula(make_model, op_type, shapes, opset, attributes, macs):
    assert one_node(make_model, shapes, op_type, opset, **attributes).by_name == {"n": macs}


def test_integer_operators(make_model):
    counted = one_node(make_model, [(2, 3, 4), (4, 5)], "MatMulInteger", kinds=[T.INT8, T.INT8])
    assert counted.by_name == {"n": 2 * 3 * 4 * 5}
    shapes = [(2, 3, 4), (), (), (4, 5), (), (), (), ()]
    kinds = [T.INT8, T.FLOAT, T.INT8] * 2 + [T.FLOAT, T.INT8]
    assert one_node(make_model, shapes, "QLinearMatMul", kinds=kinds).by_name == {"n": 2 * 3 * 4 * 5}
    shapes = [(1, 4, 6), (), (), (8, 2, 3), (), (), (), ()]
    assert one_node(make_model, shapes, "QLinearConv", kinds=kinds, group=2).by_name == {"n": 8 * 4 * 2 * 3}


@pytest.mark.parametrize(
    ("op_type", "x", "w", "attributes"),
    [
        ("Conv", (2, 6, 17), (9, 6, 3), {}),
        ("Conv", (2, 6, 9, 11), (9, 2, 3, 2), {"group": 3, "strides": [2, 1]}),
        ("Conv", (1, 4, 5, 6, 7), (8, 4, 3, 3, 3), {}),
        ("ConvTranspose", (2, 6, 5, 7), (6, 4, 3, 3), {"strides": [2, 2]}),
        ("ConvTranspose", (2, 6, 5, 7), (6, 4, 2, 2), {"strides": [2, 2], "group": 3}),
        ("ConvTranspose", (2, 6, 5), (6, 4, 4), {"strides": [2]}),
        ("MatMul", (5, 3, 4), (5, 4, 6), {}),
    ],
)
def test_operators_by_the_flop_counter_of_torch(make_model, op_type, x, w, attributes):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    options = {"stride": attributes.get("strides", 1), "groups": attributes.get("group", 1)}
    with FlopCounterMode(display=False) as flops:
        if op_type == "MatMul":
            torch.zeros(x) @ torch.zeros(w)
        else:
            kind = "conv_transpose" if op_type == "ConvTranspose" else "conv"
            getattr(torch.nn.functional, f"{kind}{len(x) - 2}d")(torch.zeros(x), torch.zeros(w), **options)
    assert one_node(make_model, [x, w], op_type, **attributes).total == flops.get_total_flops() / 2 > 0


def test_a_deformable_convolution_is_not_a_plain_one_with_more_outputs(make_model):
    """Negative control: an oracle that never disagrees proves nothing."""
    plain = one_node(make_model, [(2, 4, 6, 6), (8, 4, 3, 3)], "Conv").total
    assert one_node(make_model, [(2, 4, 6, 6), (8, 2, 3, 3)], "Conv", group=2).total == plain / 2
    assert one_node(make_model, [(2, 4, 6, 6), (4, 8, 3, 3)], "ConvTranspose").total != plain


def branches(*graphs):
    def body(name, nodes, inputs, outputs):
        return h.make_graph(
            nodes, name, [h.make_tensor_value_info(*v) for v in inputs], [h.make_tensor_value_info(*v) for v in outputs]
        )

    return [body(*graph) for graph in graphs]


def test_bodies_are_counted_once_each(make_model):
    then, other = branches(
        ("t", [h.make_node("MatMul", ["x", "w"], ["t_out"], name="mm")], [], [("t_out", T.FLOAT, None)]),
        ("e", [h.make_node("Identity", ["z"], ["e_out"])], [], [("e_out", T.FLOAT, None)]),
    )
    (turn,) = branches(
        (
            "loop",
            [h.make_node("MatMul", ["state", "w8"], ["next"], name="step"), h.make_node("Identity", ["go"], ["go_on"])],
            [("i", T.INT64, []), ("go", T.BOOL, []), ("state", T.FLOAT, None)],
            [("go_on", T.BOOL, []), ("next", T.FLOAT, None)],
        )
    )
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["z"], name="main"),
        h.make_node("If", ["c"], ["chosen"], name="choose", then_branch=then, else_branch=other),
        h.make_node("Loop", ["times", "", "chosen"], ["y"], name="again", body=turn),
    ]
    constants = {"w": np.ones((4, 8), np.float32), "w8": np.ones((8, 8), np.float32), "times": np.array(3)}
    model = make_model(nodes, constants, [("x", T.FLOAT, ["n", 6, 4]), ("c", T.BOOL, [])], [("y", T.FLOAT, None)])
    counted = count_macs(model)
    macs = {"main": 6 * 4 * 8, "choose/then_branch/mm": 6 * 4 * 8, "again/body/step": 6 * 8 * 8}
    assert counted.by_name == macs
    assert [node.body for node in counted.nodes] == [False, True, True]


def test_local_functions_are_entered(make_model):
    body = [h.make_node("MatMul", ["a", "b"], ["h"]), h.make_node("MatMul", ["h", "h"], ["c"])]
    function = h.make_function("local", "Twice", ["a", "b"], ["c"], body, [h.make_opsetid("", 20)])
    calls = [h.make_node("Twice", ["x", "w"], ["u"], domain="local", name="first"), h.make_node("Relu", ["u"], ["y"])]
    model = make_model(calls, {"w": np.ones((6, 6), np.float32)}, [("x", T.FLOAT, ["n", 6, 6])], [("y", T.FLOAT, None)])
    model.functions.append(function)
    model.opset_import.append(h.make_opsetid("local", 1))
    counted = count_macs(model)
    assert counted.total == 2 * 6**3
    assert counted.by_name["first"] == 6**3  # the product that gives its result; the other has a name of its own
    assert [node.body for node in counted.nodes] == [True, False]


def computed_shape(make_model, sizes=("batch", 4, 6)):
    """A product after a Reshape to sizes that shape inference does not follow."""
    nodes = [
        h.make_node("NonZero", ["ones"], ["where"]),
        h.make_node("ReduceSum", ["where"], ["count"], keepdims=0),  # 0 + 1 + 2 + 3 = 6
        h.make_node("Reshape", ["count", "one"], ["six"]),
        h.make_node("Concat", ["minus", "six"], ["shape"], axis=0),
        h.make_node("Reshape", ["x", "shape"], ["rows"]),
        h.make_node("MatMul", ["rows", "w"], ["y"], name="mm"),
    ]
    constants = {"ones": np.ones(4, np.float32), "one": np.array([1]), "minus": np.array([-1])}
    model = make_model(nodes, constants, [("x", T.FLOAT, list(sizes))], [("y", T.FLOAT, None)])
    model.graph.initializer.append(numpy_helper.from_array(np.ones((6, 2), np.float32), "w"))
    return model


def test_shapes_that_cannot_be_inferred_are_measured(make_model):
    model = computed_shape(make_model)
    counted = count_macs(model)
    assert "the shape of y cannot be inferred" in counted.not_counted["mm"]
    assert counted.by_name == {"mm": 0}
    assert count_macs(model, measure=True).by_name == {"mm": 4 * 6 * 2}
    assert count_macs(model, 3, measure=True).by_name == {"mm": 3 * 4 * 6 * 2}


def test_a_free_axis_beside_the_batch_is_listed_with_the_node(make_model):
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"], name="mm"), h.make_node("MatMul", ["z", "w"], ["v"], name="known")],
        {},
        [("x", T.FLOAT, ["batch", "tokens", 4]), ("w", T.FLOAT, [4, 2]), ("z", T.FLOAT, [3, 4])],
        [("y", T.FLOAT, None), ("v", T.FLOAT, None)],
    )
    for measure in (False, True):
        counted = count_macs(model, measure=measure)
        assert counted.not_counted == {"mm": "the shape of y cannot be inferred: (1, ?, 2)"}
        assert (counted.by_name["known"], counted.total) == (24, 24)


def test_what_has_no_formula_is_listed(make_model):
    counted = one_node(make_model, [(2, 3), (3, 4)], "FusedMatMul", domain="com.microsoft")
    assert counted.not_counted == {"n": "what com.microsoft.FusedMatMul computes is not known"}
    assert list(one_node(make_model, [(1, 8, 2)], "DFT").not_counted) == ["n"]
    assert one_node(make_model, [(2, 3)], "Einsum", equation="ij->ji").nodes == ()
    assert one_node(make_model, [(2, 3)], "Softmax").nodes == ()
    misfit = one_node(make_model, [(2, 3), (3, 4)], "Einsum", equation="ij->j")
    assert "do not fit" in misfit.not_counted["n"]
