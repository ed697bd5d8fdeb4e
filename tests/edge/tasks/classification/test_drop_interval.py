"""Oracles: published tables, scipy, hand-computed cases. Coverage is in test_interval_coverage.py."""

import subprocess
import sys
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from for_all import for_all
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from calib.errors import InputError
from edge.tasks.classification.drop_interval import (
    MOST_IMAGES,
    Flips,
    Paired,
    drop_interval,
    drop_limits,
    images_to_decide,
    mcnemar_p,
)
from edge.tasks.interval import Interval, decide, share_interval, wilson_limits

ROOT = Path(__file__).resolve().parents[4]
Z95 = scipy.stats.norm.ppf(0.975)

counts = st.integers(0, 60)
levels = st.sampled_from([0.8, 0.9, 0.95, 0.99])
tables = st.builds(Paired, st.integers(1, 2000), counts, counts, st.integers(0, 500))


def limits(interval):
    return interval.low_points, interval.high_points


# --- the interval

# Newcombe, Statistics in Medicine 17 (1998) 2635-2650, table III, method 10: cells a, b, c, d, limits of the difference
NEWCOMBE = [
    ((36, 12, 2, 0), (0.0569, 0.3404)),
    ((36, 14, 0, 0), (0.1528, 0.4167)),
    ((2, 97, 1, 0), (0.8721, 0.9854)),
    ((0, 29, 1, 0), (0.6666, 0.9882)),
    ((2, 98, 0, 0), (0.9178, 0.9945)),
    ((0, 30, 0, 0), (0.8395, 1.0)),
    ((54, 0, 0, 0), (-0.0664, 0.0664)),
]
NEWCOMBE_BOTH_WRONG = [
    ((20, 12, 2, 16), (0.0562, 0.3292)),
    ((18, 12, 2, 18), (0.0562, 0.3290)),
    ((35, 14, 0, 1), (0.1461, 0.4175)),
    ((18, 14, 0, 18), (0.1441, 0.3963)),
    ((1, 98, 0, 1), (0.9171, 0.9916)),
    ((53, 0, 0, 1), (-0.0729, 0.0729)),
    ((30, 0, 0, 24), (-0.0358, 0.0358)),
    ((29, 0, 0, 25), (-0.0354, 0.0354)),
    ((28, 0, 0, 26), (-0.0352, 0.0352)),
    ((27, 0, 0, 27), (-0.0351, 0.0351)),
]


@pytest.mark.parametrize(("cells", "published"), NEWCOMBE)
def test_published_examples_without_an_image_that_both_miss(cells, published):
    assert limits(drop_interval(Paired(*cells))) == pytest.approx(100 * np.array(published), abs=0.00501)


@pytest.mark.parametrize(("cells", "published"), NEWCOMBE_BOTH_WRONG)
def test_others_are_those_of_the_table_with_both_wrong_counted_as_both_right(cells, published):
    a, b, c, d = cells
    found = drop_interval(Paired(*cells))
    assert found == drop_interval(Paired(a + d, b, c, 0)) == drop_interval(Paired(0, b, c, a + d))
    assert found.low_points != pytest.approx(100 * published[0], abs=0.00501), "method 10 itself depends on both wrong"


def square_and_add(b, c, n, level):
    """From the formula, on scipy's Wilson limits."""
    p, q = b / n, c / n
    wilson_b = scipy.stats.binomtest(b, n).proportion_ci(level, "wilson")
    wilson_c = scipy.stats.binomtest(c, n).proportion_ci(level, "wilson")
    r = 0.0 if b * c == 0 else -(((b / (n - b)) * (c / (n - c))) ** 0.5)
    down, up = (p - wilson_b.low, wilson_c.high - q), (wilson_b.high - p, q - wilson_c.low)
    low, high = (np.sqrt(max(0.0, x * x - 2 * r * x * y + y * y)) for x, y in (down, up))
    return 100 * (p - q - low), 100 * (p - q + high)


@given(paired=tables, level=levels)
@settings(max_examples=150, deadline=None)
def test_interval_is_the_formula_on_scipys_wilson_limits(paired, level):
    found = drop_interval(paired, level)
    expected = square_and_add(paired.right_to_wrong, paired.wrong_to_right, paired.images, level)
    assert limits(found) == pytest.approx(expected, abs=1e-9)
    assert found.level == level


@given(paired=tables, level=levels)
@settings(max_examples=150, deadline=None)
def test_interval_mirrors_moves_and_shrinks_as_it_should(paired, level):
    a, b, c, d = paired.both_right, paired.right_to_wrong, paired.wrong_to_right, paired.both_wrong
    found = drop_interval(paired, level)
    drop = 100 * (b - c) / paired.images
    assert -100 - 1e-9 <= found.low_points < drop + 1e-9
    assert drop - 1e-9 < found.high_points <= 100 + 1e-9
    assert limits(drop_interval(Paired(a, c, b, d), level)) == (-found.high_points, -found.low_points)
    worse = drop_interval(Paired(a - 1, b + 1, c, d), level)
    assert worse.low_points > found.low_points
    assert worse.high_points > found.high_points
    larger = drop_interval(Paired(4 * a, 4 * b, 4 * c, 4 * d), level)
    surer = drop_interval(paired, level + 0.005)
    assert surer.low_points < found.low_points < larger.low_points
    assert larger.high_points < found.high_points < surer.high_points
    assert larger.high_points - larger.low_points < 0.75 * (found.high_points - found.low_points), "about half"


@for_all(images=[1, 2, 10, 1000, 10_000])
def test_edges(images):
    nothing = drop_interval(Paired(images, 0, 0, 0))
    rest = 100 * Z95**2 / (images + Z95**2)  # Wilson's upper limit of no flip among n
    assert limits(nothing) == pytest.approx((-rest, rest), rel=1e-12), "no flip in a sample does not prove that there are none"
    assert drop_interval(Paired(0, images, 0, 0)).high_points == pytest.approx(100, abs=1e-12), "everything lost"
    assert drop_interval(Paired(0, 0, images, 0)).low_points == pytest.approx(-100, abs=1e-12)
    half = drop_interval(Paired(0, images, images, 0))
    assert half.high_points == pytest.approx(-half.low_points)
    assert 0 < half.high_points <= 100


def test_large_samples_tend_to_wald():
    b, c, n = 60_000, 40_000, 10_000_000
    half = Z95 * np.sqrt(b + c - (b - c) ** 2 / n) / n
    assert limits(drop_interval(Paired(n - b - c, b, c, 0))) == pytest.approx((0.2 - 100 * half, 0.2 + 100 * half), abs=1e-4)


def test_arrays_and_single_counts_agree():
    b, c = np.arange(30), np.arange(30)[::-1]
    low, high = drop_limits(b, c, 500)
    singles = [limits(drop_interval(Paired(500 - x - y, x, y, 0))) for x, y in zip(b.tolist(), c.tolist(), strict=True)]
    assert np.column_stack([100 * low, 100 * high]).tolist() == [list(single) for single in singles]


# --- a share, and the test


@given(count=st.integers(0, 400), rest=st.integers(0, 400), level=levels)
@settings(max_examples=100, deadline=None)
def test_share_is_scipys_wilson_interval(count, rest, level):
    assume(count + rest)
    expected = scipy.stats.binomtest(count, count + rest).proportion_ci(level, "wilson")
    found = share_interval(count, count + rest, level)
    assert limits(found) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-10)


def test_share_is_exact_at_its_ends():
    assert share_interval(0, 700).low_points == 0.0
    assert share_interval(700, 700).high_points == pytest.approx(100.0, abs=1e-12)
    low, high = wilson_limits(1, 10**7)
    assert 0 < low < 1e-7 < high
    every = np.arange(1, 20_000)
    assert wilson_limits(every, every)[1].max() <= 1.0, "rounding makes no share of more than all"


@given(lost=st.integers(0, 3000), won=st.integers(0, 3000))
@settings(max_examples=100, deadline=None)
def test_mcnemar_is_scipys_binomial_test(lost, won):
    expected = scipy.stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar_p(Flips(lost, won)) == pytest.approx(expected, rel=1e-9, abs=1e-290)  # scipy gives 0 for 2.7e-300


def test_mcnemar_does_not_underflow():
    exact = Fraction(2 * sum(comb(1075, k) for k in range(11)), 2**1075)
    assert mcnemar_p(Flips(10, 1065)) == pytest.approx(float(exact), rel=1e-9, abs=0)


def test_mcnemar_by_hand():
    assert mcnemar_p(Flips(6, 16)) == pytest.approx(0.052479, abs=5e-7)  # Fagerland, Lydersen, Laake 2017, chapter 8
    assert mcnemar_p(Flips(10, 2)) == pytest.approx(2 * (1 + 12 + 66) / 2**12, rel=1e-13)
    assert mcnemar_p(Flips(2, 10)) == mcnemar_p(Flips(10, 2))
    assert mcnemar_p(Flips(0, 0)) == 1.0
    assert mcnemar_p(Flips(7, 7)) == 1.0
    tail = sum(comb(300, k) for k in range(121))
    assert mcnemar_p(Flips(120, 180)) == pytest.approx(2 * tail / 2**300, rel=1e-11)
    assert mcnemar_p(Flips(400_000, 402_000)) == pytest.approx(0.0256, abs=2e-4), "no overflow"


# --- the verdict

VERDICTS = [
    (-0.1, 0.4, "pass"),
    (-0.1, 0.5, "pass"),
    (-0.1, 0.5 + 1e-9, "inconclusive"),
    (0.5, 0.9, "inconclusive"),
    (0.5 + 1e-9, 0.9, "fail"),
    (-3.0, -1.0, "pass"),
    (-3.0, 3.0, "inconclusive"),
]


def judged_rightly(rule):
    return all(rule(Interval(0.95, low, high), 0.5) == verdict for low, high, verdict in VERDICTS)


def test_verdict_needs_the_whole_interval():
    assert judged_rightly(decide)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda i, budget: "inconclusive" if i.high_points == budget else decide(i, budget),
        lambda i, budget: "fail" if i.low_points >= budget else decide(i, budget),
        lambda i, budget: "pass" if i.low_points <= budget else "fail",
        lambda i, budget: "pass" if (i.low_points + i.high_points) / 2 <= budget else "fail",
        lambda i, budget: decide(i, budget) if i.low_points >= -budget else "inconclusive",
        lambda i, budget: decide(i, budget / 100),
    ],
)
def test_a_wrong_boundary_is_found(wrong):
    assert not judged_rightly(wrong)


def verdict_at(paired, images, budget, level=0.95):
    scale = images / paired.images
    low, high = drop_limits(scale * paired.right_to_wrong, scale * paired.wrong_to_right, images, level)
    return decide(Interval(level, 100 * float(low), 100 * float(high)), budget)


@given(paired=tables, budget=st.floats(0, 5), level=levels)
@settings(max_examples=150, deadline=None)
def test_images_to_decide_decide_and_a_fifth_less_do_not(paired, budget, level):
    needed = images_to_decide(paired, budget, level)
    if needed is None:
        assert verdict_at(paired, MOST_IMAGES, budget, level) == "inconclusive"
        return
    assert verdict_at(paired, needed, budget, level) != "inconclusive"
    assert needed < 2 or verdict_at(paired, int(0.8 * needed), budget, level) == "inconclusive"
    assert needed < 100 or needed % 10 ** (len(str(needed)) - 2) == 0, "two digits"
    if decide(drop_interval(paired, level), budget) == "inconclusive":
        assert needed > paired.images


def test_images_to_decide_by_trying_every_number():
    paired = Paired(900, 10, 0, 90)
    first = next(n for n in range(1, 5000) if verdict_at(paired, n, 0.5) != "inconclusive")
    assert 1300 < first <= 1400
    assert images_to_decide(paired, 0.5) == 1400
    assert verdict_at(paired, 1400, 0.5) == "fail"
    assert images_to_decide(Paired(1000, 0, 0, 0), 0.5) == 770, "no flip: z^2 / (n + z^2) <= 0.5 %"


def test_no_number_decides_a_drop_that_is_the_budget():
    assert images_to_decide(Paired(900, 5, 0, 95), 0.5) is None
    assert images_to_decide(Paired(900, 7, 7, 86), 0.0) is None
    assert images_to_decide(Paired(900, 0, 0, 100), 0.0) is None


# --- refusals, and what a device needs


@pytest.mark.parametrize(
    "ask",
    [
        lambda: Paired(0, 0, 0, 0),
        lambda: Paired(5, -1, 0, 0),
        lambda: drop_interval(Paired(5, 1, 0, 0), 0.0),
        lambda: drop_interval(Paired(5, 1, 0, 0), 1.0),
        lambda: drop_interval(Paired(5, 1, 0, 0), 95),
        lambda: images_to_decide(Paired(5, 1, 0, 0), 0.5, float("nan")),
        lambda: share_interval(6, 5),
        lambda: share_interval(-1, 5),
        lambda: share_interval(0, 0),
        lambda: mcnemar_p(Flips(-1, 3)),
    ],
)
def test_invalid_arguments_are_refused(ask):
    with pytest.raises(InputError, match=r"found: .*\n  allowed: "):
        ask()


def test_a_table_knows_its_images_and_flips():
    paired = Paired(9000, 8, 7, 985)
    assert (paired.images, paired.flips) == (10_000, Flips(8, 7))


def test_a_device_judges_without_scipy():
    code = (
        "import sys; sys.modules['scipy'] = None; from edge.tasks.classification.drop_interval import *; "
        "from edge.tasks.interval import decide, share_interval; p = Paired(900, 9, 2, 89);"
        "print(decide(drop_interval(p), 0.5), images_to_decide(p, 0.5), mcnemar_p(p.flips), share_interval(9, 900))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    paired = Paired(900, 9, 2, 89)
    assert run.stdout.split()[:2] == ["inconclusive", str(images_to_decide(paired, 0.5))]
