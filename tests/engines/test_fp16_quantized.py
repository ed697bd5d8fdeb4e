"""The emulation of INT8 layers and of whole networks. Oracles: exact integers, ONNX Runtime in FP32."""

import numpy as np
import onnx
import pytest
from engine_graphs import ISLAND, Graph, attention, convolutions, images, run
from fp16_reference import SESSIONS, SINGLE, emulate, half, product_graph, same, sqnr_db
from onnx import TensorProto, helper, numpy_helper

from calib.ort_session import TappedGraph
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph

STEP = 3.0 / 64  # of activations; exact in FP16, as typed graphs require


def quantized_layer(operator, axis_name="own"):
    """One INT8 layer, 16 -> 16, whose output channels differ by up to 2^15 in scale, so that a wrong axis shows."""
    shape = {"MatMul": (16, 16), "Gemm": (16,), "Conv": (16, 4, 4)}[operator]
    g = Graph(*shape)
    axis = {"MatMul": 1, "Gemm": 0, "Conv": 0}[operator]
    weight = (
        g.random.uniform(0.5, 1, (16, 16))
        * np.exp2(np.arange(16) - 9.0)[None if axis else slice(None), ..., None if not axis else slice(None)]
    )
    weight = weight.reshape(16, 16)
    g.store("w", (weight[..., None, None] if operator == "Conv" else weight).astype(SINGLE))
    operands = [g.pair("image", STEP), g.int8_weight("w", axis)]
    if axis_name != "own":
        other = next(n for n in g.nodes if n.name == "w/DQ")
        value = {"negative": axis - g.weights["w_q"].ndim, "other": 1 - axis, "default": None}[axis_name]
        del other.attribute[:]
        if value is not None:
            other.attribute.append(helper.make_attribute("axis", value))
    attributes = {"transB": 1} if operator == "Gemm" else {}
    return g.model(g.node(operator, operands, "layer", **attributes), *shape)


@SESSIONS
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv"])
def test_an_int8_layer_is_exact_and_rounded_once(session, operator):
    model = quantized_layer(operator)
    x = half(images(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])))
    expected = run(model, x)
    result = emulate(model, x, session=session)
    assert same(result, half(result))
    np.testing.assert_allclose(
        result, expected, rtol=2.0**-11 + 2.0**-18, atol=2.0**-24
    )  # one rounding, and the order of the sum
    assert not same(result, expected)
    other = run(quantized_layer(operator, "other"), x)
    assert np.abs(other / expected - 1).max() > 1, "control: scales along the other axis"


def test_axes_of_weight_scales_in_every_notation():
    x = half(images(16, 16))
    expected = emulate(quantized_layer("MatMul"), x)
    for axis in ("negative", "default"):
        assert same(emulate(quantized_layer("MatMul", axis), x), expected)
    result = emulate(quantized_layer("MatMul", "other"), x)
    np.testing.assert_allclose(result, run(quantized_layer("MatMul", "other"), x), rtol=2.0**-10, atol=2.0**-24)
    assert not same(result, expected)


@pytest.mark.parametrize("quantize", ["per channel", "per tensor", "one channel in a vector"])
def test_weights_become_their_dequantized_constants(quantize):
    g = Graph(8)
    scale = {
        "per channel": half(np.array([0.01, 0.3, 5.0], SINGLE)),
        "per tensor": half(SINGLE(0.01)),
        "one channel in a vector": half(np.array([0.01], SINGLE)),
    }[quantize]
    codes = np.random.default_rng(0).integers(-127, 128, (8, 3)).astype(np.int8)
    inputs = [g.store("codes", codes), g.store("scale", scale), g.store("zero", np.zeros(scale.shape, np.int8))]
    weight = g.node("DequantizeLinear", inputs, "w/DQ", **({"axis": 1} if scale.ndim else {}))
    emulated = emulated_graph(type_graph(g.model(g.node("MatMul", [g.pair("image", STEP), weight], "layer"), 3)))
    stored = {t.name: numpy_helper.to_array(t) for t in emulated.graph.initializer}
    assert same(stored["w/DQ_out"], codes.astype(SINGLE) * scale)
    assert [n.name for n in emulated.graph.node if n.op_type == "DequantizeLinear"] == ["image/DQ"]


@pytest.mark.parametrize("zero", [3, -128])
def test_a_zero_point_of_weights_is_subtracted(zero):
    """The toolkit writes none, but an existing zero-point must not be ignored."""
    g = Graph(16)
    codes = np.random.default_rng(0).integers(-100, 100, (16, 3)).astype(np.int8)
    inputs = [g.store("codes", codes), g.store("scale", np.array(STEP, SINGLE)), g.store("zero", np.array(zero, np.int8))]
    model = g.model(g.node("MatMul", [g.pair("image", STEP), g.node("DequantizeLinear", inputs, "w/DQ")], "layer"), 3)
    x = half(images(16))
    np.testing.assert_allclose(emulate(model, x), run(model, x), rtol=2.0**-10)
    inputs[2] = g.store("zero", np.zeros((), np.int8))
    assert np.abs(run(g.model("layer_out", 3), x) - run(model, x)).max() > 0.2, "control: the zero-point matters"


def test_operands_of_an_int8_layer_are_exact_and_others_are_rounded():
    """A scale of 3/64 times a code up to 127 needs 9 bits; a scale of 1.33/64 (11 bits) times a code up to 18 bits."""
    g = Graph(16)
    step = float(half(1.33 / 64))
    layer = g.node("MatMul", [g.pair("image", step), g.int8_weight(g.weight("w", 16, 16), 1)], "layer")
    again = g.pair(layer, step)
    model = g.model(g.node("Neg", [again], "other"), 16)
    emulated = emulated_graph(type_graph(model))
    x = images(16)
    names = ("image/Q_out", "image/DQ_out", "layer_out/Q_out", "layer_out/DQ_out")
    code, value, code_again, value_again = TappedGraph(emulated, names)(x).values()
    assert code.dtype == code_again.dtype == np.int8
    assert same(value, code.astype(SINGLE) * SINGLE(step))
    assert same(value_again, half(code_again.astype(SINGLE) * SINGLE(step)))
    assert not same(value, half(value)), "control: a rounding would have an effect"
    assert not same(value_again, code_again.astype(SINGLE) * SINGLE(step))


def test_a_product_of_two_quantized_activations_is_summed_in_int32():
    g = Graph(48, 16)
    pair = g.pair("image", float(half(1.33 / 64)))
    turned = g.pair(g.node("Transpose", ["image"], "turn", perm=[0, 2, 1]), float(half(1.7 / 64)))
    model = g.model(g.node("MatMul", [turned, pair], "product"), 16, 16)
    x = half(images(48, 16))
    result = emulate(model, x)
    np.testing.assert_allclose(result, run(model, x), rtol=2.0**-11 + 2.0**-18, atol=2.0**-15)
    without = emulate(product_graph(48), np.concatenate([x[..., :3], x[..., :4]], -1))
    assert np.abs(without - run(model, x)[:, :3, :4]).max() > 0.02, "control: without Q/DQ"


@pytest.mark.parametrize("island", [frozenset(), ISLAND])
@pytest.mark.parametrize(("build", "shape"), [(attention, (8, 16)), (convolutions, (8, 12, 12))])
def test_quantized_networks_stay_near_onnx_runtime_in_fp32(build, shape, island):
    model = build(quantized=True)
    x = images(*shape)
    keep = frozenset(island & {n.name for n in model.graph.node})
    result = emulate(model, x, keep=keep)
    assert sqnr_db(run(model, x), result) > 30  # a value near a rounding boundary may get the next code: one step of 127
    assert sqnr_db(run(model, x), 2 * result) < 10
    if build is attention:  # INT8 and float networks agree less well
        assert sqnr_db(run(model, x), result) > sqnr_db(run(build(), x), result)


@pytest.mark.parametrize("accumulate", ["fp16", "fp32"])
@pytest.mark.parametrize("island", [frozenset(), ISLAND])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("build", [attention, convolutions])
def test_a_valid_fp32_graph_with_the_same_ports(build, quantized, island, accumulate):
    model = build(quantized=quantized)
    typed = type_graph(model, keep_fp32=frozenset(island & {n.name for n in model.graph.node}))
    before = typed.SerializeToString(deterministic=True)
    first, second = (emulated_graph(typed, accumulate=accumulate).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert typed.SerializeToString(deterministic=True) == before, "the typed graph is not modified"
    emulated = onnx.load_model_from_string(first)
    onnx.checker.check_model(emulated, full_check=True)
    assert list(emulated.graph.input) == list(model.graph.input)
    assert list(emulated.graph.output) == list(model.graph.output)
    names = [n.name for n in emulated.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    inferred = onnx.shape_inference.infer_shapes(emulated, strict_mode=True).graph
    halves = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    assert halves
    for node in emulated.graph.node:  # FP16 tensors exist only between the two Casts of a pair
        assert node.op_type == "Cast" or not halves & {*node.input, *node.output}
    assert not [t.name for t in emulated.graph.initializer if t.data_type == TensorProto.FLOAT16]


def test_the_two_accumulators_are_two_graphs():
    typed = type_graph(attention())
    assert emulated_graph(typed) == emulated_graph(typed, accumulate="fp16") != emulated_graph(typed, accumulate="fp32")
