"""Verdicts. Oracles: the thresholds as `edge.stability.verdict` documents them, hit from both sides, and the emulated norm:
what is called stable keeps its digits, what is called unstable loses vectors.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
from for_all import for_all
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge.stability.certificate import Int8Loss
from edge.stability.finders.xnorm import XNormSite
from edge.stability.float_formats import BF16, FP16
from edge.stability.fp16_ops import emulate_xnorm, exact_xnorm
from edge.stability.measure_ranges import observe
from edge.stability.observed_ranges import SiteMaxima
from edge.stability.site import Eps
from edge.stability.site_certificate import judge_int8
from edge.stability.verdict import SiteCase, floor_of_sum, judge, reckoned_sum, worst

D = 4
HELD = Eps("clamp", "norm", 2.0**-14, "clip", "eps")
LOST = replace(HELD, value=1e-12)
Q = XNormSite("q", "q", -1, ("q",), "a", "o", (), (HELD,))
KV = replace(Q, name="kv", operand="kv", axis=-2, factors=("k", "v"))
LARGEST = 65504.0


def case(sums, *, site=Q, bound=None, island=False, output_bound=1.0, factors=(1.0, 1.0), partial=0.0):
    """A site with one head whose vectors have these sums of squares, in equal parts; `bound` on the sum makes it certified."""
    a = np.sqrt(np.array(sums, np.float64) / D)[None, None, :, None] * np.ones(D)
    observed = observe(replace(Q, axis=-1), {"a": a.astype(np.float32)})
    observed = replace(observed, factor_max=np.array(factors)[:, None], partial_max=np.array([partial]))
    certified = None
    if bound is not None:
        certified = SiteMaxima(np.array([bound**0.5]), np.array([bound]), np.array([partial]), np.array(factors)[:, None])
    return SiteCase(site, D, observed, certified, island, output_bound)


FLOOR = D * 2.0**-15
GONE = 2.0**-25
TABLE = {  # what: (case, verdict, rests on, reason)
    "well inside, certified": (case([1, 64], bound=1024), "stable", "certified", "6.0 bits below overflow for every input"),
    "well inside, observed": (case([1, 64]), "stable", "observed", "10.0 bits left"),
    "bound at the margin": (case([1, 64], bound=LARGEST / 2), "stable", "certified", "1.0 bits"),
    "bound within the margin": (case([1, 64], bound=LARGEST / 1.99), "at risk", "certified", "some input may bring sum a\\^2"),
    "observed at its margin": (case([1, 4092]), "stable", "observed", "4.0 bits left"),
    "observed within it": (case([1, 4104]), "at risk", "observed", "another image may bring sum a\\^2"),
    "at the floor": (case([FLOOR * 1.001, 64], bound=64), "stable", "certified", ""),
    "below the floor": (case([FLOOR / 1.001, 64], bound=64), "at risk", "observed", "sum a\\^2 falls to"),
    "one of 1000 overflows": (case([2**17] + [1] * 999, bound=2**18), "unstable", "observed", "overflows in 0.1%"),
    "one of 1001 overflows": (case([2**17] + [1] * 1000, bound=2**18), "at risk", "observed", "reaches 1.31e\\+05"),
    "one of 1000 vanishes": (case([GONE / 2] + [1] * 999, bound=4), "unstable", "observed", "vanishes in 0.1%"),
    "one of 1001 vanishes": (case([GONE / 2] + [1] * 1000, bound=4), "at risk", "observed", "falls to"),
    "just enough is left": (case([GONE * 1.01] * 9, bound=4), "at risk", "observed", "falls to"),
    "eps vanishes": (case([1], bound=4, site=replace(Q, eps=(LOST,))), "at risk", "observed", "eps 1e-12 is zero in fp16"),
    "no eps": (case([1], bound=4, site=replace(Q, eps=())), "stable", "certified", "without an eps a zero vector gives 0"),
    "one of two eps holds": (case([1, 0], bound=4, site=replace(Q, eps=(LOST, HELD))), "stable", "certified", ""),
    "zero vectors": (case([1, 0], bound=4), "stable", "certified", ""),
    "zero vectors, eps vanishes": (case([1, 0], bound=4, site=replace(Q, eps=(LOST,))), "unstable", "observed", "0 / 0"),
    "a is stored as infinity": (case([D * 65520.0**2], island=True), "unstable", "observed", "a reaches 6.55e\\+04"),
    "a is just finite": (case([D * 65504.0**2], island=True), "at risk", "observed", "another image"),
    "an island holds such sums": (case([2**20, 2.0**-30], bound=2**20, island=True), "stable", "certified", "6.0 bits"),
    "an island needs no eps": (case([1, 0], bound=4, site=replace(Q, eps=()), island=True), "stable", "certified", ""),
    "K^T V belongs to its island": (case([2.0**40], bound=2.0**40, site=KV, island=True), "stable", "certified", ""),
    "k is stored": (case([1], bound=4, site=KV, factors=(65520.0, 1)), "unstable", "observed", "k reaches"),
    "v is stored": (case([1], bound=4, site=KV, factors=(1, 1e6), island=True), "unstable", "observed", "v reaches"),
    "a partial sum overflows": (case([1], bound=4, site=KV, partial=7e4), "at risk", "observed", "partial sums of K\\^T V"),
    "partial sums of an island": (case([1], bound=4, site=KV, partial=7e4, island=True), "stable", "certified", ""),
    "gamma is huge": (case([1], bound=4, output_bound=1e5), "unstable", "observed", "gamma a"),
    "gamma is large": (case([1], bound=4, output_bound=4e4), "at risk", "certified", "gamma a"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_thresholds(name):
    of, verdict, rests_on, reason = TABLE[name]
    found = judge(of, FP16)
    assert (found.verdict, found.rests_on) == (verdict, rests_on), found.reason
    assert re.search(reason, found.reason)


@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if "eps" not in n and row[1] != "stable"])
def test_bf16_has_the_range_of_fp32(name):
    assert judge(TABLE[name][0], BF16).verdict == "stable"
    assert judge(case([2.0**120]), BF16).verdict == "stable"
    assert judge(case([2.0**125]), BF16).verdict == "at risk"


def test_the_floor_is_where_the_norm_keeps_its_last_digit():
    """Squares that all fall halfway between subnormal numbers, one way: the worst case of the docstring, and no worse."""
    assert floor_of_sum(D, FP16) == FLOOR
    sums = np.arange(64, 2048) + 0.5  # a_i^2 in subnormal numbers
    exact = np.sqrt(sums)
    rounded = np.sqrt(np.rint(sums))
    off = np.abs(rounded / exact - 1)
    at = sums >= FLOOR / D * 2.0**24
    assert off[at].max() <= 2.0**-11
    assert off[~at].max() > 2.0**-11


def test_what_is_reckoned_with():
    assert reckoned_sum(case([3.0], bound=100)).tolist() == [200]
    assert reckoned_sum(case([16.0])).tolist() == [256]


def test_worst():
    assert worst(["stable", "unstable", "at risk"]) == "unstable"
    assert worst(["stable", "at risk"]) == "at risk"
    assert worst([]) == "stable"


@pytest.mark.parametrize(
    ("dead", "direction", "verdict"),
    [
        (0, 0.0999, "stable"),
        (0, 0.1, "at risk"),
        (1e-9, 0, "at risk"),
        (9e-4, 0.4, "at risk"),
        (1e-3, 0, "unstable"),
        (0, 0.5, "unstable"),
    ],
)
def test_int8(dead, direction, verdict):
    assert judge_int8(Int8Loss(dead, direction, 0.5)).verdict == verdict


def vectors(rng, dim, low, high, count=400):
    lengths = np.exp2(rng.uniform(low, high, (1, 2, count // 2, 1)))
    unit = rng.normal(size=(1, 2, count // 2, dim))
    return (unit / np.linalg.norm(unit, axis=-1, keepdims=True) * lengths).astype(np.float32)


def judged(a, site, slack):
    observed = observe(site, {"a": a})
    sure = SiteMaxima(observed.argument_max * slack, observed.sum_max * slack**2, np.zeros(2), np.zeros((2, 2)))
    return judge(SiteCase(site, a.shape[-1], observed, sure if slack else None), FP16)


def errors(a, site):
    """Relative error of every vector of the emulated norm; NaN counts as 1."""
    exact = exact_xnorm(a.astype(np.float64), -1, site.eps)
    found = emulate_xnorm(a, -1, FP16, "storage", site.eps)
    return np.nan_to_num(np.linalg.norm(found - exact, axis=-1) / np.maximum(np.linalg.norm(exact, axis=-1), 1e-300), nan=1.0)


@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.sampled_from([1, 4, 16, 48, 64]),
    middle=st.floats(-16, 10),
    spread=st.floats(0, 10),
    slack=st.sampled_from([0, 1, 1.5]),
    eps=st.sampled_from([HELD, replace(HELD, kind="added"), replace(HELD, acts_on="square"), replace(HELD, value=0.5)]),
)
@settings(max_examples=120, deadline=None)
def test_stable_is_no_false_comfort(seed, dim, middle, spread, slack, eps):
    site = replace(Q, eps=(eps,))
    a = vectors(np.random.default_rng(seed), dim, middle - spread / 2, middle + spread / 2)
    assume(judged(a, site, slack).verdict == "stable")
    found = errors(a, site)
    assert np.sqrt((found**2).mean()) < 1e-3
    assert found.max() < 2e-3


@pytest.mark.parametrize(("low", "high"), [(-5.4, 3), (-5.4, 7.4), (0, 7.4)])
def test_stable_is_said(low, high):
    """What is surely fine is called so: a verdict that never says stable would pass the test above."""
    assert judged(vectors(np.random.default_rng(0), 16, low, high), Q, 1).verdict == "stable"


@pytest.mark.parametrize(("low", "high"), [(-20, 0), (-16, -13), (0, 9.5), (8.5, 9), (-20, 9), (16, 20)])
@for_all(seed=[0, 1])
def test_unstable_loses_vectors(low, high, seed):
    a = vectors(np.random.default_rng(seed), 16, low, high)
    assert judged(a, Q, 1).verdict == "unstable"
    found = errors(a, Q)
    assert (found > 0.1).mean() >= 1e-3
    assert found.max() > 0.5 or high < 0


def test_unstable_on_zero_vectors_is_nan():
    a = vectors(np.random.default_rng(0), 16, 0, 1)
    a[0, 0, 0] = 0
    fragile = replace(Q, eps=(LOST,))
    assert judged(a, fragile, 1).verdict == "unstable"
    assert np.isnan(emulate_xnorm(a, -1, FP16, "storage", fragile.eps)).sum() == 16
    assert judged(a, Q, 1).verdict == "stable"
    assert np.isfinite(emulate_xnorm(a, -1, FP16, "storage", Q.eps)).all()
