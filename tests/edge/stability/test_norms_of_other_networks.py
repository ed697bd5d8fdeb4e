"""Norms outside attention: embeddings, maps, several axes, constants as exporters write them. Oracles: float64 numpy, ONNX
Runtime before and after the repair. What cannot be judged is named, and costs no other norm its verdict.
"""

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_text import run_text_model, text_model

from calib.artifact import write_artifact
from calib.errors import InputError
from edge.stability.certificate import read_certificate
from edge.stability.certify import CertifyConfig, certify_graph
from edge.stability.finders.xnorm import find_norms, find_sites
from edge.stability.measure_ranges import measure

EPS = np.float32(2**-20)
EMBEDDING = """m = ReduceMean<keepdims=0>(x, axes) p = MatMul(m, w) e = Add(p, b)
n = ReduceL2<keepdims=1>(e, last) g = Max(n, eps) y = Div(e, g)"""
"""Images (N, 5, 8) -> an embedding (N, 16) of length 1."""


def embedding(gain=1.0, body=EMBEDDING, **constants):
    random = np.random.default_rng(7)
    weight, bias = (gain * random.standard_normal(shape).astype(np.float32) for shape in ((8, 16), 16))
    axes = {"axes": np.array([1]), "last": np.array([-1])}
    return text_model(body, **{"w": weight, "b": bias, "eps": EPS, **axes, **constants})


def images(count=6, shape=(5, 8)):
    return np.random.default_rng(8).standard_normal((count, *shape)).astype(np.float32)


def certify(model, x, **config):
    return certify_graph(model, [x[:4], x[4:]], data_sha256="0" * 64, config=CertifyConfig(("fp16",), **config))


def with_constant_nodes(model):
    """Every initializer as the output of a Constant node, as TorchScript writes them."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in changed.graph.initializer]
    rest = list(changed.graph.node)
    del changed.graph.node[:], changed.graph.initializer[:]
    changed.graph.node.extend([*nodes, *rest])
    onnx.checker.check_model(changed, full_check=True)
    return changed


@pytest.mark.parametrize("written", [lambda model: model, with_constant_nodes])
def test_a_long_embedding_overflows_and_is_repaired_exactly(written):
    model, x = written(embedding(gain=600.0)), images()
    length = np.linalg.norm(run_text_model(embedding(1.0, EMBEDDING.replace("y = Div(e, g)", "y = Max(n, eps)")), x), axis=-1)
    assert length.max() < 256, "the negative control: such embeddings fit FP16"
    done = certify(model, x)
    (site,), (before,) = done.certificate.sites, done.certificate.before
    assert (before.verdicts["fp16"].verdict, site.verdicts["fp16"].verdict) == ("unstable", "stable")
    assert (site.heads, site.dim, site.axis, site.vectors) == (1, 16, -1, 6)
    assert site.fold, "by powers of two in the layer of the embedding"
    assert not site.island
    np.testing.assert_array_equal(run_text_model(done.model, x, "ort"), run_text_model(model, x, "ort"))
    assert certify(written(embedding()), x, repair=False).certificate.verdict == "stable"


def test_a_norm_without_bounds_is_measured_on_all_images(monkeypatch):
    monkeypatch.setattr("edge.stability.certify.PROVEN_IMAGES", 1)
    found = certify(embedding(), images()).certificate
    assert (found.images, found.sites[0].bound_sum_sq) == (6, None)


@pytest.mark.parametrize(
    ("axis", "shape"), [(1, (4, 6, 3)), (2, (4, 6, 3)), (3, (4, 6, 3)), (1, (5,)), (2, (4, 2, 3, 2)), (1, (4, 6))]
)
def test_ranges_along_any_axis_but_the_batch(axis, shape):
    """Maps normalised over their channels, embeddings, tensors of five axes. Oracle: float64."""
    model = text_model("n = ReduceL2<keepdims=1>(x, at) y = Div(x, n)", (2, *shape), at=np.array([axis]))
    x = images(6, shape)
    (site,) = find_sites(model)
    (observed,), count, _ = measure(model, (site,), [x[:4], x[4:]])
    squares = (x.astype(np.float64) ** 2).sum(axis)
    assert (count, observed.vectors * len(observed.zero)) == (6, squares.size)
    np.testing.assert_allclose((observed.sum_min.min(), observed.sum_max.max()), (squares.min(), squares.max()), rtol=1e-6)
    assert certify(model, x).certificate.sites[0].dim == shape[axis - 1]


BESIDE = {
    "over two axes": ("r = ReduceL2<keepdims=1>(x, both) z = Div(x, r)", r"reduces over axes \[1, 2\]"),
    "over all axes": ("r = ReduceL2<keepdims=1>(x) z = Div(x, r)", "over no constant axis"),
    "over the batch": ("r = ReduceL2<keepdims=1>(x, first) z = Div(x, r)", "over the batch"),
    "a gate": ("r = ReduceL2<keepdims=1>(x, axes) z = Mul(x, r)", "does not divide its argument"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_norm_that_cannot_be_judged_is_named_and_the_others_are_judged(tmp_path, name):
    body, reason = BESIDE[name]
    whole = body + EMBEDDING.replace(
        "y = Div(e, g)", "q = Div(e, g) s = ReduceSum<keepdims=0>(z, both) t = ReduceSum(s) y = Add(q, t)"
    )
    extra = {"both": np.array([1, 2]), "first": np.array([0])}
    model = embedding(1.0, whole, **extra)
    sites, unjudged = find_norms(model)
    assert [site.name for site in sites] == ["n"]
    assert [norm.name for norm in unjudged] == ["r"]
    done = certify(model, images())
    assert done.certificate.verdict == "stable"
    assert done.certificate.unjudged == unjudged
    write_artifact(tmp_path / "xnorm.json", done.certificate)
    (stored,) = json.loads((tmp_path / "xnorm.json").read_text())["unjudged"]
    assert stored["name"] == "r"
    assert re.search(reason, stored["reason"])
    assert read_certificate(tmp_path / "xnorm.json") == done.certificate
    write_artifact(tmp_path / "plain.json", replace(done.certificate, unjudged=()))
    assert "unjudged" not in json.loads((tmp_path / "plain.json").read_text())


def test_a_graph_of_nothing_but_such_norms_is_refused_with_their_names():
    model = text_model("n = ReduceL2<keepdims=1>(x, at) y = Mul(x, n)", at=np.array([1]))
    with pytest.raises(InputError, match=r"no L2 norm of the graph can be judged[\s\S]*n: its result does not divide"):
        certify(model, images())


@pytest.mark.parametrize("divisor", ["c", "u"])
def test_a_division_by_a_constant_is_no_norm(divisor):
    """GELU's divisor, from a Constant node, and one computed from it."""
    model = with_constant_nodes(text_model(f"u = Sqrt(c) d = Div(x, {divisor}) f = Erf(d) y = Mul(f, x)", c=2.0))
    assert find_norms(model) == ((), ())


@pytest.mark.parametrize("norm", ["n = ReduceL2<keepdims=1>(w, at) v = Div(w, n)", "v = LpNormalization<axis=0>(w)"])
def test_normalised_weights_are_no_norm_of_the_network(norm):
    weight = np.random.default_rng(7).standard_normal((8, 4)).astype(np.float32)
    assert find_norms(text_model(f"{norm} y = MatMul(x, v)", w=weight, at=np.array([0]))) == ((), ())
