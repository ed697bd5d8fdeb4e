"""Does the interval hold the true drop as often as it says? Oracles: known drops, exact sums over the multinomial, papers."""

import numpy as np
import pytest
import scipy.stats
from for_all import for_all

from edge.tasks.classification.drop_interval import drop_limits
from scripts.bench import drift_statistics as bench

RUNS = 10_000
Z95 = scipy.stats.norm.ppf(0.975)


def holds_what_it_says(method, setting):
    """Nominal 95 % lies between 93.5 and 97 %."""
    return 0.935 <= bench.covered(method, setting, RUNS).coverage <= 0.97


def narrower(drawn):
    low, high = bench.ours(drawn)
    return low + 0.1 * (high - low), high - 0.1 * (high - low)


def unpaired(drawn):
    """As if the engine had seen other images than the reference."""
    a, b, c, _ = drawn.T
    n = drawn.sum(1)
    p, q = (a + b) / n, (a + c) / n
    half = Z95 * np.sqrt((p * (1 - p) + q * (1 - q)) / n)
    return p - q - half, p - q + half


def of_90_percent(drawn):
    return drop_limits(drawn[:, 1], drawn[:, 2], drawn.sum(1), 0.90)


def shifted(drawn):
    low, high = bench.ours(drawn)
    return low + 0.25 * (high - low), high + 0.25 * (high - low)


@for_all(setting=bench.MANY_FLIPS)
def test_coverage_is_what_the_readme_says(setting):
    assert setting.expected_flips >= 15
    assert holds_what_it_says(bench.ours, setting)
    found = bench.covered(bench.ours, setting, RUNS)
    assert max(found.below, found.above) < 0.031, "2.5 % on either side, and three standard errors of 10,000 runs"
    assert found == bench.covered(bench.ours, setting, RUNS), "the same draws every time"


@for_all(wrong=[narrower, unpaired, of_90_percent, shifted], setting=bench.MANY_FLIPS)
def test_a_wrong_interval_does_not_cover(setting, wrong):
    assert not holds_what_it_says(wrong, setting)


@for_all(setting=bench.FEW_FLIPS)
def test_with_few_flips_the_interval_errs_on_the_safe_side(setting):
    found = bench.covered(bench.ours, setting, RUNS)
    assert found.coverage >= 0.95
    assert max(found.below, found.above) < 0.025


def exact_errors(method, setting):
    """Probabilities that the interval ends below and begins above the true drop, over every pair of flip counts."""
    n, (right, lost, won, wrong) = setting.images, setting.rates
    most = [int(scipy.stats.binom.ppf(1 - 1e-12, n, rate)) + 2 for rate in (lost, won)]
    b, c = (grid.ravel() for grid in np.meshgrid(*(np.arange(m) for m in most)))
    weights = scipy.stats.multinomial.pmf(np.column_stack([b, c, n - b - c]), n, [lost, won, right + wrong])
    low, high = method(np.column_stack([n - b - c, b, c, 0 * b]))
    truth = setting.drop / 100
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    return weights[high < truth - 1e-12].sum(), weights[low > truth + 1e-12].sum()


@for_all(setting=[*bench.MANY_FLIPS[3:7], *bench.FEW_FLIPS])
def test_simulation_agrees_with_the_exact_probabilities(setting):
    found = bench.covered(bench.ours, setting, RUNS)
    for drawn, exact in zip((found.below, found.above), exact_errors(bench.ours, setting), strict=True):
        assert drawn == pytest.approx(exact, abs=4.5 * np.sqrt(exact * (1 - exact) / RUNS) + 1e-4)


@for_all(lost_of_flips=[0.5, 0.7, 0.9, 1.0], flips=[2, 3, 4, 5.5, 8, 12, 20, 40])
def test_exact_coverage_and_errors_at_every_number_of_flips(flips, lost_of_flips):
    setting = bench.Setting(2000, 50, flips / 20, (2 * lost_of_flips - 1) * flips / 20)
    below, above = exact_errors(bench.ours, setting)
    assert below < 0.0255
    assert above < 0.0285
    assert 1 - below - above > 0.9495


def test_agresti_min_would_pass_bad_engines():
    """Why the interval is another: five times the nominal error with 2 expected flips; and the check above can fail."""
    below, _ = exact_errors(bench.agresti_min, bench.Setting(2000, 50, 0.1, 0.1))
    assert below > 0.13
    assert exact_errors(bench.tango, bench.Setting(2000, 50, 0.2, 0.2))[1] > 0.05


# --- the intervals it is compared with are what their authors published

NEWCOMBE = [  # Statistics in Medicine 17 (1998) 2635-2650, table III, method 10
    ("Newcombe 10", (36, 12, 2, 0), (0.0569, 0.3404)),
    ("Newcombe 10", (20, 12, 2, 16), (0.0562, 0.3292)),
    ("Newcombe 10", (18, 12, 2, 18), (0.0562, 0.3290)),
    ("Newcombe 10", (36, 14, 0, 0), (0.1528, 0.4167)),
    ("Newcombe 10", (35, 14, 0, 1), (0.1461, 0.4175)),
    ("Newcombe 10", (18, 14, 0, 18), (0.1441, 0.3963)),
    ("Newcombe 10", (1, 98, 0, 1), (0.9171, 0.9916)),
    ("Newcombe 10", (0, 30, 0, 0), (0.8395, 1.0)),
    ("Newcombe 10", (53, 0, 0, 1), (-0.0729, 0.0729)),
    ("Newcombe 10", (30, 0, 0, 24), (-0.0358, 0.0358)),
    ("Newcombe 10", (27, 0, 0, 27), (-0.0351, 0.0351)),
]
FAGERLAND = [  # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8
    ("Tango", (59, 6, 16, 80), (-0.1240, -0.0054)),
    ("Agresti-Min", (59, 6, 16, 80), (-0.1182, -0.0045)),
]


@pytest.mark.parametrize(("method", "cells", "published"), NEWCOMBE + FAGERLAND)
def test_peers_are_as_published(method, cells, published):
    low, high = bench.METHODS[method](np.array([cells]))
    assert (low[0], high[0]) == pytest.approx(published, abs=5.01e-5)


def test_percentile_bootstrap_is_scipys():
    answers = np.repeat([1.0, -1.0, 0.0], [20, 10, 470])
    expected = scipy.stats.bootstrap((answers,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    low, high = bench.percentile_bootstrap(np.array([[470, 20, 10, 0]]))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.003)
    accelerated = scipy.stats.bootstrap((answers,), np.mean, n_resamples=4000, method="BCa", rng=1).confidence_interval
    low, high = bench.bca_bootstrap(np.array([[470, 20, 10, 0]]))
    assert (low[0], high[0]) == pytest.approx((accelerated.low, accelerated.high), abs=0.003)


def test_the_tables_are_printed_and_the_same_every_time(capsys):
    printed = []
    for _ in range(2):
        bench.coverage(50)
        bench.alarms(50, 0.15, 0.5)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    rows = [line for line in printed[0].splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(bench.MANY_FLIPS + bench.FEW_FLIPS) + 1 + 5
    assert rows[-1].endswith(" |")
