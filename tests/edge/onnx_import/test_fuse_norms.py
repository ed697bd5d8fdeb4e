"""Norms as exporters write them.

Oracle: the formula in float64 numpy, and ONNX's reference evaluator of graph and rewritten graph.

Every table of spellings has its twin of look-alikes, which must be left as they are.
"""

import numpy as np
import onnx
import pytest
from onnx_text import operators, run_text_model, text_model

from edge.onnx_import.fuse_l2_norm import fuse_l2_norms
from edge.onnx_import.fuse_layer_norm import fuse_layer_norms
from edge.onnx_import.fuse_rms_norm import fuse_rms_norms
from edge.stability.finders.xnorm import find_sites

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 8)).astype(np.float32) * 3 + 1
GAIN, BIAS = RNG.standard_normal((2, 8)).astype(np.float32)
EPS = 1e-3
CONSTANTS = {
    "last": np.array([-1], np.int64),
    "axis2": np.array([2], np.int64),
    "axis1": np.array([1], np.int64),
    "trailing": np.array([1, 2], np.int64),
    "gain": GAIN,
    "bias": BIAS,
    "row_gain": np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1),
    "full_gain": RNG.standard_normal((5, 8)).astype(np.float32),
    "eps": EPS,
    "eps1": np.array([EPS], np.float32),
    "root_eps": EPS**0.5,
    "two": 2.0,
    "half": 0.5,
    "minus_half": -0.5,
    "one": 1.0,
    "biased": 1.25,
    "count": 8.0,
    "eighth": 0.125,
    "fewer": 7.0,
}

DEVIATION = "m = ReduceMean(x, last) d = Sub(x, m) "
VARIANCE = DEVIATION + "q = Pow(d, two) v = ReduceMean(q, last) e = Add(v, eps) "
LAYER_NORMS = {
    "Pow Sqrt Div, affine, as TorchScript writes it": VARIANCE + "s = Sqrt(e) u = Div(d, s) g = Mul(u, gain) y = Add(g, bias)",
    "Mul for Pow, constants first": DEVIATION
    + "q = Mul(d, d) v = ReduceMean(q, last) e = Add(eps1, v) s = Sqrt(e) u = Div(d, s) "
    "g = Mul(gain, u) y = Add(bias, g)",
    "Reciprocal": VARIANCE + "s = Sqrt(e) r = Reciprocal(s) u = Mul(d, r) g = Mul(u, gain) y = Add(g, bias)",
    "one over the root": VARIANCE + "s = Sqrt(e) r = Div(one, s) u = Mul(r, d) g = Mul(u, gain) y = Add(g, bias)",
    "Pow with a half": VARIANCE + "s = Pow(e, half) u = Div(d, s) g = Mul(u, gain) y = Add(g, bias)",
    "Pow with minus a half": VARIANCE + "s = Pow(e, minus_half) u = Mul(d, s) g = Mul(u, gain) y = Add(g, bias)",
    "gain on the inverse root": VARIANCE + "s = Sqrt(e) r = Reciprocal(s) t = Mul(r, gain) g = Mul(d, t) y = Add(g, bias)",
    "gain on the deviation": VARIANCE + "s = Sqrt(e) t = Mul(d, gain) g = Div(t, s) y = Add(g, bias)",
    "axes counted from the start": "m = ReduceMean(x, axis2) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axis2) e = "
    "Add(v, eps) "
    "s = Sqrt(e) u = Div(d, s) g = Mul(u, gain) y = Add(g, bias)",
    "deviation computed twice": DEVIATION + "m2 = ReduceMean(x, last) d2 = Sub(x, m2) q = Mul(d2, d2) v = ReduceMean(q, last) "
    "e = Add(v, eps) s = Sqrt(e) u = Div(d, s) g = Mul(u, gain) y = Add(g, bias)",
    "axes dropped and restored": "m0 = ReduceMean<keepdims = 0>(x, last) m = Unsqueeze(m0, last) d = Sub(x, m) q = Mul(d, d) "
    "v = ReduceMean(q, last) e = Add(v, eps) s = Sqrt(e) u = Div(d, s) g = Mul(u, gain) y = Add(g, bias)",
    "Constant nodes": "c = Constant<value = float {0.001}>() p = Constant<value = float {2.0}>() m = ReduceMean(x, "
    "last) d = Sub(x, m) "
    "q = Pow(d, p) v = ReduceMean(q, last) e = Add(v, c) s = Sqrt(e) u = Div(d, s) g = Mul(u, gain) y = Add(g, bias)",
    "Keras: x s + (bias - mean s)": DEVIATION
    + "q = Mul(d, d) v = ReduceMean(q, last) e = Add(v, eps) s = Sqrt(e) r = Reciprocal(s) "
    "t = Mul(r, gain) xs = Mul(x, t) ms = Mul(m, t) b = Sub(bias, ms) y = Add(xs, b)",
}


def layer_norm(x, axes=-1, eps=EPS):
    x = x.astype(np.float64)
    d = x - x.mean(axes, keepdims=True)
    return d / np.sqrt((d**2).mean(axes, keepdims=True) + eps)


def check(model, rewriter, expected, allowed=1e-5, x=X):
    """Rewrites a copy of `model`; the value is kept, and a second run finds nothing. Returns the copy and the places."""
    rewritten = onnx.ModelProto.FromString(model.SerializeToString())
    places = rewriter(rewritten)
    onnx.checker.check_model(rewritten, full_check=True)
    assert np.abs(run_text_model(model, x) - expected).max() < allowed, "the table's own graph"
    for runtime in ("reference", "onnxruntime"):
        assert np.abs(run_text_model(rewritten, x, runtime) - expected).max() < allowed, runtime
    assert np.abs(expected).max() > 0.1
    assert {place.into for place in places} <= {node.name for node in rewritten.graph.node} | {""}
    assert not any(place.into for place in rewriter(rewritten)), "a second run finds nothing"
    return rewritten, places


def is_left(model, rewriter):
    before = model.SerializeToString()
    places = rewriter(model)
    assert model.SerializeToString() == before
    assert not any(place.into for place in places)
    return places


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norm_becomes_one_node(name):
    rewritten, (place,) = check(text_model(LAYER_NORMS[name], **CONSTANTS), fuse_layer_norms, layer_norm(X) * GAIN + BIAS)
    assert operators(rewritten) == ["LayerNormalization"]
    assert (place.kind, place.node, place.into, place.reason) == ("layer_norm", "y", "y/LayerNormalization", "")
    assert len(rewritten.graph.initializer) == 2, "gain and bias; what the pieces read is gone"


NARROW = VARIANCE + "s = Sqrt(e) "
PARTS = {  # body, value, operators that remain
    "no affine": (NARROW + "y = Div(d, s)", layer_norm(X), ["LayerNormalization"]),
    "gain alone": (NARROW + "u = Div(d, s) y = Mul(u, gain)", layer_norm(X) * GAIN, ["LayerNormalization"]),
    "bias alone": (NARROW + "u = Div(d, s) y = Add(u, bias)", layer_norm(X) + BIAS, ["LayerNormalization"]),
    "a gain of one element": (NARROW + "u = Div(d, s) y = Mul(u, two)", layer_norm(X) * 2, ["LayerNormalization"]),
    "no eps": (
        DEVIATION + "q = Mul(d, d) v = ReduceMean(q, last) s = Sqrt(v) y = Div(d, s)",
        layer_norm(X, eps=0),
        ["LayerNormalization"],
    ),
    "a gain per token stays": (
        NARROW + "u = Div(d, s) y = Mul(u, row_gain)",
        layer_norm(X) * np.arange(1, 6).reshape(1, 5, 1),
        ["LayerNormalization", "Mul"],
    ),
    "the gain of another tensor stays": (
        NARROW + "u = Div(d, s) y = Mul(u, x)",
        layer_norm(X) * X,
        ["LayerNormalization", "Mul"],
    ),
    "normalized, and read before its affine too": (
        NARROW + "u = Div(d, s) g = Mul(u, gain) y = Sub(g, u)",
        layer_norm(X) * GAIN - layer_norm(X),
        ["LayerNormalization", "LayerNormalization", "Sub"],
    ),
    "the mean is read elsewhere: it stays": (
        NARROW + "u = Div(d, s) y = Add(u, m)",
        layer_norm(X) + X.mean(-1, keepdims=True),
        ["ReduceMean", "LayerNormalization", "Add"],
    ),
    "two trailing axes": (
        "m = ReduceMean(x, trailing) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, trailing) e = Add(v, eps) s = Sqrt(e) "
        "u = Div(d, s) y = Mul(u, full_gain)",
        layer_norm(X, (1, 2)) * CONSTANTS["full_gain"],
        ["LayerNormalization"],
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_surrounds_a_layer_norm_stays(name):
    body, value, left = PARTS[name]
    rewritten, _ = check(text_model(body, **CONSTANTS), fuse_layer_norms, value)
    assert operators(rewritten) == left


NOT_LAYER_NORMS = {
    "variance over another axis": DEVIATION
    + "q = Mul(d, d) v = ReduceMean(q, axis1) e = Add(v, eps) s = Sqrt(e) y = Div(d, s)",
    "mean over another axis": "m = ReduceMean(x, axis1) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, last) e = Add(v, "
    "eps) s = Sqrt(e) "
    "y = Div(d, s)",
    "eps on the root": DEVIATION + "q = Mul(d, d) v = ReduceMean(q, last) s = Sqrt(v) e = Add(s, eps) y = Div(d, e)",
    "no root": VARIANCE + "y = Div(d, e)",
    "variance by N - 1": DEVIATION
    + "q = Mul(d, d) v = ReduceMean(q, last) w = Mul(v, biased) e = Add(w, eps) s = Sqrt(e) y = Div(d, s)",
    "variance of another tensor": DEVIATION
    + "z = Relu(x) q = Mul(z, z) v = ReduceMean(q, last) e = Add(v, eps) s = Sqrt(e) y = Div(d, s)",
    "sum of the squares": DEVIATION + "q = Mul(d, d) v = ReduceSum(q, last) e = Add(v, eps) s = Sqrt(e) y = Div(d, s)",
    "the tensor, not its deviation": VARIANCE + "s = Sqrt(e) y = Div(x, s)",
    "mean minus x": "m = ReduceMean(x, last) d = Sub(m, x) q = Mul(d, d) v = ReduceMean(q, last) e = Add(v, eps) s = "
    "Sqrt(e) y = Div(d, s)",
    "square replaced": VARIANCE.replace("two", "half") + "s = Sqrt(e) y = Div(d, s)",
}


@pytest.mark.parametrize("name", NOT_LAYER_NORMS)
def test_a_look_alike_of_layer_norm_is_left(name):
    assert is_left(text_model(NOT_LAYER_NORMS[name], **CONSTANTS), fuse_layer_norms) == []


def test_a_layer_norm_over_leading_axes_is_named():
    body = NARROW.replace("last", "axis1") + "u = Div(d, s) y = Mul(u, gain)"
    (place,) = is_left(text_model(body, **CONSTANTS), fuse_layer_norms)
    assert (place.node, place.into) == ("u", "")
    assert place.reason == "it normalizes axes [-2], and LayerNormalization takes trailing axes alone"


# RMS normalization


RMS = "q = Mul(x, x) v = ReduceMean(q, last) e = Add(v, eps) "
RMS_NORMS = {
    "Sqrt Div": RMS + "s = Sqrt(e) u = Div(x, s) y = Mul(u, gain)",
    "Reciprocal Mul, gain first": RMS + "s = Sqrt(e) r = Reciprocal(s) u = Mul(x, r) y = Mul(gain, u)",
    "Pow": "q = Pow(x, two) v = ReduceMean(q, last) e = Add(eps, v) r = Pow(e, minus_half) u = Mul(r, x) y = Mul(u, gain)",
    "gain on the root": RMS + "s = Sqrt(e) r = Div(gain, s) y = Mul(x, r)",
    "ReduceSumSquare by a count": "v = ReduceSumSquare(x, last) m = Div(v, count) e = Add(m, eps) s = Sqrt(e) u = Div(x, s) "
    "y = Mul(u, gain)",
    "sum by a count": "q = Mul(x, x) v = ReduceSum(q, last) m = Mul(eighth, v) e = Add(m, eps) r = Pow(e, minus_half) "
    "u = Mul(r, x) y = Mul(u, gain)",
}


def rms_norm(x, eps=EPS):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e3])
@pytest.mark.parametrize("name", RMS_NORMS)
def test_rms_norm_is_computed_by_reduce_l2(name, scale):
    x = X * np.float32(scale)
    rewritten, _ = check(text_model(RMS_NORMS[name], **CONSTANTS), fuse_rms_norms, rms_norm(x) * GAIN, x=x)
    assert operators(rewritten) == ["ReduceL2", "Mul", "Pad", "ReduceL2", "Div", "Mul"]


def test_rms_norm_in_fp16_survives_what_overflows_as_written():
    """Every tensor float16, in ONNX's reference evaluator: squares of 400 overflow, the norm of 400s does not."""
    x, model = X * np.float32(400), text_model(RMS_NORMS["Sqrt Div"], **CONSTANTS)
    rewritten, _ = check(model, fuse_rms_norms, rms_norm(x) * GAIN, x=x)
    error = [
        np.abs(run_text_model(half_precision(m), x.astype(np.float16)) - rms_norm(x) * GAIN).max() for m in (model, rewritten)
    ]
    assert error[0] > 0.5
    assert error[1] < 0.01


def half_precision(model):
    """Every tensor float16, but for the reductions' sums, which are computed in float32 as TensorRT does for ReduceL2."""
    half = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    nodes = []
    for node in half.graph.node:
        if node.op_type == "ReduceL2":
            nodes.append(onnx.helper.make_node("Cast", [node.input[0]], [f"{node.name}/wide"], to=onnx.TensorProto.FLOAT))
            wide = onnx.helper.make_node("ReduceL2", [f"{node.name}/wide", node.input[1]], [f"{node.name}/sum"])
            nodes += [wide, onnx.helper.make_node("Cast", [f"{node.name}/sum"], node.output, to=onnx.TensorProto.FLOAT16)]
        else:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del half.graph.node[:]
    half.graph.node.extend(copies)
    return half


def test_what_is_left_of_a_layer_norm_over_channels_is_an_rms_norm_of_the_deviation():
    body = NARROW.replace("last", "axis1") + "u = Div(d, s) y = Mul(u, row_gain)"
    value = layer_norm(X, 1) * np.arange(1, 6).reshape(1, 5, 1)
    rewritten, _ = check(text_model(body, **CONSTANTS), fuse_rms_norms, value)
    assert operators(rewritten) == ["ReduceMean", "Sub", "ReduceL2", "Mul", "Pad", "ReduceL2", "Div", "Mul"]


NOT_RMS_NORMS = {
    "no root": RMS + "y = Div(x, e)",
    "another tensor": RMS + "s = Sqrt(e) z = Relu(x) y = Div(z, s)",
    "eps on the root": "q = Mul(x, x) v = ReduceMean(q, last) s = Sqrt(v) e = Add(s, eps) y = Div(x, e)",
    "a sum": RMS.replace("ReduceMean", "ReduceSum") + "s = Sqrt(e) y = Div(x, s)",
}


@pytest.mark.parametrize("name", NOT_RMS_NORMS)
def test_a_look_alike_of_rms_norm_is_left(name):
    assert is_left(text_model(NOT_RMS_NORMS[name], **CONSTANTS), fuse_rms_norms) == []


# L2 norms


SQUARES = "q = Mul(x, x) s = ReduceSum(q, last) "
CLAMPED, ADDED = ["ReduceL2", "Clip", "Div"], ["Mul", "ReduceSum", "Add", "Sqrt", "Div"]
L2_NORMS = {  # body, eps, operators that remain
    "Sqrt ReduceSum Mul": (SQUARES + "n = Sqrt(s) y = Div(x, n)", None, ["ReduceL2", "Div"]),
    "Pow Pow": ("q = Pow(x, two) s = ReduceSum(q, last) n = Pow(s, half) y = Div(x, n)", None, ["ReduceL2", "Div"]),
    "ReduceSumSquare": ("s = ReduceSumSquare(x, last) n = Sqrt(s) y = Div(x, n)", None, ["ReduceL2", "Div"]),
    "rsqrt": (SQUARES + "n = Sqrt(s) r = Reciprocal(n) y = Mul(x, r)", None, ["ReduceL2", "Div"]),
    "one over the norm": (SQUARES + "n = Sqrt(s) r = Div(one, n) y = Mul(r, x)", None, ["ReduceL2", "Div"]),
    "Pow with minus a half": (SQUARES + "r = Pow(s, minus_half) y = Mul(x, r)", None, ["ReduceL2", "Div"]),
    "ReduceL2 and Reciprocal": ("n = ReduceL2(x, last) r = Reciprocal(n) y = Mul(x, r)", None, ["ReduceL2", "Div"]),
    "axes dropped and restored": (
        "n0 = ReduceL2<keepdims = 0>(x, last) n = Unsqueeze(n0, last) y = Div(x, n)",
        None,
        ["ReduceL2", "Div"],
    ),
    "F.normalize": (
        "n = ReduceL2(x, last) c = Clip(n, eps) h = Shape(x) w = Expand(c, h) y = Div(x, w)",
        ("clamp", "norm"),
        CLAMPED,
    ),
    "Max": (SQUARES + "n = Sqrt(s) c = Max(n, eps) y = Div(x, c)", ("clamp", "norm"), ["ReduceL2", "Max", "Div"]),
    "clamp on the square": (SQUARES + "c = Clip(s, eps) n = Sqrt(c) y = Div(x, n)", ("clamp", "square"), CLAMPED),
    "Max on the square, rsqrt": (
        SQUARES + "c = Max(eps, s) n = Sqrt(c) r = Reciprocal(n) y = Mul(x, r)",
        ("clamp", "square"),
        CLAMPED,
    ),
    "added to the norm": (SQUARES + "n = Sqrt(s) c = Add(n, eps) y = Div(x, c)", ("added", "norm"), ["ReduceL2", "Add", "Div"]),
    "added to the square": (
        SQUARES + "c = Add(s, eps) n = Sqrt(c) r = Reciprocal(n) y = Mul(x, r)",
        ("added", "square"),
        ADDED,
    ),
    "added, Pow": (SQUARES + "c = Add(s, eps) r = Pow(c, minus_half) y = Mul(x, r)", ("added", "square"), ADDED),
    "added, Pow a half": (SQUARES + "c = Add(s, eps) n = Pow(c, half) y = Div(x, n)", ("added", "square"), ADDED),
}


def l2_norm(x, eps, gain=1.0):
    total = (x.astype(np.float64) ** 2).sum(-1, keepdims=True)
    total += EPS if eps == ("added", "square") else 0
    total = np.maximum(total, EPS) if eps == ("clamp", "square") else total
    norm = np.sqrt(total) + (EPS if eps == ("added", "norm") else 0)
    return x * gain / (np.maximum(norm, EPS) if eps == ("clamp", "norm") else norm)


@pytest.mark.parametrize("name", L2_NORMS)
def test_l2_norm_is_written_as_our_own_export_writes_it(name):
    body, eps, left = L2_NORMS[name]
    x = X * 1e-3 if eps else X
    rewritten, _ = check(text_model(body, **CONSTANTS), fuse_l2_norms, l2_norm(x, eps), x=x)
    assert operators(rewritten) == left
    (site,) = find_sites(rewritten)
    assert (site.argument, site.output, site.axis) == ("x", "y", -1)
    moved = ("clamp", "norm") if eps == ("clamp", "square") else eps
    assert [(e.kind, e.acts_on) for e in site.eps] == ([moved] if moved else []), "an eps keeps its kind, and none is made up"


DEVIATES = DEVIATION + "v = ReduceSumSquare(d, last) "
ROOTS = {  # of sums of squares that are scaled: body, value, operators that remain
    "root of a mean": ("q = Mul(x, x) v = ReduceMean(q, last) y = Sqrt(v)", 8**-0.5, ["ReduceL2", "Mul"]),
    "Pow with a half": ("q = Mul(x, x) v = ReduceMean(q, last) y = Pow(v, half)", 8**-0.5, ["ReduceL2", "Mul"]),
    "clamped": (
        "v = ReduceSumSquare(x, last) k = Mul(v, eighth) c = Max(k, eps) y = Sqrt(c)",
        8**-0.5,
        ["ReduceL2", "Mul", "Clip"],
    ),
    "by N - 1": ("v = ReduceSumSquare(x, last) k = Div(v, fewer) y = Sqrt(k)", 7**-0.5, ["ReduceL2", "Mul"]),
}


@pytest.mark.parametrize("name", ROOTS)
def test_the_root_of_a_scaled_sum_of_squares_is_a_scaled_norm(name):
    body, scale, left = ROOTS[name]
    value = np.linalg.norm(X.astype(np.float64), axis=-1, keepdims=True) * scale
    rewritten, _ = check(text_model(body, **CONSTANTS), fuse_l2_norms, value)
    assert operators(rewritten) == left


def test_a_root_mean_square_that_divides_is_an_l2_norm_with_a_gain():
    body = "q = Mul(x, x) v = ReduceMean(q, last) n = Sqrt(v) y = Div(x, n)"
    rewritten, _ = check(text_model(body, **CONSTANTS), fuse_l2_norms, rms_norm(X, 0.0))
    assert operators(rewritten) == ["ReduceL2", "Div", "Mul"]
    assert len(find_sites(rewritten)) == 1


def test_an_eps_on_the_standard_deviation_is_kept():
    body = DEVIATES + "k = Div(v, fewer) n = Sqrt(k) g = Add(n, eps) y = Div(d, g)"
    centred = X - X.astype(np.float64).mean(-1, keepdims=True)
    rewritten, _ = check(text_model(body, **CONSTANTS), fuse_l2_norms, centred / (centred.std(-1, keepdims=True, ddof=1) + EPS))
    assert operators(rewritten) == ["ReduceMean", "Sub", "ReduceL2", "Mul", "Add", "Div"]


GAINS = {
    "before the norm": SQUARES + "n = Sqrt(s) g = Mul(x, row_gain) y = Div(g, n)",
    "before, gain first": "n = ReduceL2(x, last) g = Mul(row_gain, x) y = Div(g, n)",
    "between": "n = ReduceL2(x, last) r = Reciprocal(n) t = Mul(r, row_gain) y = Mul(x, t)",
    "over the norm": "n = ReduceL2(x, last) t = Div(row_gain, n) y = Mul(t, x)",
    "after": "n = ReduceL2(x, last) u = Div(x, n) y = Mul(u, row_gain)",
}


@pytest.mark.parametrize("name", GAINS)
def test_the_gain_of_an_xnorm_moves_after_the_division(name):
    value = l2_norm(X, None, CONSTANTS["row_gain"])
    rewritten, places = check(text_model(GAINS[name], **CONSTANTS), fuse_l2_norms, value)
    assert operators(rewritten) == ["ReduceL2", "Div", "Mul"]
    assert len(find_sites(rewritten)) == 1
    assert bool(places) == (name != "after"), "our own form is left alone"


def test_the_norms_of_cosine_similarity():
    body = (
        "z = Relu(x) p = Mul(x, z) c = ReduceSum<keepdims = 0>(p, last) a = Mul(x, x) s1 = ReduceSum<keepdims = 0>(a, last) "
        "b = Mul(z, z) s2 = ReduceSum<keepdims = 0>(b, last) m = Mul(s1, s2) n = Sqrt(m) g = Max(n, eps) y = Div(c, g)"
    )
    z = np.maximum(X, 0).astype(np.float64)
    value = (X * z).sum(-1) / (np.linalg.norm(X, axis=-1) * np.linalg.norm(z, axis=-1))
    rewritten, _ = check(text_model(body, **CONSTANTS), fuse_l2_norms, value)
    assert operators(rewritten) == ["Relu", "Mul", "ReduceSum", "ReduceL2", "ReduceL2", "Mul", "Max", "Div"]


def test_a_norm_that_is_read_elsewhere_stays_and_is_shared():
    body = SQUARES + "n = Sqrt(s) u = Div(x, n) y = Mul(u, n)"
    rewritten, _ = check(text_model(body, **CONSTANTS), fuse_l2_norms, X.astype(np.float64))
    assert operators(rewritten) == ["ReduceL2", "Div", "Mul"]


NOT_L2_NORMS = {
    "another tensor divided": "z = Relu(x) n = ReduceL2(x, last) r = Reciprocal(n) y = Mul(z, r)",
    "a layer norm": VARIANCE + "s = Sqrt(e) y = Div(d, s)",
    "multiplied by the norm": "n = ReduceL2(x, last) y = Mul(x, n)",
    "an upper clamp": SQUARES + "c = Clip(s, eps, two) n = Sqrt(c) y = Div(x, n)",
    "a cube": "q = Mul(x, x) t = Mul(q, x) s = ReduceSum(t, last) n = Sqrt(s) y = Div(x, n)",
    "product with another tensor": "z = Relu(x) q = Mul(x, z) s = ReduceSum(q, last) n = Sqrt(s) y = Div(x, n)",
    "a sum times a vector": SQUARES + "k = Mul(s, row_gain) n = Sqrt(k) y = Div(x, n)",
    "minus a sum": SQUARES + "k = Mul(s, minus_half) n = Sqrt(k) y = Div(x, n)",
    "square of the norm": SQUARES + "y = Div(x, s)",
    "our own form": "n = ReduceL2(x, last) c = Clip(n, eps) u = Div(x, c) y = Mul(u, gain)",
    "LpNormalization": "y = LpNormalization<axis = -1, p = 2>(x)",
}


@pytest.mark.parametrize("name", NOT_L2_NORMS)
def test_a_look_alike_of_l2_norm_is_left(name):
    assert is_left(text_model(NOT_L2_NORMS[name], **CONSTANTS), fuse_l2_norms) == []
