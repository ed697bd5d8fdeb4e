"""A joint layer of queries, keys and values becomes one layer for each.

Oracles: the graph as it was, by ONNX's reference evaluator and by ONNX Runtime, and numpy in float64."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import operators, run_text_model, text_model

from calib.calibration_table import CalibrationTable, TensorScale
from calib.errors import MissingError
from calib.qdq_placement import plan_quantization
from calib.qdq_writer import insert_qdq
from edge.onnx_import.split_joint_linear import split_joint_linears
from engines.build_spec import BuildSpec
from engines.layer_requests import graph_facts
from engines.precision_receipt import make_receipt
from engines.rtx_plan_text import read_plan
from engines.targets import TARGETS
from engines.trt.api import load
from engines.trt.rtx_backend import build_plan
from engines.typed_graph import type_graph

TOKENS, WIDTH, HEADS, DIM = 5, 8, 2, 3
CHANNELS = 3 * HEADS * DIM
INTEGERS = {
    name: np.array(value, np.int64)
    for name, value in {
        "joint": [0, TOKENS, 3, HEADS, DIM],
        "rows": [-1, WIDTH],
        "flat": [-1, CHANNELS],
        "back": [-1, TOKENS, 3, HEADS, DIM],
        "inferred": [0, TOKENS, -1, HEADS, DIM],
        "per_head": [0, TOKENS, HEADS, 3 * DIM],
        "heads": [0, TOKENS, HEADS, DIM],
        "merged": [-1, TOKENS, DIM],
        "unmerged": [-1, HEADS, DIM, TOKENS],
        "crossed": [0, 9, 10],
        "i0": 0,
        "i1": 1,
        "i2": -1,
        "axis0": [0],
        "axis2": [2],
        "n0": [0],
        "n1": [1],
        "n4": [4],
        "n6": [HEADS * DIM],
        "n12": [2 * HEADS * DIM],
        "end": [2**62],
        "thirds": [DIM, DIM, DIM],
        "chunks": [HEADS * DIM, HEADS * DIM, HEADS * DIM],
        "uneven": [TOKENS, 6, CHANNELS - 6 - TOKENS],
        "queries": [HEADS * DIM, 2 * HEADS * DIM],
        "halves": [HEADS * DIM, HEADS * DIM],
    }.items()
}


def draw(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


FLOATS = {"w": draw(WIDTH, CHANNELS), "wt": draw(CHANNELS, WIDTH), "b": draw(CHANNELS), "b5": draw(3, HEADS, DIM), "c": 0.3}
ATTENTION = "kt = Transpose<perm = [0, 1, 3, 2]>(k) s = Mul(q, c) l = MatMul(s, kt) y = MatMul(l, v)"
GATHERED = f"q = Gather<axis = 0>(t, i0) k = Gather<axis = 0>(t, i1) v = Gather<axis = 0>(t, i2) {ATTENTION}"
FLAT = "kt = Transpose<perm = [0, 2, 1]>(k) l = MatMul(q, kt) y = MatMul(l, v)"
HEADED = "r = Reshape({}, joint) t = Transpose<perm = [2, 0, 3, 1, 4]>(r) "
SPLIT_5D = (
    "c0, d0, e0 = Split<axis = 0, num_outputs = 3>(t) q = Squeeze(c0, axis0) k = Squeeze(d0, axis0) v = Squeeze(e0, axis0) "
)
JOINT = {
    "gather": "m = MatMul(x, w) a = Add(b, m) " + HEADED.format("a") + GATHERED,
    "split": "m = MatMul(x, w) a = Add(m, b) " + HEADED.format("a") + SPLIT_5D + ATTENTION,
    "no bias": "m = MatMul(x, w) " + HEADED.format("m") + GATHERED,
    "bias after layout": "m = MatMul(x, w) r = Reshape(m, joint) a = Add(r, b5) "
    f"t = Transpose<perm = [2, 0, 3, 1, 4]>(a) {GATHERED}",
    "gemm": "f = Reshape(x, rows) m = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, wt, b) r = Reshape(m, back) "
    f"t = Transpose<perm = [2, 0, 3, 1, 4]>(r) {GATHERED}",
    "two reshapes": "m = MatMul(x, w) f = Reshape(m, flat) r = Reshape(f, back) "
    f"t = Transpose<perm = [2, 0, 3, 1, 4]>(r) {GATHERED}",
    "inferred size": f"m = MatMul(x, w) r = Reshape(m, inferred) t = Transpose<perm = [2, 0, 3, 1, 4]>(r) {GATHERED}",
    "chunks": f"m = MatMul(x, w) a = Add(m, b) q, k, v = Split<axis = -1>(a, chunks) {FLAT}",
    "slices": "m = MatMul(x, w) q = Slice(m, n0, n6, axis2) k = Slice(m, n6, n12, axis2) v = Slice(m, n12, end, axis2, n1) "
    + FLAT,
    "nested": f"m = MatMul(x, w) a = Add(m, b) q, kv = Split<axis = 2>(a, queries) k, v = Split<axis = 2>(kv, halves) {FLAT}",
    "uneven": "m = MatMul(x, w) q, k, v = Split<axis = 2>(m, uneven) qt = Transpose<perm = [0, 2, 1]>(q) "
    "kt = Transpose<perm = [0, 2, 1]>(k) l = MatMul(qt, k) n = MatMul(kt, v) y = MatMul(l, n)",
    "heads after chunks": "m = MatMul(x, w) q, k, v = Split<axis = 2>(m, chunks) q4 = Reshape(q, heads) k4 = Reshape(k, heads) "
    "v4 = Reshape(v, heads) kt = Transpose<perm = [0, 2, 3, 1]>(k4) qt = Transpose<perm = [0, 2, 1, 3]>(q4) "
    "vt = Transpose<perm = [0, 2, 1, 3]>(v4) l = MatMul(qt, kt) y = MatMul(l, vt)",
}


def joint_model(body, shape=(2, TOKENS, WIDTH)):
    return text_model(body, shape, **INTEGERS, **FLOATS)


def divided_copy(model, x):
    """A rewritten copy, whose output is that of the model for two batch sizes, and the places."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    places = split_joint_linears(copy)
    onnx.checker.check_model(copy, full_check=True)
    for images in (x, x[:1]):
        for runtime in ("reference", "onnxruntime"):
            expected = run_text_model(model, images, runtime)
            assert np.abs(run_text_model(copy, images, runtime) - expected).max() <= 1e-5 * np.abs(expected).max()
    return copy, places


@pytest.mark.parametrize("kind", JOINT)
def test_each_operand_of_attention_gets_a_layer_of_its_own(kind):
    copy, places = divided_copy(joint_model(JOINT[kind]), draw(2, TOKENS, WIDTH))
    layers = [node for node in copy.graph.node if node.name.startswith("m/part")]
    assert [node.op_type for node in layers] == ["Gemm" if kind == "gemm" else "MatMul"] * 3
    assert not {"Split", "Gather", "Slice"} & set(operators(copy))
    weights = {tensor.name: tensor.dims for tensor in copy.graph.initializer}
    assert sum(weights[node.input[1]][0 if kind == "gemm" else 1] for node in layers) == CHANNELS
    assert not {"w", "wt"} & set(weights), "the joint weight is gone"
    assert [place.node for place in places] == (["m", "m/part_1"] if kind == "nested" else ["m"])


def test_the_columns_are_those_of_the_joint_weight():
    copy, (place,) = divided_copy(joint_model(JOINT["gather"]), draw(2, TOKENS, WIDTH))
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    assert place.into == "m/part_0"
    for number in range(3):
        layer, bias = (next(node for node in copy.graph.node if node.name == f"{name}/part_{number}") for name in "ma")
        block = slice(number * HEADS * DIM, (number + 1) * HEADS * DIM)
        assert np.array_equal(values[layer.input[1]], FLOATS["w"][:, block])
        assert np.array_equal(values[bias.input[0]], FLOATS["b"][block])


LEFT = {
    "interleaved": "m = MatMul(x, w) r = Reshape(m, per_head) t = Transpose<perm = [0, 2, 1, 3]>(r) "
    f"q, k, v = Split<axis = 3>(t, thirds) {ATTENTION}",
    "normalized": "m = MatMul(x, w) q, k, v0 = Split<axis = 2>(m, chunks) v = Tanh(v0) " + FLAT,
    "no product": "m = MatMul(x, w) q, k, v = Split<axis = 2>(m, chunks) g = Mul(q, k) y = Add(g, v)",
    "reshaped again": "m = MatMul(x, w) " + HEADED.format("m") + "q = Gather<axis = 0>(t, i0) k = Gather<axis = 0>(t, i1) "
    "v = Gather<axis = 0>(t, i2) k3 = Reshape(k, merged) k4 = Transpose<perm = [0, 2, 1]>(k3) kt = Reshape(k4, unmerged) "
    "l = MatMul(q, kt) y = MatMul(l, v)",
    "an output, too": "m = MatMul(x, w) q, k, y = Split<axis = 2>(m, chunks) kt = Transpose<perm = [0, 2, 1]>(k) "
    "l = MatMul(q, kt)",
    "product with a weight": "m = MatMul(x, w) q, k, v = Split<axis = 2>(m, chunks) p = MatMul(v, w6) kt = Transpose"
    "<perm = [0, 2, 1]>(k) l = MatMul(q, kt) y = MatMul(l, p)",
    "another reader": "m = MatMul(x, w) q, k, v = Split<axis = 2>(m, chunks) h = ReduceSum<keepdims = 1>(m, axis2) "
    "kt = Transpose<perm = [0, 2, 1]>(k) l = MatMul(q, kt) o = MatMul(l, v) y = Add(o, h)",
    "along the tokens": "m = MatMul(x, w) q = Slice(m, n0, n1, n1) k = Slice(m, n1, n4, n1) "
    "kt = Transpose<perm = [0, 2, 1]>(k) y = MatMul(q, kt)",
    "overlapping": "m = MatMul(x, w) q = Slice(m, n0, n6, axis2) k = Slice(m, n4, n6, axis2) "
    "kt = Transpose<perm = [0, 2, 1]>(k) y = MatMul(kt, q)",
    "one reader": "m = MatMul(x, w) q = Slice(m, n0, n6, axis2) kt = Transpose<perm = [0, 2, 1]>(q) y = MatMul(q, kt)",
    "two axes": "m = MatMul(x, w) q = Slice(m, n0, n1, axis2) k = Slice(m, n0, n1, n1) y = MatMul(q, k)",
    "an activation between": f"m = MatMul(x, w) a = Relu(m) q, k, v = Split<axis = 2>(a, chunks) {FLAT}",
    "not a factor": "m = MatMul(x, w) r = Reshape(m, crossed) q, k = Split<axis = 2, num_outputs = 2>(r) "
    "kt = Transpose<perm = [0, 2, 1]>(k) y = MatMul(q, kt)",
}


@pytest.mark.parametrize("kind", LEFT)
def test_other_graphs_are_left_as_they_are(kind):
    model = text_model(LEFT[kind], (2, TOKENS, WIDTH), **INTEGERS, **FLOATS, w6=draw(HEADS * DIM, HEADS * DIM))
    before = model.SerializeToString()
    assert split_joint_linears(model) == []
    assert model.SerializeToString() == before


def test_a_convolution_is_left():
    body = "m = Conv(x, wc) q, k, v = Split<axis = 1, num_outputs = 3>(m) l = MatMul(q, k) y = MatMul(l, v)"
    model = text_model(body, (2, WIDTH, 4, 4), wc=draw(6, WIDTH, 1, 1))
    assert split_joint_linears(model) == []


def int8_share(model):
    """INT8 share of the TensorRT-RTX engine of a float graph, every activation on one scale."""
    plan = plan_quantization(model)
    scales = {tensor: TensorScale.from_amax(4.0, tensor, "minmax") for tensor in plan.activations}
    typed = type_graph(insert_qdq(model, CalibrationTable(*("0" * 64,) * 2, 32, "minmax", scales), plan))
    facts = graph_facts(typed)
    spec = BuildSpec(Path("graph.onnx"), TARGETS["rtx"], "int8")
    engine = build_plan(spec, typed.SerializeToString(), lambda _share: None).data
    return make_receipt(facts.layers, read_plan(engine, frozenset(facts.traceable)), "int8").int8_mac_fraction


@pytest.mark.slow
def test_tensorrt_rtx_runs_separate_layers_in_int8_and_the_joint_one_in_float():
    """Should the first figure become 1, TensorRT-RTX no longer needs this rewriter."""
    try:
        load("rtx")
    except MissingError as missing:
        pytest.skip(str(missing))
    shapes = {"joint": np.array([0, 64, 3, 2, 32]), "joined": np.array([0, 64, 64]), "i2": np.array(2)}
    weights = {"w": draw(64, 192), "b": draw(192), "wo": draw(64, 64)}
    attention = GATHERED.replace("y = MatMul(l, v)", "p = Softmax<axis = -1>(l) o = MatMul(p, v)")
    output = "ot = Transpose<perm = [0, 2, 1, 3]>(o) j = Reshape(ot, joined) h = MatMul(j, wo) y = Add(h, x)"
    body = f"m = MatMul(x, w) a = Add(m, b) {HEADED.format('a')} {attention} {output}"
    model = text_model(body, (1, 64, 64), **INTEGERS | shapes, **weights, c=0.125)
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    split_joint_linears(copy)
    assert int8_share(model) == pytest.approx(0.5)  # the joint layer has 3 / 6 of the MACs
    assert int8_share(copy) == 1.0
