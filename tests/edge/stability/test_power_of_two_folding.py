"""Foldings. Oracle: ONNX Runtime's FP32 logits before and after, bit by bit, and the ranges that a folding predicts."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from attention_graphs import changed, constants, identical, inputs, joint_attention, layer, redrawn, with_eps
from for_all import for_all
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.errors import InputError
from calib.ort_session import TappedGraph
from edge.stability.finders.xnorm import find_sites
from edge.stability.float_formats import FP16
from edge.stability.input_bounds import bound_site
from edge.stability.measure_ranges import measure, observe, taps
from edge.stability.power_of_two_folding import SMALLEST_WEIGHT_RMS, Fold, folded_graph, plan_fit, plan_fold
from edge.stability.trace_layers import trace_sites
from edge.stability.verdict import SiteCase, judge


def planned(graph, images):
    """(cases, folds, layers): the first plan of every site, or none."""
    sites = find_sites(graph)
    traced = trace_sites(graph, sites)
    observed = measure(graph, sites, [images]).ranges
    cases = [
        SiteCase(site, 16, seen, bound_site(site, found)) for site, seen, found in zip(sites, observed, traced, strict=True)
    ]
    plans = [list(plan_fold(case, found.scalable)) for case, found in zip(cases, traced, strict=True)]
    nothing = [Fold(case.site, np.zeros((max(1, len(case.site.factors)), 2), np.int64)) for case in cases]
    folds = [plan[0] if plan else none for plan, none in zip(plans, nothing, strict=True)]
    return cases, folds, [found.layers for found in traced]


def stable_after(graph, cases, folds, images):
    """Whether each site of the folded graph is stable, judged from what is measured and bounded there again."""
    after, _, _ = planned(graph, images)
    assert [case.site.name for case in after] == [case.site.name for case in cases]
    for case, old, fold in zip(after, cases, folds, strict=True):
        np.testing.assert_array_equal(case.observed.sum_max, old.observed.scaled(fold.exponents).sum_max)
        np.testing.assert_allclose(case.certified.sum_max, old.certified.scaled(fold.exponents).sum_max, rtol=1e-9)
    return [judge(case, FP16).verdict == "stable" for case in after]


@for_all(seed=[0, 1, 2, 3])
def test_logits_stay_the_same_to_the_last_bit(tiny_graph, tiny_images, seed):
    graph = redrawn(tiny_graph, seed) if seed else tiny_graph
    graph = changed(graph, **layer("blocks.0.attn", "q", 2.0**7), **layer("blocks.1.attn", "k", 2.0**-9))
    cases, folds, layers = planned(graph, tiny_images)
    assert sum(fold.exponents.any() for fold in folds) >= 2
    folded = folded_graph(graph, tuple(folds), tuple(layers))
    assert identical(graph, folded, tiny_images)
    assert all(stable_after(folded, cases, folds, tiny_images))
    before = [judge(case, FP16).verdict for case in cases]
    assert before[0] != "stable"
    assert before[3] != "stable"
    wrong = changed(folded, **{name: lambda b: b * 2 for name in constants(folded) if name.endswith(".k.bias/folded")})
    assert not identical(graph, wrong, tiny_images), "negative control: a bias that was not folded along"


def test_the_argument_is_left_as_it_was(tiny_graph, tiny_images):
    graph = changed(tiny_graph, **layer("blocks.0.attn", "q", 2.0**7))
    before = graph.SerializeToString(deterministic=True)
    _, folds, layers = planned(graph, tiny_images)
    first, second = (folded_graph(graph, tuple(folds), tuple(layers)) for _ in range(2))
    assert graph.SerializeToString(deterministic=True) == before
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True) != before


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_constants_that_other_nodes_read_are_left_to_them(tiny_graph, tiny_images, value):
    """Exporters give equal constants one initializer: all biases of an attention, and two of its weights, are one."""
    graph = copy.deepcopy(tiny_graph)
    graph.graph.initializer.append(numpy_helper.from_array(np.full(32, value, np.float32), "shared"))
    for node in graph.graph.node:
        for i, name in enumerate(node.input):
            if ".attn." in name and name.endswith(".bias"):
                node.input[i] = "shared"
            if name == "blocks.0.attn.k/MatMul.weight":
                node.input[i] = "blocks.0.attn.q/MatMul.weight"
    _, folds, layers = planned(graph, tiny_images)
    moved = [np.array([[3, 4]]), np.array([[5, -2], [1, 6]])]
    folds = [*(Fold(fold.site, p) for fold, p in zip(folds[:2], moved, strict=True)), *folds[2:]]
    folded = folded_graph(graph, tuple(folds), tuple(layers))
    assert identical(graph, folded, tiny_images)
    np.testing.assert_array_equal(constants(folded)["shared"], value)
    readers = {name for node in folded.graph.node for name in node.input}
    assert readers >= {t.name for t in folded.graph.initializer}, "nothing is left that nobody reads"


def test_heads_of_different_size_get_exponents_of_their_own(tiny_graph, tiny_images):
    factors = np.where(np.arange(32) < 16, 1.0, 2.0**-12)
    graph = changed(tiny_graph, **layer("blocks.0.attn", "q", factors), **layer("blocks.0.attn", "k", factors))
    cases, folds, layers = planned(graph, tiny_images)
    for fold in folds[:2]:
        first, second = fold.exponents.sum(axis=0)
        assert 8 <= first - second <= 16
    folded = folded_graph(graph, tuple(folds), tuple(layers))
    assert identical(graph, folded, tiny_images)
    assert all(stable_after(folded, cases, folds, tiny_images))


def test_keys_and_values_share_the_exponent(tiny_graph, tiny_images):
    graph = changed(tiny_graph, **layer("blocks.0.attn", "v", 2.0**8))
    _, folds, _ = planned(graph, tiny_images)
    keys, values = folds[1].exponents
    assert (keys + values >= 8).all()
    assert (values > keys).all(), "the larger weights take the larger share"
    graph = changed(tiny_graph, **layer("blocks.0.attn", "v", 2.0**4), **layer("blocks.0.attn", "k", 2.0**4))
    keys, values = planned(graph, tiny_images)[1][1].exponents
    assert np.abs(keys - values).max() <= 1


def test_huge_values_are_folded_where_they_are_stored(tiny_graph, tiny_images):
    """V itself would overflow: it is V that shrinks, not K."""
    graph = changed(tiny_graph, **layer("blocks.0.attn", "v", 2.0**14))
    cases, folds, layers = planned(graph, tiny_images)
    assert judge(cases[1], FP16).verdict == "unstable"
    folded = folded_graph(graph, tuple(folds), tuple(layers))
    assert identical(graph, folded, tiny_images)
    assert all(stable_after(folded, cases, folds, tiny_images))
    for found in layers[1]:
        rms = np.sqrt((constants(folded)[f"{found.weight}/folded"].astype(float) ** 2).mean())
        assert rms > SMALLEST_WEIGHT_RMS / 2


def test_a_fragile_clamp_is_healed(tiny_graph, tiny_images):
    graph = with_eps(tiny_graph, 1e-12, added=False)
    cases, folds, layers = planned(graph, tiny_images)
    assert {judge(case, FP16).verdict for case in cases} == {"at risk"}
    folded = folded_graph(graph, tuple(folds), tuple(layers))
    assert {e.value for site in find_sites(folded) for e in site.eps} == {2.0**-14}
    assert identical(graph, folded, tiny_images)
    assert all(stable_after(folded, cases, folds, tiny_images))


def test_a_clamp_that_holds_is_kept(tiny_graph, tiny_images):
    graph = changed(tiny_graph, **layer("blocks.0.attn", "q", 2.0**7))
    _, folds, layers = planned(graph, tiny_images)
    assert folds[0].exponents.any()
    assert all(fold.eps == () for fold in folds)
    assert {e.value for site in find_sites(folded_graph(graph, tuple(folds), tuple(layers))) for e in site.eps} == {2.0**-14}


def test_a_negligible_added_eps_becomes_a_clamp(tiny_graph, tiny_images):
    graph = with_eps(tiny_graph, 1e-9, added=True)
    _, folds, layers = planned(graph, tiny_images)
    folded = folded_graph(graph, tuple(folds), tuple(layers))
    assert {(e.kind, e.value) for site in find_sites(graph) for e in site.eps} == {("added", float(np.float32(1e-9)))}
    assert {(e.kind, e.value) for site in find_sites(folded) for e in site.eps} == {("clamp", 2.0**-14)}
    assert identical(graph, folded, tiny_images)


@pytest.mark.parametrize(("value", "added"), [(30.0, True), (400.0, False)])
def test_an_eps_that_is_felt_moves_along(tiny_graph, tiny_images, value, added):
    graph = changed(with_eps(tiny_graph, value, added=added), **layer("blocks.0.attn", "q", 2.0**7))
    _, folds, layers = planned(graph, tiny_images)
    (exponent,) = set(folds[0].exponents.ravel().tolist())
    assert exponent > 3
    folded = folded_graph(graph, tuple(folds), tuple(layers))
    assert find_sites(folded)[0].eps[0].value == value * 2.0**-exponent
    assert identical(graph, folded, tiny_images)
    unmoved = folded_graph(graph, tuple(replace(fold, eps=()) for fold in folds), tuple(layers))
    assert not identical(graph, unmoved, tiny_images), "negative control"


def test_heads_that_move_apart_cannot_share_an_eps_that_is_felt(tiny_graph, tiny_images):
    factors = np.where(np.arange(32) < 16, 2.0**10, 2.0**-12)
    graph = changed(with_eps(tiny_graph, 30.0, added=True), **layer("blocks.0.attn", "q", factors))
    _, folds, _ = planned(graph, tiny_images)
    assert not folds[0].changes


def test_a_window_too_wide_has_no_plan(tiny_graph, tiny_images):
    cases, _, layers = planned(tiny_graph, tiny_images)
    wide = replace(cases[0], observed=replace(cases[0].observed, sum_min=cases[0].observed.sum_max * 2.0**-40))
    assert list(plan_fold(wide, layers[0])) == []
    assert list(plan_fold(cases[0], layers[0])) != []
    (fit,) = plan_fit(wide, layers[0])
    assert not fit.exponents.any(), "an island only has to hold what is stored"
    huge = planned(changed(tiny_graph, **layer("blocks.0.attn", "v", 2.0**14)), tiny_images)
    (fit,) = plan_fit(huge[0][1], huge[2][1])
    assert not fit.exponents[0].any()
    assert (fit.exponents[1] > 0).all()


@pytest.mark.parametrize("how", ["split", "slice", "gather"])
def test_a_joint_layer_is_folded_head_by_head(how):
    """Q, K and V are columns of one weight: three foldings of one constant."""
    model = joint_attention(how)
    sites = find_sites(model)
    layers = tuple(traced.layers for traced in trace_sites(model, sites))
    exponents = [np.array([[5, -3]]), np.array([[7, 2], [1, -4]])]
    folds = tuple(Fold(site, p) for site, p in zip(sites, exponents, strict=True))
    folded = folded_graph(model, folds, layers)
    assert identical(model, folded, inputs())
    before, after = (TappedGraph(graph, taps(sites))(inputs()) for graph in (model, folded))
    for site, p in zip(sites, exponents, strict=True):
        np.testing.assert_array_equal(observe(site, after).sum_max, observe(site, before).scaled(p).sum_max)
        assert not np.array_equal(observe(site, after).sum_max, observe(site, before).sum_max)
    assert len(constants(folded)) == len(constants(model))


def test_what_leaves_fp32_is_refused_and_dust_is_not(tiny_graph, tiny_images):
    _, _, layers = planned(tiny_graph, tiny_images)
    sites = find_sites(tiny_graph)[:1]
    with pytest.raises(InputError, match=r"out of FP32[\s\S]*blocks\.0\.attn\.q/MatMul\.weight"):
        folded_graph(tiny_graph, (Fold(sites[0], np.array([[140, 140]])),), (layers[0],))
    large = changed(tiny_graph, **layer("blocks.0.attn", "q", 2.0**6))
    with pytest.raises(InputError, match="out of FP32"):
        folded_graph(large, (Fold(sites[0], np.array([[-126, -126]])),), (layers[0],))
    dusty = changed(tiny_graph, **{"blocks.0.attn.q/MatMul.weight": lambda w: np.where(w == w.max(), 1e-45, w)})
    folded = folded_graph(dusty, (Fold(sites[0], np.array([[6, 6]])),), (layers[0],))
    assert identical(dusty, folded, tiny_images), "a subnormal weight that decay left behind"


def test_constants_of_subgraphs_are_kept(tiny_graph, tiny_images):
    graph = copy.deepcopy(tiny_graph)
    extra = [numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.zeros(5, np.float32), "inner")]
    graph.graph.initializer.extend(extra)
    branch = []
    for name in ("then", "else"):
        value = h.make_tensor_value_info(f"from {name}", T.FLOAT, [5])
        branch.append(h.make_graph([h.make_node("Identity", ["inner"], [value.name])], name, [], [value]))
    graph.graph.node[-1].output[0] = "inner logits"
    graph.graph.node.append(h.make_node("If", ["yes"], ["nothing"], then_branch=branch[0], else_branch=branch[1]))
    graph.graph.node.append(h.make_node("Add", ["inner logits", "nothing"], ["logits"]))
    _, folds, layers = planned(graph, tiny_images)
    assert identical(graph, folded_graph(graph, tuple(folds), tuple(layers)), tiny_images)
