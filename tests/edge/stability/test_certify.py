"""The whole certification. Oracles: damage of a known kind and size, done to weights that are stable without it; bit-identical
logits by ONNX Runtime, apart from `certify`'s own check.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
from attention_graphs import C, N, along_rows, changed, identical, joint_attention, layer, logits, with_eps
from onnx import numpy_helper

from calib.artifact import write_artifact
from calib.errors import InputError, VerdictError
from calib.files import sha256_bytes
from calib.qdq_writer import serialize
from edge.stability.certificate import read_certificate
from edge.stability.certify import CertifyConfig, certify_graph
from edge.stability.finders.xnorm import find_sites

ATTENTIONS = ("blocks.0.attn", "blocks.1.attn", "cls_blocks.0.attn", "cls_blocks.1.attn")


def run(graph, batches, **config):
    return certify_graph(graph, batches, data_sha256="0" * 64, config=CertifyConfig(**config))


def damaged(graph, names, factor):
    changes = {}
    for path in ATTENTIONS:
        for name in names:
            changes |= layer(path, name, factor)
    return changed(graph, **changes)


DAMAGE = [("k", 8), ("k", 12), ("k", 16), ("q", -14), ("q", 9), ("kv", 5)]
"""Which layers of every attention, and by which power of two."""


@pytest.mark.parametrize(("names", "power", "before"), [*((*row, "unstable") for row in DAMAGE), ("qkv", -5, "at risk")])
def test_a_damaged_network_is_mended(tiny_graph, tiny_images, names, power, before):
    graph = damaged(tiny_graph, names, 2.0**power)
    done = run(graph, [tiny_images], precisions=("fp16", "bf16", "int8"), expected_sites=8, kv_axis=-2)
    found = done.certificate
    assert (found.verdict_before, found.verdict) == (before, "stable")
    assert identical(graph, done.model, tiny_images)
    np.testing.assert_array_equal(logits(done.model, tiny_images), logits(tiny_graph, tiny_images))
    assert found.checks.images == found.images == len(tiny_images)
    assert found.checks.logits_bit_identical
    assert found.islands.sites == 0
    assert (found.onnx_sha256, found.folded_onnx_sha256) == tuple(sha256_bytes(serialize(m)) for m in (graph, done.model))
    for old, new in zip(found.before, found.sites, strict=True):
        assert old.sum_sq_max == new.sum_sq_max * 4.0**new.fold_exponent
        assert old.bound_sum_sq == pytest.approx(new.bound_sum_sq * 4.0**new.fold_exponent, rel=1e-9)
        assert new.bound_sum_sq >= new.sum_sq_max
        assert new.errors["fp16"] < 1e-3
        if before == "unstable" and set(old.operand) & set(names):
            assert old.errors["fp16"] is None or old.errors["fp16"] > 0.01
            assert new.fold_exponent * power > 0


def test_the_exponent_follows_the_damage(tiny_graph, tiny_images):
    exponents = []
    for power in (0, 8, 16):
        sites = run(damaged(tiny_graph, "k", 2.0**power), [tiny_images]).certificate.sites
        exponents.append([site.fold_exponent for site in sites if site.operand == "kv"])
    np.testing.assert_array_equal(np.diff(exponents, axis=0), 8)


def test_a_stable_network_is_left_alone(tiny_graph, tiny_images):
    mended = run(tiny_graph, [tiny_images]).model
    done = run(mended, [tiny_images])
    assert done.certificate.verdict_before == done.certificate.verdict == "stable"
    assert serialize(done.model) == serialize(mended)
    assert all(site.fold == {} and site.fold_exponent == 0 for site in done.certificate.sites)


def test_without_repair_the_graph_is_only_judged(tiny_graph, tiny_images):
    graph = damaged(tiny_graph, "k", 2.0**12)
    before = serialize(graph)
    done = run(graph, [tiny_images], repair=False)
    assert done.model is graph
    assert serialize(graph) == before
    found = done.certificate
    assert (found.verdict, found.verdict_before, found.before, found.checks, found.folded_onnx_sha256) == (
        "unstable", "unstable", (), None, None,
    )  # fmt: skip
    repaired = run(graph, [tiny_images]).certificate.before  # folded sites were emulated in FP16 alone
    assert [replace(site, errors={}) for site in found.sites] == [replace(site, errors={}) for site in repaired]
    assert all(site.errors.items() >= other.errors.items() for site, other in zip(found.sites, repaired, strict=True))


def test_the_verdict_is_over_the_precisions_asked_for(tiny_graph, tiny_images):
    graph = damaged(tiny_graph, "k", 2.0**12)
    verdicts = {
        name: run(graph, [tiny_images], precisions=(name,), repair=False).certificate.verdict
        for name in ("fp16", "bf16", "int8")
    }
    assert verdicts == {"fp16": "unstable", "bf16": "stable", "int8": "stable"}
    for wrong in (("fp8",), ()):
        with pytest.raises(InputError, match=r"unknown precision[\s\S]*fp16, bf16, int8"):
            CertifyConfig(precisions=wrong)


def test_a_dead_head_hurts_nobody(tiny_graph, tiny_images):
    """All its vectors are zero: no minimum counts them, no folding is needed for them, 0 / eps = 0."""
    alive = np.where(np.arange(32) < 16, 1.0, 0.0)
    graph = changed(tiny_graph, **layer("blocks.0.attn", "q", alive), **layer("blocks.0.attn", "k", alive * 2.0**12))
    found = run(graph, [tiny_images]).certificate
    assert found.verdict == "stable"
    q, kv = found.sites[:2]
    assert (q.zero_vectors, kv.zero_vectors) == (6 * 4, 6 * 16)
    assert (q.by_head.sum_sq_min[1], q.by_head.sum_sq_max[1]) == (None, 0.0)
    assert kv.fold_exponent >= 8
    fragile = with_eps(graph, 1e-12, added=False)
    found = run(fragile, [tiny_images]).certificate
    assert (found.before[0].verdicts["fp16"].verdict, found.verdict) == ("unstable", "stable")
    assert found.before[0].errors["fp16"] is None, "0 / 0"


def test_a_site_with_too_wide_a_window_becomes_an_island(tiny_graph, tiny_images):
    """Additive eps that some head feels, heads 2^22 apart: no exact folding."""
    factors = np.where(np.arange(32) < 16, 2.0**10, 2.0**-12)
    graph = changed(with_eps(tiny_graph, 30.0, added=True), **layer("blocks.0.attn", "q", factors))
    done = run(graph, [tiny_images])
    assert done.certificate.sites[0].island
    assert done.certificate.islands.sites == sum(site.island for site in done.certificate.sites) >= 1
    assert done.certificate.islands.casts >= 2
    assert identical(graph, done.model, tiny_images)


@pytest.mark.parametrize(
    ("name", "value"), [("blocks.1.attn.k/MatMul.weight", np.nan), ("blocks.0.norm1.bias", np.inf), ("head.weight", -np.inf)]
)
def test_weights_that_are_not_finite_are_named(tiny_graph, tiny_images, name, value):
    graph = changed(tiny_graph, **{name: lambda w: np.where(np.arange(w.size).reshape(w.shape) == 3, value, w)})
    with pytest.raises(InputError, match=rf"NaN or infinity[\s\S]*{name}[\s\S]*1 of"):
        run(graph, [tiny_images])


def test_what_does_not_fit_the_network_is_refused(tiny_graph, tiny_images):
    with pytest.raises(InputError, match="another axis"):
        run(along_rows(tiny_graph), [tiny_images], kv_axis=-2)
    with pytest.raises(InputError, match="8 of 10"):
        run(tiny_graph, [tiny_images], expected_sites=10)
    with pytest.raises(InputError, match="no images"):
        run(tiny_graph, [])
    plain = copy.deepcopy(tiny_graph)
    for node in plain.graph.node:
        node.op_type = "ReduceL1" if node.op_type == "ReduceL2" else node.op_type
    with pytest.raises(InputError, match="no XNorm in the graph"):
        run(plain, [tiny_images])
    overflowing = changed(tiny_graph, **{"blocks.0.attn.v/MatMul.weight": lambda w: w * 1e38})
    with pytest.raises(InputError, match=r"not a finite number in an XNorm[\s\S]*blocks\.0\.attn\.xnorm_kv"):
        run(overflowing, [tiny_images])


def test_rows_are_certified_too(tiny_graph, tiny_images):
    done = run(damaged(along_rows(tiny_graph), "k", 2.0**10), [tiny_images], kv_axis=-1)
    assert (done.certificate.verdict_before, done.certificate.verdict) == ("unstable", "stable")
    np.testing.assert_allclose([site.output_bound for site in done.certificate.sites], 4, rtol=0.01)


def test_equal_inputs_give_an_equal_certificate(tiny_graph, tiny_images, tmp_path):
    graph = damaged(tiny_graph, "k", 2.0**9)
    first, second = (run(copy.deepcopy(graph), [tiny_images.copy()]) for _ in range(2))
    assert first.certificate == second.certificate
    assert serialize(first.model) == serialize(second.model)
    write_artifact(tmp_path / "xnorm.json", first.certificate)
    assert read_certificate(tmp_path / "xnorm.json") == first.certificate
    another = run(graph, [tiny_images + np.float32(0.5)])
    assert another.certificate != first.certificate, "negative control"


def test_ranges_do_not_depend_on_the_batches(tiny_graph, tiny_images):
    """Of the first batch come the errors and INT8's losses; everything else is of all images."""
    graph = damaged(tiny_graph, "k", 2.0**9)
    told = []
    whole = run(graph, [tiny_images]).certificate
    split = certify_graph(
        graph, iter([tiny_images[:2], tiny_images[2:3], tiny_images[3:]]), data_sha256="0" * 64, progress=told.append
    )
    assert told == [2, 3, 6]
    assert split.certificate.checks.images == 2
    for one, other in zip(whole.sites, split.certificate.sites, strict=True):
        same = {
            "errors": one.errors,
            "verdicts": one.verdicts,
            **{n: getattr(one, n) for n in vars(one) if n.startswith("int8")},
        }
        assert replace(other, **same) == one
    assert split.certificate.folded_onnx_sha256 == whole.folded_onnx_sha256


def test_fewer_images_where_every_maximum_is_certified(tiny_graph, tiny_images, monkeypatch):
    """No verdict or bound moves with them; without a repair all images judge (negative control)."""
    graph, parts = damaged(tiny_graph, "k", 2.0**9), [tiny_images[:2], tiny_images[2:4], tiny_images[4:]]
    every = run(graph, parts).certificate
    monkeypatch.setattr("edge.stability.certify.PROVEN_IMAGES", 3)
    done = run(graph, parts)
    few = done.certificate
    assert (every.images, few.images) == (6, 4)
    assert identical(graph, done.model, tiny_images), "images that were not measured included"
    assert (few.verdict_before, few.verdict) == (every.verdict_before, every.verdict) == ("unstable", "stable")
    assert {site.verdicts["fp16"].rests_on for site in few.sites} == {"certified"}
    assert [site.bound_sum_sq for site in few.before] == [site.bound_sum_sq for site in every.before]
    assert run(graph, parts, repair=False).certificate.images == 6


@pytest.mark.parametrize("how", ["split", "slice", "gather"])
def test_a_stranger_s_joint_layer_is_mended(how):
    images = np.random.default_rng(0).normal(size=(4, N, C)).astype(np.float32)
    weight = numpy_helper.to_array(next(t for t in joint_attention(how).graph.initializer if t.name == "w"))
    graph = joint_attention(how, w=weight * 2.0**11)
    done = run(graph, [images])
    assert (done.certificate.verdict_before, done.certificate.verdict) == ("unstable", "stable")
    assert all(site.fold == {"w": (site.fold_exponent,) * 2} or site.operand == "kv" for site in done.certificate.sites)
    assert done.certificate.islands.sites == 0
    assert identical(graph, done.model, images)


@pytest.mark.parametrize("damage", ["keys read elsewhere", "scaled keys", "reversed values", "shuffled channels"])
def test_what_cannot_be_folded_is_kept_in_fp32_or_folded_exactly(damage):
    images = np.random.default_rng(0).normal(size=(4, N, C)).astype(np.float32)
    weight = numpy_helper.to_array(next(t for t in joint_attention().graph.initializer if t.name == "w"))
    graph = joint_attention(damage=damage, w=weight * 2.0**9)
    done = run(graph, [images])
    assert done.certificate.verdict_before == "unstable"
    assert done.certificate.verdict != "unstable"
    assert identical(graph, done.model, images)
    kv = next(site for site in done.certificate.sites if site.operand == "kv")
    assert kv.island == (damage in ("keys read elsewhere", "scaled keys"))
    assert (kv.bound_sum_sq is None) == (damage in ("scaled keys", "shuffled channels"))
    assert len(find_sites(done.model)) == 2


@pytest.mark.parametrize("error", ["another bias", "nothing folded"])
def test_a_repair_that_is_none_would_be_noticed(tiny_graph, tiny_images, monkeypatch, error):
    """Negative control of the checks on the repaired graph."""
    graph = damaged(tiny_graph, "k", 2.0**9)
    good = run(graph, [tiny_images]).model
    bias = {"blocks.0.attn.k.bias/folded": lambda b: b * 2}
    bad = changed(good, **bias) if error == "another bias" else graph
    monkeypatch.setattr("edge.stability.certify.folded_graph", lambda *_: bad)
    message = "changed the FP32 outputs" if error == "another bias" else "does not move as its folding says"
    with pytest.raises(VerdictError, match=message):
        run(graph, [tiny_images])
