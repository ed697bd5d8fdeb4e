"""Einsum, the scale of attention, and BatchNormalization after linear layers.

Oracle: numpy in float64, ONNX's reference evaluator."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import operators, run_text_model, text_model

from edge.onnx_import.find_group_norm import find_group_norms
from edge.onnx_import.fuse_attention_scale import fuse_attention_scales
from edge.onnx_import.fuse_batch_norm import fuse_batch_norms
from edge.onnx_import.fuse_einsum import fuse_einsums

RNG = np.random.default_rng(0)


def draw(shape):
    """Random numbers, the same for the same shape, whichever tests run before."""
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def rewritten_copy(model, rewriter, x, allowed=1e-4):
    """A rewritten copy, whose outputs are those of the model for two batch sizes, and the places."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    places = rewriter(copy)
    onnx.checker.check_model(copy, full_check=True)
    grouped = any(
        node.op_type == "ConvTranspose" for node in model.graph.node
    )  # the evaluator computes those with groups wrongly
    for images in (x, x[:1]):
        for runtime in ("onnxruntime",) if grouped else ("reference", "onnxruntime"):
            expected = run_text_model(model, images, runtime)
            assert np.abs(run_text_model(copy, images, runtime) - expected).max() < allowed, runtime
    assert np.abs(expected).max() > 0.01
    return copy, places


EINSUMS = {  # equation, shapes of two slices of x or of one and a constant, operators after the slices
    "bhid,bhjd->bhij": ((3, 5, 4), (3, 6, 4), ["Transpose", "MatMul"]),
    "bhij,bhjd->bhid": ((3, 5, 6), (3, 6, 4), ["MatMul"]),
    "bnqd,bnkd->bnqk": ((3, 5, 4), (3, 6, 4), ["Transpose", "MatMul"]),
    "bihd,bjhd->bhij": ((5, 3, 4), (6, 3, 4), ["Transpose", "Transpose", "MatMul"]),
    "bhij,bjhd->bihd": ((3, 5, 6), (6, 3, 4), ["Transpose", "MatMul", "Transpose"]),
    "bid,bjd->bij": ((5, 4), (6, 4), ["Transpose", "MatMul"]),
    "bid, bjd -> bji": ((5, 4), (6, 4), ["Transpose", "MatMul", "Transpose"]),
    "...id,...jd->...ij": ((3, 5, 4), (3, 6, 4), ["Transpose", "MatMul"]),
    "bhwc,bhkc->bhwk": ((3, 5, 4), (3, 6, 4), ["Transpose", "MatMul"]),
    "bhwc,bkc->bhwk": ((3, 5, 4), (6, 4), ["Transpose", "Unsqueeze", "MatMul"]),
    "bkc,bhwc->bkhw": ((6, 4), (3, 5, 4), ["Unsqueeze", "Transpose", "MatMul", "Transpose"]),
}
WEIGHTED = {
    "...ij,jk->...ik": ((5, 4), (4, 6), ["MatMul"]),
    "bij,jk": ((5, 4), (4, 6), ["MatMul"]),
    "bij,kj->bik": ((5, 4), (6, 4), ["MatMul"]),
    "bhwc,hkc->bhwk": ((3, 5, 4), (3, 6, 4), ["MatMul"]),
    "bhid,hdk->bhik": ((3, 5, 4), (3, 4, 6), ["MatMul"]),
    "bci,oc->boi": ((4, 5), (6, 4), ["Transpose", "MatMul", "Transpose"]),
}
REFUSED = {
    "bii,bij->bij": ((4, 4), (4, 4), "a letter occurs twice in one tensor"),
    "bij,bjk->bk": ((5, 4), (4, 6), "a letter of one tensor alone is summed"),
    "bijk,bjkl->bil": ((5, 2, 3), (2, 3, 6), "2 letters are contracted, and a MatMul contracts one"),
    "bij,bij->bij": ((5, 4), (5, 4), "0 letters are contracted, and a MatMul contracts one"),
    "bij,bj->bi": ((5, 4), (4,), "it is a product with a vector"),
}


def einsum_model(equation, first, second, weight=None):
    """Einsum of two parts of x, or of x and a constant."""
    sizes = [int(np.prod(first)), 0 if weight is not None else int(np.prod(second))]
    constants = {
        "s1": np.array([0, *first], np.int64),
        "s2": np.array([0, *second], np.int64),
        "sizes": np.array(sizes, np.int64),
    }
    if weight is not None:
        body = f'a = Reshape(x, s1) y = Einsum<equation = "{equation}">(a, w)'
        return text_model(body, (2, sizes[0]), w=weight, **constants)
    body = f'p, q = Split<axis = 1>(x, sizes) a = Reshape(p, s1) b = Reshape(q, s2) y = Einsum<equation = "{equation}">(a, b)'
    return text_model(body, (2, sum(sizes)), **constants)


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum_of_two_activations_becomes_a_matmul(equation):
    first, second, left = EINSUMS[equation]
    x = draw((2, int(np.prod(first) + np.prod(second))))
    model = einsum_model(equation, first, second)
    copy, (place,) = rewritten_copy(model, fuse_einsums, x)
    assert operators(copy) == ["Split", "Reshape", "Reshape", *left]
    assert place.node == "y"
    assert place.into in {node.name for node in copy.graph.node}
    a, b = (
        part.reshape(2, *shape) for part, shape in zip(np.split(x, [int(np.prod(first))], axis=1), (first, second), strict=True)
    )
    expected = np.einsum(equation.replace(" ", ""), a.astype(np.float64), b.astype(np.float64))
    assert np.abs(run_text_model(copy, x) - expected).max() < 1e-4, "numpy's einsum"


@pytest.mark.parametrize("equation", WEIGHTED)
def test_einsum_with_a_weight_becomes_a_matmul_whose_weight_is_a_constant(equation):
    first, second, left = WEIGHTED[equation]
    weight = draw(second)
    x = draw((2, int(np.prod(first))))
    copy, _ = rewritten_copy(einsum_model(equation, first, second, weight), fuse_einsums, x)
    assert operators(copy) == ["Reshape", *left]
    (matmul,) = (node for node in copy.graph.node if node.op_type == "MatMul")
    assert matmul.input[1] in {tensor.name for tensor in copy.graph.initializer}


@pytest.mark.parametrize("equation", REFUSED)
def test_an_einsum_that_is_not_a_matrix_product_is_left_with_the_reason(equation):
    first, second, reason = REFUSED[equation]
    model = einsum_model(equation, first, second)
    before = model.SerializeToString()
    (place,) = fuse_einsums(model)
    assert (place.into, place.reason) == ("", f"{equation}: {reason}")
    assert model.SerializeToString() == before


# The scale of attention

HEADS, TOKENS, WIDTH = 2, 5, 16
LAYERS = {
    name: draw(shape) * 0.5
    for name, shape in {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "bq": (32,), "mask": (1, 1, TOKENS, TOKENS)}.items()
}
SCALES = {
    "scale": WIDTH**-0.5,
    "divisor": WIDTH**0.5,
    "root": WIDTH**-0.25,
    "odd": 0.3,
    "odd_divisor": 3.3,
    "row": np.full((1, 2, 1, 1), 0.25, np.float32),
}
HEAD_SHAPE = {"heads": np.array([0, TOKENS, HEADS, WIDTH], np.int64)}
PROJECT = (
    "q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, heads) q = Transpose<perm = [0, 2, 1, 3]>(q2) "
    "k1 = MatMul(x, wk) k2 = Reshape(k1, heads) v1 = MatMul(x, wv) v2 = Reshape(v1, heads) v = Transpose<perm = [0, 2, "
    "1, 3]>(v2) "
)
KEY = "k = Transpose<perm = [0, 2, 3, 1]>(k2) "
ATTEND = " p = Softmax<axis = -1>(l) y = MatMul(p, v)"
ATTENTIONS = {
    "on the logits, Mul": KEY + "m = MatMul(q, k) l = Mul(m, scale)",
    "on the logits, Div": KEY + "m = MatMul(q, k) l = Div(m, divisor)",
    "constant first": KEY + "m = MatMul(q, k) l = Mul(scale, m)",
    "before the mask": KEY + "m = MatMul(q, k) s = Div(m, divisor) l = Add(s, mask)",
    "mask first": KEY + "m = MatMul(q, k) s = Div(m, divisor) l = Add(mask, s)",
    "on k": KEY + "ks = Mul(k, scale) l = MatMul(q, ks)",
    "on k before its Transpose": "ks = Div(k2, divisor) k = Transpose<perm = [0, 2, 3, 1]>(ks) l = MatMul(q, k)",
    "on both, as scaled_dot_product_attention": KEY + "qs = Mul(q, root) ks = Mul(k, root) l = MatMul(qs, ks)",
}


def attention(body, project=PROJECT):
    return text_model(project + body + ATTEND, (2, TOKENS, 32), **LAYERS, **SCALES, **HEAD_SHAPE)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_scale_that_is_a_power_of_two_goes_into_the_layer_of_q(name):
    x = draw((2, TOKENS, 32))
    copy, (place,) = rewritten_copy(attention(ATTENTIONS[name]), fuse_attention_scales, x, 1e-5)
    assert not {"Mul", "Div"} & set(operators(copy))
    assert place.kind == "attention_scale"
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    (layer,) = (node for node in copy.graph.node if node.name == "q0")
    assert np.array_equal(values[layer.input[1]], LAYERS["wq"] / 4), "exact: not one weight is rounded"


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if "both" not in name])
def test_another_scale_becomes_one_factor_of_q(name):
    body = ATTENTIONS[name].replace("scale", "odd").replace("divisor", "odd_divisor")
    x = draw((2, TOKENS, 32))
    copy, _ = rewritten_copy(attention(body), fuse_attention_scales, x, 1e-5)
    names = operators(copy)
    assert (names.count("Mul"), names.count("Div")) == (1, 0)
    (factor,) = (node for node in copy.graph.node if node.op_type == "Mul")
    assert factor.input[0] == "q"
    assert fuse_attention_scales(copy) == [], "a second run finds nothing"


def test_a_scale_stays_a_factor_where_q_k_and_v_are_one_layer():
    project = (
        "j = MatMul(x, joint) n = Reshape(j, three) t = Transpose<perm = [2, 0, 3, 1, 4]>(n) "
        "a, b, c = Split<axis = 0, num_outputs = 3>(t) q = Squeeze(a, zero) k0 = Squeeze(b, zero) v = Squeeze(c, zero) "
    )
    constants = {
        "joint": draw((32, 96)) * 0.5,
        "three": np.array([0, TOKENS, 3, HEADS, WIDTH], np.int64),
        "zero": np.array([0], np.int64),
    }
    body = project + "k = Transpose<perm = [0, 1, 3, 2]>(k0) m = MatMul(q, k) l = Mul(m, scale)" + ATTEND
    x = draw((2, TOKENS, 32))
    copy, _ = rewritten_copy(text_model(body, (2, TOKENS, 32), **constants, **SCALES), fuse_attention_scales, x, 1e-5)
    (factor,) = (node for node in copy.graph.node if node.op_type == "Mul")
    assert factor.input[0] == "q"


NOT_ATTENTION = {
    "no scale": KEY + "l = MatMul(q, k)",
    "the unscaled logits are read too": KEY + "m = MatMul(q, k) s = Mul(m, scale) l = Add(s, m)",
    "scaled with the mask": KEY + "m = MatMul(q, k) s = Add(m, mask) l = Mul(s, scale)",
    "a scale per head": KEY + "m = MatMul(q, k) l = Mul(m, row)",
    "one factor of q already": KEY + "qs = Mul(q, odd) l = MatMul(qs, k)",
    "the product with a weight": "m = MatMul(q2, square) t = Transpose<perm = [0, 2, 1, 3]>(m) u = MatMul(t, square_t) "
    "l = Mul(u, scale)",
}


@pytest.mark.parametrize("name", NOT_ATTENTION)
def test_a_look_alike_of_attention_is_left(name):
    square = draw((WIDTH, WIDTH))
    body = PROJECT + NOT_ATTENTION[name] + ATTEND
    sizes = {"square": square, "square_t": square[:, :TOKENS]}
    model = text_model(body, (2, TOKENS, 32), **LAYERS, **SCALES, **HEAD_SHAPE, **sizes)
    before = model.SerializeToString()
    assert fuse_attention_scales(model) == []
    assert model.SerializeToString() == before


def test_logits_without_softmax_are_left():
    model = text_model(PROJECT + KEY + "m = MatMul(q, k) y = Mul(m, scale)", (2, TOKENS, 32), **LAYERS, **SCALES, **HEAD_SHAPE)
    assert fuse_attention_scales(model) == []


# BatchNormalization

BATCH_NORM = {
    "gamma": RNG.uniform(0.5, 2, 6).astype(np.float32),
    "beta": RNG.standard_normal(6).astype(np.float32),
    "mean": RNG.standard_normal(6).astype(np.float32),
    "var": RNG.uniform(0.1, 3, 6).astype(np.float32),
}
NORMALIZE = " y = BatchNormalization<epsilon = 0.001>(l, gamma, beta, mean, var)"
LINEAR = {  # layer, shape of x, weight, operators that remain
    "Conv": ("l = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)", (2, 4, 6, 6), (6, 4, 3, 3), ["Conv"]),
    "Conv with bias": ("l = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, b)", (2, 4, 6, 6), (6, 4, 3, 3), ["Conv"]),
    "depthwise": ("l = Conv<group = 6, kernel_shape = [3, 3]>(x, w, b)", (2, 6, 6, 6), (6, 1, 3, 3), ["Conv"]),
    "ConvTranspose": ("l = ConvTranspose<strides = [2, 2]>(x, w, b)", (2, 4, 3, 3), (4, 6, 2, 2), ["ConvTranspose"]),
    "ConvTranspose in groups": ("l = ConvTranspose<group = 2>(x, w, b)", (2, 4, 3, 3), (4, 3, 2, 2), ["ConvTranspose"]),
    "ConvTranspose and Add": ("m = ConvTranspose(x, w) l = Add(m, planes)", (2, 4, 3, 3), (4, 6, 2, 2), ["ConvTranspose"]),
    "Conv and Add": ("m = Conv(x, w) l = Add(planes, m)", (2, 4, 6, 6), (6, 4, 3, 3), ["Conv"]),
    "Gemm": ("l = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)", (2, 8), (8, 6), ["Gemm"]),
    "Gemm with its weight transposed": ("l = Gemm<transB = 1>(x, w)", (2, 8), (6, 8), ["Gemm"]),
    "MatMul": ("l = MatMul(x, w)", (2, 8), (8, 6), ["MatMul", "Add"]),
    "MatMul and Add": ("m = MatMul(x, w) l = Add(b, m)", (2, 8), (8, 6), ["MatMul", "Add"]),
    "MatMul of tokens": ("m = MatMul(x, w) l = Reshape(m, matrix)", (2, 5, 8), (8, 6), ["MatMul", "Add", "Reshape"]),
}
NOT_LINEAR = {
    "after an activation": ("c = Conv<kernel_shape = [3, 3]>(x, w) l = Relu(c)", (2, 4, 6, 6), (6, 4, 3, 3)),
    "layer read twice": ("l = MatMul(x, w) y2 = Relu(l)", (2, 8), (8, 6)),
    "channels are not the columns": ("l = MatMul(x, w)", (2, 6, 8), (8, 7)),
    "a Reshape that moves channels": ("m = MatMul(x, w) l = Reshape(m, matrix)", (2, 6, 4), (4, 3)),
    "a bias per row": ("m = MatMul(x, w) l = Add(m, column)", (6, 8), (8, 6)),
    "a bias per pixel": ("m = Conv(x, w) l = Add(m, b)", (2, 4, 8, 8), (6, 4, 3, 3)),
    "a bias that is not a constant": ("z = ReduceMean(x) m = MatMul(x, w) l = Add(m, z)", (2, 8), (8, 6)),
}


def linear_model(body, shape, weight):
    constants = {"w": draw(weight), "b": RNG.standard_normal(6).astype(np.float32)}
    constants |= {"planes": draw((1, 6, 1, 1)), "column": draw((6, 1))}
    return text_model(body + NORMALIZE, shape, matrix=np.array([-1, 6], np.int64), **constants, **BATCH_NORM)


@pytest.mark.parametrize("name", LINEAR)
def test_batch_norm_folds_into_the_layer_before_it(name):
    body, shape, weight, left = LINEAR[name]
    copy, (place,) = rewritten_copy(linear_model(body, shape, weight), fuse_batch_norms, draw(shape))
    assert operators(copy) == left
    assert (place.kind, place.node) == ("batch_norm", "y")


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_a_batch_norm_elsewhere_is_left(name):
    model = linear_model(*NOT_LINEAR[name])
    if "twice" in name:
        model.graph.output.append(onnx.ValueInfoProto(name="y2"))
    before = model.SerializeToString()
    assert fuse_batch_norms(model) == []
    assert model.SerializeToString() == before


def test_a_weight_that_two_layers_share_is_kept_for_the_other():
    body = "m = MatMul(x, w) z = BatchNormalization(m, gamma, beta, mean, var) o = MatMul(x, w) y = Add(z, o)"
    weight = draw((8, 6))
    copy, _ = rewritten_copy(text_model(body, (2, 8), w=weight, **BATCH_NORM), fuse_batch_norms, draw((2, 8)))
    assert operators(copy) == ["MatMul", "Add", "MatMul", "Add"]


def test_group_norm_by_instance_norm_is_named_and_kept():
    constants = {
        "groups": np.array([0, 2, -1], np.int64),
        "ones": np.ones(2, np.float32),
        "zeros": np.zeros(2, np.float32),
        "back": np.array([0, 4, 3, 3], np.int64),
    }
    body = "r = Reshape(x, groups) n = InstanceNormalization(r, ones, zeros) y = Reshape(n, back)"
    (place,) = find_group_norms(text_model(body, (2, 4, 3, 3), **constants))
    assert (place.kind, place.node, place.into) == ("group_norm", "n", "")
    assert place.reason
    single = {"ones": np.ones(4, np.float32), "zeros": np.zeros(4, np.float32)}
    assert find_group_norms(text_model("y = InstanceNormalization(x, ones, zeros)", (2, 4, 3, 3), **single)) == []
