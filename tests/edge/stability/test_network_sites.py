"""Every kind of site in small graphs: found, observed and judged at exactly the node where a large input is planted.

Oracle: numpy in float64 on the tensors of the graph, and the list of what the graph was made to lose.
"""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from calib.errors import DataError
from calib.ort_session import TappedGraph
from edge.stability.finders.network_sites import find_network_sites
from edge.stability.float_formats import BF16, FP16
from edge.stability.observe_probes import observe_probes
from edge.stability.site import Probe
from edge.stability.site_verdict import NetworkCase, judge_site

CONSTANTS = {
    "gain": np.linspace(-2, 2, 8, dtype=np.float32),
    "eps": np.float32(1e-3),
    "two": np.float32(2),
    "three": np.float32(3),
    "eight": np.float32(8),
    "minus_one": np.float32(-1),
    "one": np.float32(1),
    "ones": np.ones((8, 8), np.float32),
    "ones4": np.ones(4, np.float32),
    "mask": np.where(np.eye(4), 0, np.finfo(np.float32).min).astype(np.float32),
    "last": np.array([-1], np.int64),
    "tokens": np.array([1], np.int64),
    "both": np.array([-2, -1], np.int64),
}


def graph(text, scale=1.0, **constants):
    """x (n, 4, 8) -> a = scale * x, h = tanh(x), then the nodes of `text`, which compute y."""
    nodes = f"a = Mul (x, scale) h = Tanh (x) {text}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 20]> g (float[n, 4, 8] x) => (float y) {{ {nodes} }}')
    read = {name for node in model.graph.node for name in node.input}
    values = {**CONSTANTS, "scale": np.float32(scale), **constants}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in values.items() if k in read)
    del model.graph.output[:]
    model.graph.output.extend([onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)])
    return onnx.shape_inference.infer_shapes(model)


GRAPHS = {  # what is planted: (kind, node, scale that is harmless, scale that FP16 loses, the nodes that compute y)
    "l2_norm": ("l2_norm", "n", 1, 2**8, "n = ReduceL2 <keepdims=1> (a, both) y = Div (a, n)"),
    "xnorm": ("xnorm", "n", 1, 2**8, "n = ReduceL2 <keepdims=1> (a, last) g = Mul (gain, a) y = Div (g, n)"),
    "xnorm by a mean": (
        "xnorm",
        "s",
        1,
        2**8,
        "q = Mul (a, a) s = ReduceSum (q, last) r = Sqrt (s) i = Reciprocal (r) y = Mul (i, a)",
    ),
    "layer_norm": ("layer_norm", "y", 1, 2**8, "y = LayerNormalization <axis=-1, epsilon=0.001> (a, gain)"),
    "layer_norm in pieces": (
        "layer_norm",
        "v",
        1,
        2**9,
        "m = ReduceMean (a, last) d = Sub (a, m) s = Mul (d, d) v = ReduceMean (s, last)"
        " e = Add (v, eps) r = Sqrt (e) y = Div (d, r)",
    ),
    "rms_norm": (
        "rms_norm",
        "v",
        1,
        2**9,
        "s = Pow (a, two) v = ReduceMean (s, last) e = Add (v, eps) r = Sqrt (e) i = Reciprocal (r) y = Mul (i, a)",
    ),
    "instance_norm": ("instance_norm", "y", 1, 2**8, "y = InstanceNormalization <epsilon=0.001> (a, ones4, ones4)"),
    "response_norm": (
        "response_norm",
        "g",
        1,
        2**8,
        "g = ReduceL2 (a, tokens) m = ReduceMean (g, last) e = Add (m, eps) r = Div (g, e) y = Mul (r, h)",
    ),
    "variance": ("variance", "v", 1, 2**9, "v = ReduceSumSquare (a, last) t = Tanh (v) y = Mul (t, h)"),
    "softmax": (
        "softmax",
        "p",
        1,
        2**9,
        "t = Transpose <perm=[0, 2, 1]> (a) q = MatMul (a, t) l = Add (q, mask) p = Softmax (l) y = MatMul (p, h)",
    ),
    "exponential": ("exponential", "c", 1, 2**6, "c = Pow (a, three) t = Tanh (c) y = Mul (t, h)"),
    "reciprocal": ("reciprocal", "t", 1, 2**-30, "b = Abs (a) t = Reciprocal (b) u = Tanh (t) y = Mul (u, h)"),
    "sum": ("sum", "t", 1, 2**14, "c = Abs (a) t = ReduceSum (c, last) y = Tanh (t)"),
    "product": ("product", "t", 1, 2**13, "c = Abs (a) t = MatMul (c, ones) y = Tanh (t)"),
    "residual": ("residual", "t", 1, 2**14, "b = Abs (a) t = Add (b, a) y = Tanh (t)"),
    "other": ("other", "t", 1, 2**13, "t = Mul (a, eight) y = Tanh (t)"),
    "output": ("output", "y", 1, 2**13, "c = Abs (a) y = MatMul (c, ones)"),
    "constant": ("constant", "scale", 1, 2.0**17, "y = Tanh (a)"),
}


def images(count=3):
    """In [-3, 3], each row with a 3: whatever is summed over a row is as large everywhere."""
    x = np.random.default_rng(0).uniform(-3, 3, size=(count, 4, 8)).astype(np.float32)
    x[..., 0] = 3
    return x


def judged(model, x, fmt=FP16, **options):
    """(kind, name) of the sites -> verdict and reason."""
    sites = find_network_sites(model).sites
    observed, _ = observe_probes(model, [p for site in sites for p in site.probes], [x])
    return {(site.kind, site.name): judge_site(NetworkCase(site, observed, {}, **options), fmt) for site in sites}


def unstable(model, x, fmt=FP16, **options):
    return {key for key, judgement in judged(model, x, fmt, **options).items() if judgement.verdict == "unstable"}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_planted_loss_is_named_where_it_is_and_nowhere_else(name):
    kind, node, harmless, lost, text = GRAPHS[name]
    assert unstable(graph(text, harmless), images()) == set()
    found = unstable(graph(text, lost), images())
    assert (kind, node) in found
    # a sum that overflows is read by what follows it, and the product beneath a softmax has the softmax's logits
    assert found - {(kind, node)} <= {("product", "q"), ("other", "a"), ("reciprocal", "t")}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_stored_tensor_has_one_site(name):
    model = graph(GRAPHS[name][-1])
    sites, unjudged = (found := find_network_sites(model)).sites, found.unjudged
    stored = [probe.tensors for site in sites for probe in site.probes if probe.stored]
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT} | {"x"}
    floats |= {output for node in model.graph.node for output in node.output}
    assert (sorted(stored), unjudged) == (sorted((name,) for name in floats), ())
    assert len({(site.kind, site.name) for site in sites}) == len(sites)


@pytest.mark.parametrize("name", ["layer_norm", "instance_norm", "l2_norm", "response_norm"])
def test_what_the_target_computes_in_fp32_is_not_lost(name):
    kind, node, _, lost, text = GRAPHS[name]
    assert (kind, node) not in unstable(graph(text, lost), images(), precision="fp32")


@pytest.mark.parametrize("name", GRAPHS)
def test_bf16_has_the_range_of_fp32(name):
    assert unstable(graph(GRAPHS[name][-1], GRAPHS[name][3]), images(), BF16) == set()


HARMLESS = {
    "a mask": "t = Transpose <perm=[0, 2, 1]> (a) q = MatMul (a, t) l = Add (q, mask) p = Softmax (l) y = MatMul (p, h)",
    "a sigmoid": "m = Mul (a, minus_one) e = Exp (m) d = Add (e, one) s = Reciprocal (d) y = Mul (s, h)",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_overflow_is_told_apart(name):
    scale = 1 if name == "a mask" else 16
    x = images()
    assert unstable(graph(HARMLESS[name], scale), x) == set()
    if name == "a sigmoid":  # control: the same Exp, read by something else
        read_otherwise = HARMLESS[name].replace("y = Mul (s, h)", "r = Tanh (d) y = Mul (s, r)")
        assert ("exponential", "e") in unstable(graph(read_otherwise, scale), x)


def test_a_positive_overflow_after_a_mask_is_not_harmless():
    assert ("softmax", "p") in unstable(graph(HARMLESS["a mask"], 2**9), images())


@pytest.mark.parametrize(("eps", "verdict"), [(1e-3, "stable"), (1e-12, "at risk")])
def test_an_eps_that_vanishes(eps, verdict):
    text = "n = ReduceL2 (a, last) e = Max (n, eps) y = Div (a, e)"
    found = judged(graph(text, eps=np.float32(eps)), images())
    assert found["xnorm", "n"].verdict == verdict
    zero = images()
    zero[0, 0] = 0
    found = judged(graph(text, eps=np.float32(eps)), zero)
    assert found["xnorm", "n"].verdict == ("stable" if verdict == "stable" else "unstable")


@pytest.mark.parametrize(("eps", "verdict"), [(1e-3, "stable"), (1e-9, "unstable")])
def test_a_variance_that_vanishes_beside_its_eps(eps, verdict):
    """2^-14 squared is lost in FP16: no matter beside an eps of 1e-3, all there is beside one of 1e-9."""
    text = GRAPHS["rms_norm"][-1]
    assert judged(graph(text, 2.0**-14, eps=np.float32(eps)), images())["rms_norm", "v"].verdict == verdict


def test_a_bound_makes_a_site_certified_only_where_it_fits():
    model = graph(GRAPHS["product"][-1], 2**10)
    (site,) = (site for site in find_network_sites(model).sites if site.kind == "product")
    observed, _ = observe_probes(model, site.probes, [images()])
    verdicts = {
        bound: judge_site(NetworkCase(site, observed, dict.fromkeys(site.probes, bound)), FP16)
        for bound in (None, 30000.0, 60000.0)
    }
    assert [(j.verdict, j.rests_on) for j in verdicts.values()] == [
        ("at risk", "observed"),
        ("stable", "certified"),
        ("at risk", "observed"),
    ]


def test_an_island_holds_only_its_result_in_16_bits():
    model = graph(GRAPHS["rms_norm"][-1], 2**9)
    (site,) = (site for site in find_network_sites(model).sites if site.kind == "rms_norm")
    observed, _ = observe_probes(model, site.probes, [images()])
    assert judge_site(NetworkCase(site, observed, {}), FP16).verdict == "unstable"
    assert judge_site(NetworkCase(site, observed, {}, island=True), FP16).verdict == "stable"


def test_an_island_around_a_large_constant_reads_it_in_fp32():
    model = graph(GRAPHS["constant"][-1], 2.0**17)
    (site,) = (site for site in find_network_sites(model).sites if site.name == "scale")
    observed, _ = observe_probes(model, site.probes, [images()])
    verdicts = [judge_site(NetworkCase(site, observed, {}, island=island), FP16).verdict for island in (False, True)]
    assert (site.nodes, verdicts) == (("a",), ["unstable", "stable"])


def largest_partial(terms, axis):
    return (np.abs(terms).sum(axis) + np.abs(terms.sum(axis))) / 2


QUANTITIES = {
    Probe("value", ("a",), divides=True): lambda a: a,
    Probe("square", ("a",), stored=False, divides=True): lambda a: a**2,
    Probe("sum", ("a",), (-1,), stored=False, divides=True): lambda a: largest_partial(a, -1),
    Probe("sum of squares", ("a",), (-2, -1), stored=False, divides=True): lambda a: (a**2).sum((-2, -1)),
    Probe("squared deviation", ("a",), (-1,), stored=False, divides=True): lambda a: (a - a.mean(-1, keepdims=True)) ** 2,
    Probe("sum of squared deviations", ("a",), (-1,), stored=False, divides=True): lambda a: a.var(-1) * a.shape[-1],
}


@pytest.mark.parametrize("probe", QUANTITIES, ids=lambda probe: probe.quantity)
@pytest.mark.parametrize("scale", [1.0, 2.0**-12, 2.0**9])
def test_a_quantity_is_what_numpy_computes(probe, scale):
    model, x = graph("y = Tanh (a)", scale), images(10)
    x[1, 2] = 0
    observed, count = observe_probes(model, [probe], [x[:4], x[4:]])
    values = np.abs(QUANTITIES[probe](np.float64(x) * scale))
    nonzero, found = values[values > 0], observed[probe]
    assert (count, found.count, found.zeros) == (10, values.size, values.size - nonzero.size)
    np.testing.assert_allclose([found.maximum, found.minimum], [nonzero.max(), nonzero.min()], rtol=1e-4)
    with np.errstate(over="ignore"):
        assert found.vanishing == (nonzero.astype(np.float16) == 0).sum()
        if probe.quantity != "sum":
            assert found.overflowing == np.isinf(nonzero.astype(np.float16)).sum()


def test_partial_sums_of_a_product():
    model, x = graph(GRAPHS["softmax"][-1]), images()
    probe = Probe("partial sum", ("a", "t"), stored=False)
    observed, _ = observe_probes(model, [probe], [x])
    terms = x[:, :, None, :].astype(np.float64) * x[:, None, :, :]
    np.testing.assert_allclose(observed[probe].maximum, largest_partial(terms, -1).max(), rtol=1e-5)


def test_views_and_constants_are_observed_too():
    model = graph(
        "t = Transpose <perm=[0, 2, 1]> (a) y = MatMul (t, gain4)", gain4=np.array([[3], [0], [-5], [1e-9]], np.float32)
    )
    probes = [Probe("value", (name,)) for name in ("a", "t", "gain4")]
    observed, _ = observe_probes(model, probes, [images()])
    assert observed[probes[0]] == observed[probes[1]]
    constant = observed[probes[2]]
    assert (constant.maximum, constant.count, constant.zeros, constant.vanishing) == (5.0, 4, 1, 1)


def test_nan_and_infinity_in_fp32_are_refused_by_name():
    x = images()
    with pytest.raises(DataError, match="tensor e"):
        judged(graph("e = Exp (a) y = Tanh (e)", 1000), x)
    with pytest.raises(DataError, match="tensor d"):
        judged(graph("z = Sub (a, a) d = Div (z, z) y = Tanh (d)"), x)


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        observe_probes(graph("y = Tanh (a)"), [Probe("value", ("a",))], [])


def test_the_graph_itself_is_left_as_it_is():
    model = graph(GRAPHS["softmax"][-1])
    before = model.SerializeToString(deterministic=True)
    expected = TappedGraph(model, ["y"])(images())["y"]
    judged(model, images())
    assert model.SerializeToString(deterministic=True) == before
    np.testing.assert_array_equal(TappedGraph(model, ["y"])(images())["y"], expected)


def with_node(*node, **attributes):
    """y = tanh(a), and one more node that nothing reads."""
    model = graph("y = Tanh (a)")
    model.graph.node.append(onnx.helper.make_node(*node, name="more", **attributes))
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    return model


def test_what_is_not_judged_is_named():
    body = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["a"], ["b"])], "body", [], [onnx.ValueInfoProto(name="b")])
    condition = numpy_helper.from_array(np.array(True), "condition")
    branches = with_node("If", ["condition"], ["m"], then_branch=body, else_branch=body)
    branches.graph.initializer.append(condition)
    computed_axes = with_node("ReduceSum", ["a", "axes"], ["m"])
    computed_axes.graph.input.append(onnx.helper.make_tensor_value_info("axes", onnx.TensorProto.INT64, [1]))
    reasons = {
        "com.example.Twist is not an operator of the ONNX standard": with_node("Twist", ["a"], ["m"], domain="com.example"),
        "the body of If is not entered": branches,
        "the axes that it sums over are not known": computed_axes,
        "what GRU computes inside is not observed": with_node("GRU", ["a", "w", "r"], ["m"], hidden_size=2),
    }
    found = {reason: find_network_sites(model).unjudged for reason, model in reasons.items()}
    assert {reason: [(place.name, place.reason) for place in places] for reason, places in found.items()} == {
        reason: [("more", reason)] for reason in reasons
    }
