"""GELU, hard swish and Mish as exporters write them. Oracle: the formula in float64 numpy, and ONNX's reference evaluator."""

import math

import numpy as np
import onnx
import pytest
from onnx_text import operators, run_text_model, text_model

from edge.onnx_import.fuse_gelu import fuse_gelus
from edge.onnx_import.fuse_hard_swish import fuse_hard_swishes
from edge.onnx_import.fuse_mish import fuse_mishes

X = np.linspace(-6, 6, 80, dtype=np.float32).reshape(2, 5, 8)
CONSTANTS = {
    "root2": math.sqrt(2),
    "root2_rounded": 1.4142,
    "inverse_root2": math.sqrt(0.5),
    "inverse_root2_1": np.array([math.sqrt(0.5)], np.float32),
    "half": 0.5,
    "half3": np.full((1, 1, 1, 1), 0.5, np.float32),
    "almost_half": 0.51,
    "quarter": 0.25,
    "zero": 0.0,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "cubic": 0.044715,
    "other_cubic": 0.0356,
    "tanh_scale": math.sqrt(2 / math.pi),
    "six": 6.0,
    "sixth": 1 / 6,
    "fifth": 0.2,
    "five": 5.0,
    "per_channel": np.full(8, 0.5, np.float32),
}


def erf_gelu(x):
    x = x.astype(np.float64)
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x):
    x = x.astype(np.float64)
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ERF = "d = Div(x, root2) f = Erf(d) a = Add(f, one) "
TANH = "p = Pow(x, three) c = Mul(p, cubic) s = Add(x, c) d = Mul(s, tanh_scale) f = Tanh(d) a = Add(f, one) "
GELUS = {
    "TorchScript: (x a) 0.5": ERF + "m = Mul(x, a) y = Mul(m, half)",
    "(x 0.5) a": ERF + "m = Mul(x, half) y = Mul(m, a)",
    "0.5 (x a)": ERF + "m = Mul(a, x) y = Mul(half, m)",
    "x (0.5 a)": ERF + "m = Mul(half, a) y = Mul(x, m)",
    "(x a) / 2": ERF + "m = Mul(x, a) y = Div(m, two)",
    "times 1/sqrt(2)": "d = Mul(inverse_root2, x) f = Erf(d) a = Add(one, f) m = Mul(x, a) y = Mul(m, half)",
    "constants of one axis": "d = Mul(x, inverse_root2_1) f = Erf(d) a = Add(f, one) m = Mul(x, a) y = Mul(m, half)",
    "x (0.5 + 0.5 erf)": "d = Div(x, root2) f = Erf(d) h = Mul(f, half) a = Add(h, half) y = Mul(x, a)",
    "divisor in a Constant node": "r = Constant<value = float {1.41421354}>() d = Div(x, r) f = Erf(d) a = Add(f, one) "
    "m = Mul(x, a) "
    "y = Mul(m, half)",
    "root of two with five digits": "d = Div(x, root2_rounded) f = Erf(d) a = Add(f, one) m = Mul(x, a) y = Mul(m, half)",
    "its input is a product": "u = Mul(x, one) d = Div(u, root2) f = Erf(d) a = Add(f, one) m = Mul(u, a) y = Mul(m, half)",
}
TANH_GELUS = {
    "TorchScript": TANH + "m = Mul(x, half) y = Mul(m, a)",
    "0.5 (x a)": TANH + "m = Mul(x, a) y = Mul(half, m)",
    "x x x": "q = Mul(x, x) p = Mul(q, x) c = Mul(cubic, p) s = Add(c, x) d = Mul(tanh_scale, s) f = Tanh(d) a = Add(one, f) "
    "m = Mul(x, half) y = Mul(m, a)",
    "x (1 + c x x)": "q = Mul(x, x) c = Mul(q, cubic) o = Add(c, one) t = Mul(x, o) d = Mul(t, tanh_scale) f = Tanh(d) "
    "a = Add(f, one) "
    "m = Mul(x, a) y = Mul(m, half)",
    "scale first": "q = Pow(x, two) c = Mul(cubic, q) o = Add(one, c) t = Mul(x, tanh_scale) d = Mul(t, o) f = Tanh(d) "
    "a = Add(f, one) "
    "m = Mul(x, a) y = Mul(m, half)",
}


def check(body, rewriter, expected, left, allowed=1e-5):
    model = text_model(body, **CONSTANTS)
    rewritten = onnx.ModelProto.FromString(model.SerializeToString())
    places = rewriter(rewritten)
    onnx.checker.check_model(rewritten, full_check=True)
    assert np.abs(run_text_model(model, X) - expected).max() < 5e-5, "the table's own graph"
    assert np.abs(run_text_model(rewritten, X) - expected).max() < allowed
    assert np.abs(run_text_model(rewritten, X, "onnxruntime") - expected).max() < allowed
    assert operators(rewritten) == left
    assert not rewriter(rewritten), "a second run finds nothing"
    return places


@pytest.mark.parametrize("name", GELUS)
def test_gelu_becomes_one_node(name):
    left = ["Mul", "Gelu"] if "product" in name else ["Gelu"]
    (place,) = check(GELUS[name], fuse_gelus, erf_gelu(X), left)
    assert (place.kind, place.node, place.into) == ("gelu", "y", "y/Gelu")


@pytest.mark.parametrize("name", TANH_GELUS)
def test_gelu_by_tanh_becomes_one_node_of_that_kind(name):
    check(TANH_GELUS[name], fuse_gelus, tanh_gelu(X), ["Gelu"])
    rewritten = text_model(TANH_GELUS[name], **CONSTANTS)
    fuse_gelus(rewritten)
    assert [attribute.s for attribute in rewritten.graph.node[0].attribute] == [b"tanh"]


def test_a_tensor_of_a_gelu_that_is_read_elsewhere_stays():
    check(ERF + "m = Mul(x, a) g = Mul(m, half) y = Add(g, f)", fuse_gelus, erf_gelu(X) + np.vectorize(math.erf)(X / 2**0.5),
          ["Div", "Erf", "Gelu", "Add"])  # fmt: skip


NOT_GELUS = {
    "0.51 for 0.5": ERF + "m = Mul(x, a) y = Mul(m, almost_half)",
    "no half": ERF + "y = Mul(x, a)",
    "erf of 2 x": "d = Mul(x, two) f = Erf(d) a = Add(f, one) m = Mul(x, a) y = Mul(m, half)",
    "erf of x": "f = Erf(x) a = Add(f, one) m = Mul(x, a) y = Mul(m, half)",
    "times root two": "d = Mul(x, root2) f = Erf(d) a = Add(f, one) m = Mul(x, a) y = Mul(m, half)",
    "erf + 2": "d = Div(x, root2) f = Erf(d) a = Add(f, two) m = Mul(x, a) y = Mul(m, half)",
    "1 - erf": "d = Div(x, root2) f = Erf(d) a = Sub(one, f) m = Mul(x, a) y = Mul(m, half)",
    "another tensor outside": ERF + "z = Relu(x) m = Mul(z, a) y = Mul(m, half)",
    "x twice": ERF + "m = Mul(x, a) n = Mul(m, x) y = Mul(n, half)",
    "a half per channel": ERF + "m = Mul(x, a) y = Mul(m, per_channel)",
    "a half that adds an axis": ERF + "m = Mul(x, a) y = Mul(m, half3)",
    "another cubic": TANH.replace("cubic", "other_cubic") + "m = Mul(x, half) y = Mul(m, a)",
    "a square for the cube": TANH.replace("three", "two") + "m = Mul(x, half) y = Mul(m, a)",
    "tanh alone": "f = Tanh(x) a = Add(f, one) m = Mul(x, a) y = Mul(m, half)",
}


@pytest.mark.parametrize("name", NOT_GELUS)
def test_a_look_alike_of_gelu_is_left(name):
    is_left(NOT_GELUS[name], fuse_gelus)


def is_left(body, rewriter):
    model = text_model(body, **CONSTANTS)
    before = model.SerializeToString()
    assert rewriter(model) == []
    assert model.SerializeToString() == before


HARD = "a = Add(x, three) c = Clip(a, zero, six) "
HARD_SWISHES = {
    "(x c) / 6": HARD + "m = Mul(x, c) y = Div(m, six)",
    "x (c / 6)": HARD + "m = Div(c, six) y = Mul(m, x)",
    "(x c) times a sixth": "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(m, sixth)",
    "Min and Max": "a = Add(x, three) b = Max(a, zero) c = Min(b, six) m = Mul(x, c) y = Div(m, six)",
    "Relu and Min": "a = Add(x, three) b = Relu(a) c = Min(six, b) m = Mul(x, c) y = Div(m, six)",
    "clip(x / 6 + 0.5, 0, 1)": "s = Div(x, six) a = Add(s, half) c = Clip(a, zero, one) y = Mul(x, c)",
    "HardSigmoid": "c = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, c)",
}
HARD_SIGMOIDS = {
    "c / 6": (HARD + "y = Div(c, six)", 1 / 6),
    "c times a sixth": (HARD + "y = Mul(c, sixth)", 1 / 6),
    "Keras": ("s = Mul(x, fifth) a = Add(s, half) y = Clip(a, zero, one)", 0.2),
}


@pytest.mark.parametrize("name", HARD_SWISHES)
def test_hard_swish_becomes_one_node(name):
    check(HARD_SWISHES[name], fuse_hard_swishes, X * np.clip(X.astype(np.float64) + 3, 0, 6) / 6, ["HardSwish"])


@pytest.mark.parametrize("name", HARD_SIGMOIDS)
def test_hard_sigmoid_becomes_one_node(name):
    body, slope = HARD_SIGMOIDS[name]
    check(body, fuse_hard_swishes, np.clip(slope * X.astype(np.float64) + 0.5, 0, 1), ["HardSigmoid"])


NOT_HARD = {
    "a clip": "y = Clip(x, zero, six)",
    "a clip of a sum": HARD.replace("c =", "y ="),
    "other bounds": "a = Add(x, three) c = Clip(a, zero, five) m = Mul(x, c) y = Div(m, six)",
    "another shift": "a = Add(x, two) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "another lower bound": "a = Add(x, three) c = Clip(a, one, six) m = Mul(x, c) y = Div(m, six)",
    "another divisor": HARD + "m = Mul(x, c) y = Div(m, five)",
    "another tensor outside": HARD + "z = Relu(x) m = Mul(z, c) d = Mul(m, half) y = Div(d, six)",
    "HardSigmoid of another slope": "c = HardSigmoid<alpha = 0.2, beta = 0.5>(x) y = Mul(x, c)",
    "HardSigmoid of another shift": "c = HardSigmoid<alpha = 0.16666667, beta = 0.4>(x) y = Mul(x, c)",
    "relu6": "b = Relu(x) y = Min(b, six)",
}


@pytest.mark.parametrize("name", NOT_HARD)
def test_a_look_alike_of_hard_swish_is_left(name):
    is_left(NOT_HARD[name], fuse_hard_swishes)


def test_the_gate_of_another_tensor_becomes_a_hard_sigmoid():
    expected = np.maximum(X, 0) * np.clip(X.astype(np.float64) + 3, 0, 6) / 6
    check(HARD + "z = Relu(x) g = Div(c, six) y = Mul(z, g)", fuse_hard_swishes, expected, ["Relu", "HardSigmoid", "Mul"])


MISHES = {
    "Softplus": "s = Softplus(x) t = Tanh(s) y = Mul(x, t)",
    "log(1 + exp)": "e = Exp(x) a = Add(one, e) s = Log(a) t = Tanh(s) y = Mul(t, x)",
}


@pytest.mark.parametrize("name", MISHES)
def test_mish_becomes_one_node(name):
    x = X.astype(np.float64)
    check(MISHES[name], fuse_mishes, x * np.tanh(np.log1p(np.exp(x))), ["Mish"])


@pytest.mark.parametrize(
    "body",
    [
        "s = Softplus(x) t = Tanh(s) z = Relu(x) y = Mul(z, t)",
        "s = Softplus(x) t = Sigmoid(s) y = Mul(x, t)",
        "e = Exp(x) a = Add(two, e) s = Log(a) t = Tanh(s) y = Mul(t, x)",
        "s = Sigmoid(x) y = Mul(x, s)",
    ],
)
def test_a_look_alike_of_mish_is_left(body):
    is_left(body, fuse_mishes)
