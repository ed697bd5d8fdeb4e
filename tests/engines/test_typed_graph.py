"""type_graph: oracles are ONNX Runtime in FP32 and the ONNX type checker."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_graphs import ISLAND, OPSET, Graph, attention, convolutions, images, run
from onnx import TensorProto, helper, numpy_helper

from calib.errors import GraphError, UsageError
from engines.typed_graph import type_graph

FP16_SQNR_DB = 50.0  # 11 significant bits leave 66 dB for one rounding; these graphs stack a few
INT8_SQNR_DB = 30.0  # a value near a rounding boundary may get the next code: one step of 127


def sqnr_db(reference: np.ndarray, result: np.ndarray) -> float:
    noise = np.square(reference.astype(np.float64) - result).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    return kinds | {i.name: i.data_type for i in inferred.initializer}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


@functools.cache
def oracle_truncates() -> bool:
    """Whether ONNX Runtime's FP16 QuantizeLinear rounds towards zero, as it does up to 1.29 on a CPU (pull request 32452)."""
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])]
    constants = [numpy_helper.from_array(np.float16(1), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kind, [1])] for name, kind in (("x", TensorProto.FLOAT16), ("y", TensorProto.INT8))
    )
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool(session.run(None, {"x": np.array([0.75], np.float16)})[0][0] == 0)


@pytest.mark.parametrize(
    ("model", "shape", "floor"),
    [
        (attention(), (8, 16), FP16_SQNR_DB),
        (convolutions(), (8, 12, 12), FP16_SQNR_DB),
        (attention(quantized=True), (8, 16), INT8_SQNR_DB),
        (convolutions(quantized=True), (8, 12, 12), INT8_SQNR_DB),
    ],
)
@pytest.mark.parametrize("island", [frozenset(), ISLAND])
def test_agrees_with_fp32(model, shape, floor, island):
    if floor == INT8_SQNR_DB and oracle_truncates():
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} quantizes FP16 towards zero")
    island = island & {n.name for n in model.graph.node}
    x = images(*shape)
    typed = type_graph(model, keep_fp32=frozenset(island))
    result = run(typed, x)
    assert result.dtype == np.float32
    assert sqnr_db(run(model, x), result) > floor
    assert sqnr_db(2 * run(model, x), result) < 10  # control: the comparator sees a doubled output


def typing_counts(model):
    return {p.key.removeprefix("ufovit.typed."): int(p.value) for p in model.metadata_props}


def test_every_float_tensor_is_fp16_except_ports():
    typed = type_graph(attention())
    ports = {"image", "residual_out"}
    assert all((kind == TensorProto.FLOAT) == (name in ports) for name, kind in types(typed).items() if kind in (1, 10))


def test_island_is_fp32_with_casts_on_its_boundary_only():
    typed = type_graph(attention(), keep_fp32=ISLAND)
    kinds = types(typed)
    for name in ISLAND:
        member = node(typed, name)
        floats = [kinds[t] for t in (*member.input, *member.output) if kinds[t] != TensorProto.INT64]
        assert set(floats) == {TensorProto.FLOAT}
    casts = [n for n in typed.graph.node if n.op_type == "Cast"]
    # image, K^T, V in; normalised K^T V and the output out
    assert len(casts) == 5 == typing_counts(typed)["casts"]
    cast_outputs = {n.output[0] for n in casts}
    assert not any(n.input[0] in cast_outputs for n in casts)


def test_quantized_island_needs_no_casts_and_product_leaves_in_fp32():
    typed = type_graph(attention(quantized=True), keep_fp32=ISLAND)
    kinds = types(typed)
    kv = node(typed, "attn.kv/MatMul")
    assert [kinds[t] for t in (*kv.input, *kv.output)] == [TensorProto.FLOAT] * 3
    assert len([n for n in typed.graph.node if n.op_type == "Cast"]) == 2  # the graph's ports
    quantize = node(typed, "xnorm/Div_out/Q")
    assert kinds[quantize.input[0]] == TensorProto.FLOAT
    assert kinds[node(typed, "xnorm/Div_out/DQ").output[0]] == TensorProto.FLOAT16


def test_q_and_dq_of_a_pair_have_the_same_scale():
    typed = type_graph(attention(quantized=True), keep_fp32=ISLAND)
    values = {i.name: numpy_helper.to_array(i) for i in typed.graph.initializer}
    for quantize in (n for n in typed.graph.node if n.op_type == "QuantizeLinear"):
        dequantize = next(n for n in typed.graph.node if quantize.output[0] in n.input)
        assert float(values[quantize.input[1]]) == float(values[dequantize.input[1]])
    x = next(n for n in typed.graph.node if n.name == "xnorm/Div_out/Q").input[1]
    assert values[x].dtype == np.float32
    assert values[x] == np.float32(np.float16(0.01))


def test_deterministic_and_input_untouched():
    model = attention(quantized=True)
    before = model.SerializeToString(deterministic=True)
    first, second = (type_graph(model, keep_fp32=ISLAND).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert model.SerializeToString(deterministic=True) == before


def test_layer_normalization_stays_one_node():
    ops = [n.op_type for n in type_graph(attention()).graph.node]
    assert ops.count("LayerNormalization") == 1


def clipped(*bounds: float | None) -> onnx.ModelProto:
    g = Graph(4)
    names = ["" if b is None else g.store(f"bound{i}", np.float32(b)) for i, b in enumerate(bounds)]
    return g.model(g.node("Clip", ["image", *names], "clip"), 4)


@pytest.mark.parametrize(
    ("bounds", "operator"),
    [((0.25,), "Max"), ((0.25, None), "Max"), ((0.25, 0.75), "Clip"), ((None, 0.75), "Clip"), ((), "Clip")],
)
def test_a_clip_with_a_lower_bound_alone_becomes_a_max(bounds, operator):
    """TensorRT's parser would set its upper bound to the largest FP32 value."""
    model = clipped(*bounds)
    before = model.SerializeToString(deterministic=True)
    typed = type_graph(model)
    assert node(typed, "clip").op_type == operator
    assert "" not in node(typed, "clip").input or operator == "Clip"
    x = np.float32([[-2.0, 0.125, 0.5, 8.0]])  # exact in FP16
    np.testing.assert_array_equal(run(typed, x), run(model, x))
    assert (run(clipped(3.0), x) != run(model, x)).any(), "control: another bound gives other values"
    assert model.SerializeToString(deterministic=True) == before


def test_a_clip_in_an_island_becomes_a_max_in_fp32():
    typed = type_graph(clipped(1 + 2.0**-20), keep_fp32=frozenset({"clip"}))
    assert node(typed, "clip").op_type == "Max"
    assert {types(typed)[name] for name in node(typed, "clip").input} == {TensorProto.FLOAT}
    assert run(typed, np.zeros((1, 4), np.float32))[0, 0] == np.float32(1 + 2.0**-20)


def one_weight(value: float) -> onnx.ModelProto:
    g = Graph(4)
    g.store("w", np.array([value, 1, 1, 1], np.float32))
    return g.model(g.node("Mul", ["image", "w"], "mul"), 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0, -1e9])
def test_refuses_weights_that_overflow_fp16(value):
    with pytest.raises(GraphError, match=r"where: w\b"):
        type_graph(one_weight(value))


@pytest.mark.parametrize(("value", "flushed", "subnormal"), [(65504.0, 0, 0), (2.0**-14, 0, 0), (2.0**-15, 0, 1), (1e-9, 1, 0)])
def test_counts_flushed_and_subnormal_weights(value, flushed, subnormal):
    counts = typing_counts(type_graph(one_weight(value)))
    assert (counts["flushed"], counts["subnormal"]) == (flushed, subnormal)


@pytest.mark.parametrize("scale", [1e-8, 1e-9, 0.0, np.nan, 1e6])
def test_refuses_scales_that_fp16_cannot_represent(scale):
    g = Graph(4, 4)
    model = g.model(g.node("MatMul", [g.pair("image", scale), g.weight("w", 4, 4)], "m"), 4, 4)
    with pytest.raises(GraphError, match="image_scale"):
        type_graph(model)


def test_output_that_is_also_read_inside():
    g = Graph(4)
    first = g.node("Sigmoid", ["image"], "a")
    g.node("Neg", [first], "b")
    model = g.model(first, 4)
    model.graph.output.append(helper.make_tensor_value_info("b_out", TensorProto.FLOAT, ["batch", 4]))
    typed = type_graph(model)
    assert node(typed, "b").input[0] == "a_out/fp16"
    x = images(4)
    assert sqnr_db(run(model, x), run(typed, x)) > FP16_SQNR_DB


def test_inputs_of_fixed_type_stay_float():
    g = Graph(2, 4, 4)
    scales = g.store("scales", np.array([1, 1, 2, 2], np.float32))
    typed = type_graph(g.model(g.node("Resize", ["image", "", scales], "resize", mode="nearest"), 2, 8, 8))
    assert types(typed)["scales"] == TensorProto.FLOAT
    x = images(2, 4, 4)
    np.testing.assert_allclose(run(typed, x), x.repeat(2, 2).repeat(2, 3), rtol=2.0**-10)  # one FP16 rounding


def test_constants_in_nodes():
    g = Graph(4)
    g.nodes.append(helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([3])), name="c"))
    g.nodes.append(helper.make_node("Constant", [], ["d"], value_float=0.5, name="d"))
    out = g.node("Add", [g.node("Mul", ["image", "c"], "mul"), "d"], "add")
    model = g.model(out, 4)
    x = images(4)
    assert sqnr_db(run(model, x), run(type_graph(model), x)) > FP16_SQNR_DB


def test_refusals():
    model = attention()
    with pytest.raises(UsageError, match="not in the graph"):
        type_graph(model, keep_fp32=frozenset({"nobody"}))
    with pytest.raises(GraphError, match="typed already"):
        type_graph(type_graph(model))
    old = attention()
    old.opset_import[0].version = OPSET - 2
    with pytest.raises(GraphError, match="opset is too old"):
        type_graph(old)
    assert typing_counts(model) == {}
