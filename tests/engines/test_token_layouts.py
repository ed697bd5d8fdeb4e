"""merge_layouts: oracles are ONNX's reference evaluator, bit by bit, which computes operator by operator."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.token_layouts import merge_layouts

TOKENS, HEADS, CHANNELS, SIDE = 12, 2, 4, (3, 4)
WIDTH = HEADS * CHANNELS
IMAGES = np.random.default_rng(5).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)


def linear_attention(
    *, perm_v: tuple[int, ...] = (0, 2, 1, 3), softmax: bool = False, quantized: bool = False
) -> onnx.ModelProto:
    """K^T V of two projections of x, then x itself to an image, a depthwise convolution, and back to tokens."""
    random = np.random.default_rng(1)
    nodes = [
        helper.make_node("MatMul", ["x", "wk"], ["k0"], "k"),
        helper.make_node("Add", ["k0", "bk"], ["k1"], "k_bias"),
        helper.make_node("Reshape", ["k1", "heads"], ["k2"], "k_heads"),
        helper.make_node("Transpose", ["k2"], ["k3"], "k_first", perm=(0, 2, 3, 1)),
        *pair("k3", "k4", quantized=quantized),
        helper.make_node("MatMul", ["x", "wv"], ["v0"], "v"),
        helper.make_node("Add", ["v0", "bv"], ["v1"], "v_bias"),
        helper.make_node("Reshape", ["v1", "heads"], ["v2"], "v_heads"),
        helper.make_node("Transpose", ["v2"], ["v3"], "v_first", perm=(0, 2, 1, 3)),
        *pair("v3", "v4", quantized=quantized),
        helper.make_node("MatMul", ["k4", "v4"], ["kv"], "product"),
        helper.make_node("Softmax" if softmax else "Neg", ["kv"], ["y"], "after"),
        helper.make_node("MatMul", ["y", "k4"], ["z"], "read_again"),
        helper.make_node("Transpose", ["x"], ["i0"], "channels", perm=(0, 2, 1)),
        helper.make_node("Reshape", ["i0", "image"], ["i1"], "to_image"),
        helper.make_node("Conv", ["i1", "kernel"], ["i2"], "conv", group=WIDTH, pads=(1, 1, 1, 1)),
        helper.make_node("Reshape", ["i2", "flat"], ["i3"], "to_tokens"),
        helper.make_node("Transpose", ["i3"], ["t"], "tokens", perm=(0, 2, 1)),
    ]
    floats = {name: random.standard_normal((WIDTH, WIDTH)) for name in ("wk", "wv")}
    floats |= {name: random.standard_normal(WIDTH) for name in ("bk", "bv")}
    floats |= {"kernel": random.standard_normal((WIDTH, 1, 3, 3)), "scale": np.array(0.05)}
    shapes = {"heads": (0, TOKENS, HEADS, CHANNELS), "image": (0, WIDTH, *SIDE), "flat": (0, WIDTH, TOKENS)}
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in floats.items()]
    constants += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in shapes.items()]
    constants.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, None]) for name in ("x", "t")]
    ports[0].type.tensor_type.shape.CopyFrom(helper.make_tensor_value_info("x", 1, ["n", TOKENS, WIDTH]).type.tensor_type.shape)
    rank4 = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", None, None, None])
    graph = helper.make_graph(nodes, "g", ports[:1], [ports[1], rank4], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def pair(source: str, result: str, *, quantized: bool) -> list[onnx.NodeProto]:
    if not quantized:
        return [helper.make_node("Identity", [source], [result], f"{source}/same")]
    return [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{source}/q"], f"{source}/Quantize"),
        helper.make_node("DequantizeLinear", [f"{source}/q", "scale", "zero"], [result], f"{source}/Dequantize"),
    ]


def without_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    same = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    kept = [node for node in model.graph.node if node.op_type != "Identity"]
    for node in kept:
        node.input[:] = [same.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def same_bits(model: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    results = [ReferenceEvaluator(graph).run(None, {"x": IMAGES}) for graph in (model, other)]
    return all(one.tobytes() == two.tobytes() for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("quantized", [False, True])
def test_merges_heads_and_moves_channels_without_changing_a_bit(quantized):
    model = without_identities(linear_attention(quantized=quantized))
    merged = merge_layouts(model)
    onnx.checker.check_model(merged, full_check=True)
    assert same_bits(model, merged)
    named = {node.name: node for node in merged.graph.node}
    assert operators(merged)["Split"] == 1
    assert operators(merged)["Reshape"] == operators(model)["Reshape"] - 1
    assert [list(named[name].attribute[0].ints) for name in ("channels", "tokens")] == [[0, 3, 1, 2], [0, 2, 3, 1]]
    assert named["channels"].output[0] == "i1"  # the convolution's input is now that of a transpose
    assert {"k", "v", "product", "conv"} <= named.keys()  # receipts name the layers


def test_finds_a_changed_bit():
    model = without_identities(linear_attention())
    merged = merge_layouts(model)
    split = next(node for node in merged.graph.node if node.op_type == "Split")
    split.output[:] = reversed(split.output)
    assert not same_bits(model, merged)


def test_is_repeatable_and_leaves_the_argument():
    model = without_identities(linear_attention())
    before = model.SerializeToString(deterministic=True)
    merged = merge_layouts(model)
    assert model.SerializeToString(deterministic=True) == before
    assert merge_layouts(model).SerializeToString(deterministic=True) == merged.SerializeToString(deterministic=True)
    again = merge_layouts(merged)
    assert again.SerializeToString(deterministic=True) == merged.SerializeToString(deterministic=True)


def other_root(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.name == "v").input[0] = "negative"
    model.graph.node.insert(0, helper.make_node("Neg", ["x"], ["negative"], "negative"))


def read_twice(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("v2", TensorProto.FLOAT, ["n", None, None, None])
    model.graph.output.append(value)


def activated(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.name == "v_bias").op_type = "Mul"


@pytest.mark.parametrize("change", [other_root, read_twice, activated])
def test_leaves_operands_that_are_not_projections_of_one_tensor(change: Callable[[onnx.ModelProto], None]):
    model = without_identities(linear_attention())
    change(model)
    merged = merge_layouts(model)
    assert "Split" not in operators(merged)
    assert same_bits(model, merged)


def test_leaves_softmax_attention():
    model = without_identities(linear_attention(softmax=True))
    assert "Split" not in operators(merge_layouts(model))


@pytest.mark.parametrize("flat", [(0, TOKENS, WIDTH), (0, 2 * WIDTH, TOKENS // 2)])
def test_leaves_a_reshape_that_mixes_tokens_and_channels(flat):
    model = without_identities(linear_attention())
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "flat")
    shape.CopyFrom(numpy_helper.from_array(np.array(flat, np.int64), "flat"))
    merged = merge_layouts(model)
    assert next(node for node in merged.graph.node if node.name == "tokens").attribute[0].ints == [0, 2, 1]
    assert same_bits(model, merged)
