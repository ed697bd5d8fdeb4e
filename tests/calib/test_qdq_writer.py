"""Oracles: ONNX Runtime's own QuantizeLinear, ONNX's reference evaluator, fake quantization in numpy float64."""

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from calib.calibration_table import CalibrationTable, TensorScale
from calib.collect import CollectConfig, collect_table
from calib.errors import ArtifactError, GraphError
from calib.lint import lint_graph
from calib.metrics import sqnr_db
from calib.qdq_placement import QuantPlan, QuantPoint, QuantScheme, plan_quantization
from calib.qdq_writer import insert_qdq, quantize_weight, read_qdq, serialize


def run(model, images):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture
def plan(tiny):
    return plan_quantization(tiny)


@pytest.fixture
def table(tiny_path, images, plan):
    return collect_table(tiny_path, [images], plan, data_sha256="d", config=CollectConfig("minmax"))


@pytest.fixture
def quantized(tiny, table, plan):
    return insert_qdq(tiny, table, plan)


def initializers(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_the_graph_is_valid_and_close_to_the_float_graph(tiny, quantized, images):
    onnx.checker.check_model(quantized, full_check=True)
    assert lint_graph(quantized) == ()
    reference = run(tiny, images)
    assert 25 < sqnr_db(reference, run(quantized, images)) < 60


def test_onnx_reference_evaluator_agrees_with_onnx_runtime(quantized, images):
    reference = ReferenceEvaluator(quantized).run(None, {"image": images})[0]
    assert sqnr_db(reference, run(quantized, images)) > 35


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_wrong_scales_are_seen_in_the_result(tiny, table, plan, images, quantized, factor):
    tensors = {n: TensorScale.from_amax(t.amax * factor, n, "minmax") for n, t in table.tensors.items()}
    spoiled = insert_qdq(tiny, dataclasses.replace(table, tensors=tensors), plan)
    reference = run(tiny, images)
    assert sqnr_db(reference, run(spoiled, images)) < sqnr_db(reference, run(quantized, images)) - 3


def test_the_same_inputs_give_the_same_bytes(tiny, table, plan, quantized):
    before = serialize(tiny)
    assert serialize(insert_qdq(tiny, table, plan)) == serialize(quantized)
    assert serialize(tiny) == before, "the float model is left alone"
    shuffled = dataclasses.replace(table, tensors=dict(reversed(table.tensors.items())))
    assert serialize(insert_qdq(tiny, shuffled, plan)) == serialize(quantized)


def test_one_pair_serves_all_quantized_consumers_and_no_others(quantized):
    nodes = {n.output[0]: n for n in quantized.graph.node}
    assert sum(n.op_type == "QuantizeLinear" and n.input[0] == "ln" for n in quantized.graph.node) == 1
    for output in ("k0", "v1", "a"):
        assert nodes[output].input[0] == "ln_dequantized"
    assert nodes["ln"].input[0] == "x", "LayerNorm reads the raw tensor"
    assert list(nodes["x1"].input) == ["x", "a"], "so does the residual addition"
    assert nodes["norm"].input[0] == "kv", "so does the norm"


def test_weights_are_int8_constants_and_their_float_originals_are_gone(quantized):
    constants = initializers(quantized)
    for name, axis in (("w_stem", 0), ("w_dw", 0), ("w_k", 1), ("w_v", 1), ("w_head", 0)):
        assert name not in constants
        values, scales = constants[f"{name}_quantized"], constants[f"{name}_scale"]
        assert values.dtype == np.int8
        assert values.min() >= -127
        assert scales.shape == (values.shape[axis],)
        np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)
    assert constants["b_dw"].dtype == np.float32, "biases stay float"
    assert not any(v.dtype == np.int32 for v in constants.values())


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_quantization_is_onnx_runtimes(make_model, axis):
    weight = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    values, scales = quantize_weight(weight, axis, "w")
    model = make_model(
        [h.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=axis)],
        {"s": scales, "z": np.zeros(scales.shape, np.int8)},
        [("x", T.FLOAT, [16, 24])],
        [("y", T.INT8, [16, 24])],
    )
    np.testing.assert_array_equal(values, run(model, weight))
    error = np.abs(weight - values * np.expand_dims(scales, 1 - axis))
    assert np.all(error <= np.expand_dims(scales, 1 - axis) / 2 * (1 + 1e-6))


def test_dead_channels_stay_zero():
    values, scales = quantize_weight(np.diag([1.0, 0.0, 2.0]).astype(np.float32), 1, "w")
    assert np.all(values[:, 1] == 0)
    assert np.all(scales > 0)


def test_a_linear_layer_is_fake_quantization_to_the_letter(make_model):
    rng = np.random.default_rng(3)
    weight, x = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=(7, 8)).astype(np.float32)
    nodes = [h.make_node("MatMul", ["x", "w"], ["y"], name="mm")]
    model = make_model(nodes, {"w": weight}, [("x", T.FLOAT, ["batch", 8])], [("y", T.FLOAT, ["batch", 5])])
    scale = TensorScale.from_amax(1.5, "x", "mse")  # clips part of a normal distribution
    table = CalibrationTable("g", "d", 1, "mse", {"x": scale})
    found = ReferenceEvaluator(insert_qdq(model, table, plan_quantization(model))).run(None, {"x": x})[0]

    step_w = np.array([np.float16(v) for v in np.abs(weight).max(axis=0) / 127])
    step_w = np.where(step_w.astype(float) < np.abs(weight).max(axis=0) / 127, np.nextafter(step_w, np.float16(9)), step_w)
    step_w = step_w.astype(float)
    x_q = np.clip(np.rint(x / np.float64(scale.scale)), -128, 127) * scale.scale
    w_q = np.clip(np.rint(weight / step_w), -127, 127) * step_w
    np.testing.assert_allclose(found, x_q @ w_q, rtol=1e-5, atol=1e-5)


def test_reading_back_gives_what_was_written(quantized, table, plan):
    found = read_qdq(quantized)
    for name in plan.activations:
        info = found[name]
        assert (info.kind, info.scale) == ("activation", (table.tensors[name].scale,))
    weights = {name for name, info in found.items() if info.kind == "weight"}
    assert weights == {f"{w}_quantized" for w in ("w_stem", "w_dw", "w_k", "w_v", "w_head")}
    assert len(found["w_k_quantized"].scale) == 8


def test_a_missing_scale_is_refused_by_name(tiny, table, plan):
    del table.tensors["kt"]
    with pytest.raises(ArtifactError, match=r"no scale[\s\S]*1 tensors: kt[\s\S]*ufovit build"):
        insert_qdq(tiny, table, plan)


def test_a_plan_of_another_graph_is_refused(tiny, table):
    for point in (
        QuantPoint("nowhere", 0, "ln", "activation"),
        QuantPoint("attn.k/MatMul", 1, "ln", "activation"),
        QuantPoint("attn.k/MatMul", 0, "ln", "weight", 1),
        QuantPoint("attn.k/MatMul", 9, "ln", "activation"),
    ):
        with pytest.raises(GraphError, match="another graph"):
            insert_qdq(tiny, table, QuantPlan((point,)))


def test_synthetic_tables_stamp_the_graph(tiny, table, plan, quantized):
    stamps = {p.key: p.value for p in quantized.metadata_props}
    assert stamps == {"calib.method": "minmax", "calib.onnx_sha256": table.onnx_sha256}
    stamped = insert_qdq(tiny, dataclasses.replace(table, synthetic=True), plan)
    assert {p.key: p.value for p in stamped.metadata_props}["calib.synthetic"] == "true"


def test_excluded_nodes_keep_their_float_weights(tiny, table, images):
    plan = plan_quantization(tiny, QuantScheme(exclude=("attn.k/*",)))
    model = insert_qdq(tiny, table, plan)
    assert "w_k" in initializers(model)
    assert next(n for n in model.graph.node if n.output[0] == "k0").input[0] == "ln"
    assert lint_graph(model) == ()
    run(model, images)


def test_a_weight_with_two_readers_is_quantized_once_and_kept_for_the_float_one(make_model):
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"], name="m1"),
        h.make_node("MatMul", ["a", "w"], ["b"], name="m2"),
        h.make_node("Gemm", ["b", "w"], ["c"], name="g", transB=1),
        h.make_node("Add", ["c", "w"], ["y"], name="float_reader"),
    ]
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    model = make_model(nodes, {"w": weight}, [("x", T.FLOAT, [4, 4])], [("y", T.FLOAT, [4, 4])])
    tensors = {n: TensorScale.from_amax(20.0, n, "minmax") for n in ("x", "a", "b")}
    quantized = insert_qdq(model, CalibrationTable("g", "d", 1, "minmax", tensors), plan_quantization(model))
    onnx.checker.check_model(quantized, full_check=True)
    weights = [n for n in quantized.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("w")]
    assert [next(a.i for a in n.attribute) for n in weights] == [1, 0], "one per axis, not one per reader"
    assert "w" in initializers(quantized)


def test_names_that_are_taken_are_avoided(make_model):
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["x_quantized"], name="mm"),
        h.make_node("Relu", ["x_quantized"], ["w_scale"], name="x/QuantizeLinear"),
    ]
    model = make_model(nodes, {"w": np.eye(3, dtype=np.float32)}, [("x", T.FLOAT, [2, 3])], [("w_scale", T.FLOAT, [2, 3])])
    table = CalibrationTable("g", "d", 1, "minmax", {"x": TensorScale.from_amax(1.0, "x", "minmax")})
    quantized = insert_qdq(model, table, plan_quantization(model))
    onnx.checker.check_model(quantized, full_check=True)
    x = np.array([[0.5, -1, 1]] * 2, np.float32)
    np.testing.assert_allclose(run(quantized, x), np.maximum(x, 0), atol=0.01)


def test_constant_nodes_give_way_like_initializers(make_model):
    constant = h.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.eye(3, dtype=np.float32)))
    nodes = [constant, h.make_node("MatMul", ["x", "w"], ["y"], name="mm")]
    model = make_model(nodes, {}, [("x", T.FLOAT, [2, 3])], [("y", T.FLOAT, [2, 3])])
    table = CalibrationTable("g", "d", 1, "minmax", {"x": TensorScale.from_amax(1.0, "x", "minmax")})
    quantized = insert_qdq(model, table, plan_quantization(model))
    onnx.checker.check_model(quantized, full_check=True)
    assert not any(n.op_type == "Constant" for n in quantized.graph.node)
