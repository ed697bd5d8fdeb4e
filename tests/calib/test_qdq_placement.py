"""Oracle: the plan of the small network written out by hand."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.errors import GraphError, UsageError
from calib.qdq_placement import QuantPoint, QuantScheme, plan_quantization


def act(node, index, tensor):
    return QuantPoint(node, index, tensor, "activation")


def weight(node, tensor, axis):
    return QuantPoint(node, 1, tensor, "weight", axis)


BY_HAND = (
    act("stem/Conv", 0, "image"),
    weight("stem/Conv", "w_stem", 0),
    act("lpi/Conv", 0, "g0"),
    weight("lpi/Conv", "w_dw", 0),
    act("attn.k/MatMul", 0, "ln"),
    weight("attn.k/MatMul", "w_k", 1),
    act("attn.v/MatMul", 0, "ln"),
    weight("attn.v/MatMul", "w_v", 1),
    act("attn/kv/MatMul", 0, "kt"),
    act("attn/kv/MatMul", 1, "v1"),
    act("attn/out/MatMul", 0, "ln"),
    act("attn/out/MatMul", 1, "xn"),
    act("logits", 0, "pooled"),
    weight("logits", "w_head", 0),
)


def test_the_plan_is_the_one_by_hand(tiny):
    plan = plan_quantization(tiny)
    assert plan.points == BY_HAND
    assert plan.skipped == {}
    assert plan.activations == ("image", "g0", "ln", "kt", "v1", "xn", "pooled")
    assert plan == plan_quantization(tiny)


def test_exclusions_are_listed_with_their_reason(tiny):
    plan = plan_quantization(tiny, QuantScheme(exclude=("stem/*", "logits", "attn/*")))
    assert plan.skipped == {
        "stem/Conv": "excluded by 'stem/*'",
        "attn/kv/MatMul": "excluded by 'attn/*'",
        "attn/out/MatMul": "excluded by 'attn/*'",
        "logits": "excluded by 'logits'",
    }
    assert plan.nodes == ("lpi/Conv", "attn.k/MatMul", "attn.v/MatMul")


def test_typos_do_not_pass(tiny):
    with pytest.raises(UsageError, match=r"matches no node[\s\S]*'stm/\*'[\s\S]*stem/Conv"):
        plan_quantization(tiny, QuantScheme(exclude=("stm/*",)))
    with pytest.raises(GraphError, match="nothing to quantize"):
        plan_quantization(tiny, QuantScheme(exclude=("*",)))


def test_quantized_graphs_and_old_opsets_are_refused(tiny):
    tiny.opset_import[0].version = 12
    with pytest.raises(GraphError, match="opset 12"):
        plan_quantization(tiny)
    tiny.opset_import[0].version = 20
    tiny.graph.node.add(op_type="QuantizeLinear", input=["x", "s"], output=["q"])
    with pytest.raises(GraphError, match="already quantized"):
        plan_quantization(tiny)


def one_node(make_model, node, constants, extra=(), x=(4, 6, 8)):
    inputs = [("x", T.FLOAT, list(x)), ("z", T.FLOAT, [8, 3])]
    ok = h.make_node("MatMul", ["x", "w_ok"], ["ok"], name="ok")
    constants = {"w_ok": np.ones((x[-1], 3), np.float32), **constants}
    return make_model([*extra, ok, node], constants, inputs, [("y", T.FLOAT, None), ("ok", T.FLOAT, None)])


@pytest.mark.parametrize(
    ("node", "constants", "extra", "reason"),
    [
        (h.make_node("MatMul", ["x", "w"], ["y"]), {"w": np.ones(8, np.float32)}, (), "is a vector"),
        (h.make_node("MatMul", ["w", "w"], ["y"]), {"w": np.ones((8, 8), np.float32)}, (), "both operands are constants"),
        (h.make_node("ConvTranspose", ["x", "w"], ["y"]), {"w": np.ones((6, 2, 2), np.float32)}, (), "in float"),
        (h.make_node("DeformConv", ["x", "w", "x"], ["y"]), {"w": np.ones((6, 2, 2), np.float32)}, (), "in float"),
        (h.make_node("GRU", ["x", "w", "w"], ["y"], hidden_size=8), {"w": np.ones((1, 24, 8), np.float32)}, (), "recurrent"),
        (
            h.make_node("MatMul", ["x", "wt"], ["y"]),
            {"w": np.ones((3, 8), np.float32)},
            (h.make_node("Transpose", ["w"], ["wt"]),),
            "computed from constants",
        ),
        (h.make_node("Einsum", ["x", "z"], ["y"], equation="bnc,cd->bnd"), {}, (), "Einsum is not quantized"),
        (
            h.make_node("MatMul", ["x16", "w"], ["y"]),
            {"w": np.ones((8, 3), np.float16)},
            (h.make_node("Cast", ["x"], ["x16"], to=T.FLOAT16),),
            "FLOAT16",
        ),
    ],
)
def test_unsupported_candidates_are_listed_with_their_reason(make_model, node, constants, extra, reason):
    plan = plan_quantization(one_node(make_model, node, constants, extra))
    assert [*plan.skipped] == ["y"]
    assert reason in plan.skipped["y"]
    assert plan.nodes == ("ok",)


def test_a_gemm_of_two_activations_is_not_taken_for_a_linear_layer(make_model):
    plan = plan_quantization(one_node(make_model, h.make_node("Gemm", ["x", "z"], ["y"]), {}, x=(4, 8)))
    assert "computed from the input" in "".join(plan.skipped.values())


@pytest.mark.parametrize(
    ("inputs", "shape", "position", "axis"),
    [
        (["w", "x"], (5, 6), 0, 0),
        (["x", "w"], (4, 8, 3), 1, None),
        (["w", "x"], (4, 5, 6), 0, 1),
        (["x", "w"], (1, 1, 8, 3), 1, None),
    ],
)
def test_a_weight_of_any_rank_on_either_side(make_model, inputs, shape, position, axis):
    model = one_node(make_model, h.make_node("MatMul", inputs, ["y"]), {"w": np.ones(shape, np.float32)})
    points = {p.input_index: p for p in plan_quantization(model).points if p.node == "y"}
    assert (points[position].kind, points[position].axis) == ("weight", axis)
    assert (points[1 - position].kind, points[1 - position].tensor) == ("activation", "x")


def test_the_axis_of_a_gemm_with_its_weight_on_the_left(make_model):
    for trans, shape, axis in ((0, (5, 4), 0), (1, (4, 5), 1)):
        node = h.make_node("Gemm", ["w", "x"], ["y"], transA=trans)
        plan = plan_quantization(one_node(make_model, node, {"w": np.ones(shape, np.float32)}, x=(4, 8)))
        assert plan.points[-2:] == (QuantPoint("y", 0, "w", "weight", axis), act("y", 1, "x"))


def test_the_axis_of_gemm_follows_its_transposition(make_model):
    for trans, shape, axis in ((0, (8, 3), 1), (1, (3, 8), 0)):
        node = h.make_node("Gemm", ["x", "w"], ["y"], transB=trans)
        plan = plan_quantization(one_node(make_model, node, {"w": np.ones(shape, np.float32)}, x=(4, 8)))
        assert plan.points[-1] == weight("y", "w", axis)


def test_constant_nodes_are_weights_and_overridable_initializers_are_not(make_model):
    values = np.ones((8, 3), np.float32)
    constant = h.make_node("Constant", [], ["w"], value=numpy_helper.from_array(values))
    node = h.make_node("MatMul", ["x", "w"], ["y"])
    assert plan_quantization(one_node(make_model, node, {}, (constant,))).points[-1] == weight("y", "w", 1)
    model = one_node(make_model, node, {"w": values})
    model.graph.input.append(h.make_tensor_value_info("w", T.FLOAT, [8, 3]))
    assert plan_quantization(model).points[-1] == act("y", 1, "w")


def test_clashing_node_names_become_outputs(tiny):
    for node in tiny.graph.node:
        node.name = "same"
    assert plan_quantization(tiny).nodes == ("c0", "c1", "k0", "v1", "kv", "a", "logits")
