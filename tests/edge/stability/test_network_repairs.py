"""A large or a small number planted into every kind of site: unstable and really lost in FP16, repaired exactly, and not lost.

Oracles: ONNX Runtime's FP32 outputs before and after, to the last bit; the emulated FP16 network (whose own oracle is torch in
half precision); the list of what was planted.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from onnx_text import run_text_model, text_model

from calib.artifact import write_artifact
from calib.errors import VerdictError
from edge.stability import network_certification
from edge.stability.certify import CertifyConfig
from edge.stability.network_certificate import read_network_certificate
from edge.stability.network_certification import certify_network
from edge.stability.repairs import norm_scaling
from edge.stability.verdict import STABILITIES

WEIGHTS = np.random.default_rng(3)
CONSTANTS = {
    "w": WEIGHTS.standard_normal((8, 16)).astype(np.float32) / 3,
    "b": WEIGHTS.standard_normal(16).astype(np.float32) / 3,
    "head": WEIGHTS.standard_normal((16, 5)).astype(np.float32),
    "eps": np.float32(2**-10),
    "two": np.float32(2),
    "down": np.float32(2**-15),
    "less": np.float32(2**-9),
    "last": np.array([-1], np.int64),
    "tokens": np.array([1], np.int64),
    "both": np.array([-2, -1], np.int64),
    "quarter": np.float32(0.25),
    "fewer": np.float32(15**-0.5),
    "after": np.array([0, 0, 0, 0, 0, 1], np.int64),
    "gain": np.ones(16, np.float32),
}
IMAGES = np.random.default_rng(4).standard_normal((8, 4, 8)).astype(np.float32)
LAYER = "p = MatMul(x, w) a = Add(p, b) "
IN_PIECES = (
    "m = ReduceMean(a, last) d = Sub(a, m) s = Mul(d, d) v = ReduceMean(s, last) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)"
)
RMS = "s = Pow(a, two) v = ReduceMean(s, last) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) n = Mul(i, a)"
IMPORTED_RMS = "q = ReduceL2(a, last) m = Mul(q, quarter) g = Pad(m, after, eps) r = ReduceL2(g, last) n = Div(a, r)"
"""As `edge.onnx_import.fuse_rms_norm` writes it."""
DEVIATION = "m = ReduceMean(a, last) d = Sub(a, m) q = ReduceL2(d, last) k = Mul(q, fewer) e = Add(k, eps) n = Div(d, e)"
AFTER_RELU = "c = Relu(a) f = Reshape(c, flat) " + RMS.replace("(a,", "(f,").replace(", a)", ", f)")
VARIANCE = "s = Mul(a, a) v = ReduceSum<keepdims=1>(s, last) k = Mul(v, down) t = Mul(a, less) n = Mul(k, t)"
SUM_SQUARE = "v = ReduceSumSquare(a, last) k = Mul(v, down) t = Mul(a, less) n = Mul(k, t)"
RESIDUAL = "c = Relu(a) r = Add(a, c) u = Add(r, c) v = Add(u, c) n = Mul(v, down)"


@dataclass(frozen=True)
class Planted:
    """A network, the factor on its weights that FP16 loses, and the repair to expect: kind of site, kind of repair."""

    body: str
    factor: float
    site: str
    repair: str


PLANTED = {
    "layer norm in pieces": Planted(IN_PIECES, 2.0**10, "layer_norm", "scaled in the weights"),
    "rms norm": Planted(RMS, 2.0**10, "rms_norm", "scaled in the weights"),
    "rms norm that vanishes": Planted(RMS.replace("eps", "tiny"), 2.0**-14, "rms_norm", "scaled in the weights"),
    "rms norm after a Relu and a Reshape": Planted(AFTER_RELU, 2.0**10, "rms_norm", "scaled in the weights"),
    "rms norm of what something else reads": Planted(
        RMS.replace("n = Mul", "k = Mul") + " t = Mul(a, less) n = Add(k, t)", 2.0**10, "rms_norm", "scaled by a Mul"
    ),
    "rms norm as the import writes it": Planted(IMPORTED_RMS, 2.0**10, "rms_norm", "scaled in the weights"),
    "layer norm by a deviation over N - 1": Planted(DEVIATION, 2.0**10, "layer_norm", "scaled in the weights"),
    "l2 norm over two axes": Planted("q = ReduceL2(a, both) n = Div(a, q)", 2.0**10, "l2_norm", "scaled in the weights"),
    "response norm": Planted(
        "g = ReduceL2(a, tokens) m = ReduceMean(g, last) e = Add(m, eps) r = Div(g, e) t = Mul(a, less) n = Mul(r, t)",
        2.0**10,
        "response_norm",
        "scaled by a Mul",
    ),
    "variance": Planted(VARIANCE, 2.0**10, "variance", "fp32 island"),
    "variance by ReduceSumSquare": Planted(SUM_SQUARE, 2.0**10, "variance", "fp32 island"),
    "residual": Planted(RESIDUAL, 2.0**13, "residual", "fp32 island"),
    "exponential": Planted("c = Pow(a, two) n = Mul(c, down)", 2.0**9, "exponential", "fp32 island"),
}  # fmt: skip


def network(planted, factor):
    weights = {name: CONSTANTS[name] * np.float32(factor) for name in ("w", "b")}
    return text_model(
        LAYER + planted.body + " y = MatMul(n, head)",
        (2, 4, 8),
        **{**CONSTANTS, **weights, "tiny": np.float32(0), "flat": np.array([-1, 4, 16])},
    )


def certified(model, x, **config):
    return certify_network(
        model,
        lambda: [x],
        interval=(np.float64(-8), np.float64(8)),
        data_sha256="0" * 64,
        config=CertifyConfig(("fp16",), **config),
    )


@pytest.fixture(scope="module", params=PLANTED)
def repaired(request):
    """What was planted, the graph, its images, and its certification with and without repair."""
    planted = PLANTED[request.param]
    model = network(planted, planted.factor)
    return planted, model, IMAGES, certified(model, IMAGES, repair=False), certified(model, IMAGES)


def test_it_is_unstable_and_lost_and_repaired(repaired):
    planted, _model, _x, before, after = repaired
    assert (before.certificate.verdict, after.certificate.verdict_before) == ("unstable", "unstable")
    sites = [site for site in before.certificate.sites if site.kind == planted.site]
    found = max((site.verdicts["fp16"].verdict for site in sites), key=STABILITIES.index)
    inside = {site.op_type for site in sites} == {"ReduceL2"}
    assert found == ("at risk" if inside else "unstable"), "no target is named, and some compute a ReduceL2 in FP32"
    lost = before.certificate.emulated.before
    assert lost.not_finite or lost.sqnr_db < 20, "the emulated network really loses"
    assert after.certificate.verdict != "unstable"
    assert after.certificate.emulated.after.not_finite == 0
    assert after.certificate.emulated.after.sqnr_db >= 55
    (repair,) = {site.repair.kind for site in after.certificate.sites if site.kind == planted.site} - {"none"}
    assert repair == planted.repair


def test_fp32_outputs_are_the_same_to_the_last_bit(repaired):
    _planted, model, x, _before, after = repaired
    np.testing.assert_array_equal(run_text_model(after.model, x, "ort"), run_text_model(model, x, "ort"))
    island = bool(after.certificate.fp32_nodes)
    assert island == (after.certificate.islands.casts > 0)
    assert (after.model is model) or not island


def test_the_certificate_is_read_as_it_was_written(repaired, tmp_path):
    certificate = repaired[-1].certificate
    write_artifact(tmp_path / "certificate.json", certificate)
    assert read_network_certificate(tmp_path / "certificate.json") == certificate
    assert certificate.coverage.judged == certificate.coverage.stored == len(certificate.tensors)


@pytest.mark.parametrize("name", [name for name in PLANTED if "vanishes" not in name])
def test_harmless_networks_are_left_alone(name):
    model = network(PLANTED[name], 1.0)
    done = certified(model, IMAGES)
    assert done.certificate.verdict == done.certificate.verdict_before != "unstable"
    assert done.model is model
    assert all(site.repair.kind == "none" for site in done.certificate.sites)
    assert done.certificate.before == ()


LAYER_NORM = Planted("n = LayerNormalization<epsilon = 0.0009765625>(a, gain)", 2.0**10, "layer_norm", "scaled in the weights")


def records(done, kind):
    return [site for site in done.certificate.sites if site.kind == kind]


def test_a_layer_norm_at_risk_is_scaled_unless_the_target_widens_it():
    """Its squares overflow where a target computes them in FP16, and without --target none is known that does not."""
    model = network(LAYER_NORM, LAYER_NORM.factor)
    before, after = certified(model, IMAGES, repair=False), certified(model, IMAGES)
    rtx = certified(model, IMAGES, backend="rtx")
    assert [site.verdicts["fp16"].verdict for site in records(before, "layer_norm")] == ["at risk"]
    (site,) = records(after, "layer_norm")
    assert (site.verdicts["fp16"].verdict, site.repair.kind) == ("stable", LAYER_NORM.repair)
    np.testing.assert_array_equal(run_text_model(after.model, IMAGES, "ort"), run_text_model(model, IMAGES, "ort"))
    assert [site.repair.kind for site in records(rtx, "layer_norm")] == ["none"]
    assert rtx.model is model


@pytest.mark.parametrize(("body", "factor", "kind"), [(RESIDUAL, 2.0**9, "residual"), (VARIANCE, 2.0**4, "variance")])
def test_what_is_at_risk_computes_in_fp32_where_that_is_asked_for(body, factor, kind):
    model = network(Planted(body, factor, kind, "none"), factor)
    left, taken = certified(model, IMAGES), certified(model, IMAGES, islands="at risk")
    assert (left.certificate.verdict, left.certificate.fp32_nodes) == ("at risk", ())
    assert {site.repair.kind for site in left.certificate.sites} == {"none"}
    assert taken.certificate.verdict == "stable"
    assert {site.repair.kind for site in records(taken, kind)} - {"none"} == {"fp32 island"}
    assert taken.certificate.islands.casts > 0
    assert taken.certificate.emulated.after.sqnr_db >= 55
    np.testing.assert_array_equal(run_text_model(taken.model, IMAGES, "ort"), run_text_model(model, IMAGES, "ort"))


def test_a_norm_that_moves_otherwise_than_its_scaling_says_is_a_fault(monkeypatch):
    """The negative control of `ranges_as_scaled`: the exponent is one off, an eps is left as it was."""
    planted = PLANTED["rms norm"]
    model = network(planted, planted.factor)
    assert certified(model, IMAGES).certificate.checks.ranges_as_scaled
    scale_norms = network_certification.scale_norms

    def off_by_one(facts):
        scaled, repairs = scale_norms(facts)
        return scaled, {key: replace(repair, exponent=repair.exponent + 1) for key, repair in repairs.items()}

    with monkeypatch.context() as patch:
        patch.setattr(network_certification, "scale_norms", off_by_one)
        with pytest.raises(VerdictError, match="a norm does not move as its scaling says"):
            certified(model, IMAGES)
    monkeypatch.setattr(norm_scaling, "_scale_eps", lambda *_: None)
    with pytest.raises(VerdictError, match="does not move as its scaling says"):
        certified(model, IMAGES)
