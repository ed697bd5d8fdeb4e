"""Oracles: counts in plain Python, scipy's quantiles, a simulation of the interval's coverage."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.artifact import read_artifact, write_artifact
from calib.errors import InputError
from edge.drift.compare import DriftReport, Flips, Interval, Source, centred_cosine, compare, drop_interval, judge
from edge.tolerances import RANDOM_WEIGHTS_COSINE

N, CLASSES = 400, 6


@pytest.fixture
def pair():
    """Reference logits, those of an engine with noise, labels that the reference mostly meets."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, N)
    reference = rng.normal(size=(N, CLASSES)).astype(np.float32)
    reference[np.arange(N), labels] += 1.5
    return reference, reference + rng.normal(scale=0.4, size=reference.shape).astype(np.float32), labels


def brute_force(reference, engine, labels):
    def answer(row):
        return max(range(len(row)), key=lambda c: (row[c], -c))

    facts = {"lost": 0, "won": 0, "same": 0, "right_reference": 0, "right_engine": 0}
    tables = np.zeros((2, CLASSES, CLASSES), int)
    for a, b, label in zip(reference.tolist(), engine.tolist(), labels.tolist(), strict=True):
        x, y = answer(a), answer(b)
        facts["lost"] += x == label != y
        facts["won"] += y == label != x
        facts["same"] += x == y
        facts["right_reference"] += x == label
        facts["right_engine"] += y == label
        tables[0, label, x] += 1
        tables[1, label, y] += 1
    return facts, tables


def test_counts_are_those_of_a_plain_loop(pair):
    found = compare(*pair)
    facts, tables = brute_force(*pair)
    assert found.flips == Flips(facts["lost"], facts["won"])
    assert facts["lost"] > 5, "the case says something"
    assert facts["won"] > 5
    assert found.images == N
    assert found.top1_reference == facts["right_reference"] / N
    assert found.top1_engine == facts["right_engine"] / N
    assert found.agreement == facts["same"] / N
    assert found.drop_points == pytest.approx(100 * (found.top1_reference - found.top1_engine), abs=1e-12)
    assert found.confusion_reference == tuple(map(tuple, tables[0].tolist()))
    assert found.confusion_engine == tuple(map(tuple, tables[1].tolist()))
    assert found.not_finite == 0


def test_numerical_measures(pair):
    reference, engine, _ = pair
    found = compare(*pair)
    noise = np.sum((reference.astype(float) - engine) ** 2)
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.sum(reference.astype(float) ** 2) / noise), abs=1e-6)
    correlations = [1 - scipy.spatial.distance.correlation(a, b) for a, b in zip(reference, engine, strict=True)]
    assert found.cosine_min == pytest.approx(min(correlations), abs=1e-6)
    assert found.cosine_min < 0.9


def test_identity(pair):
    reference, _, labels = pair
    found = compare(reference, reference.copy(), labels)
    assert (found.agreement, found.drop_points, found.cosine_min, found.sqnr_db) == (1, 0, pytest.approx(1), 300)


@pytest.mark.parametrize(
    ("damage", "agreement", "sqnr_below", "cosine_below"),
    [
        (lambda x: 2 * x, 1.0, 1, 2),  # the same answers: only the numbers tell
        (lambda x: 0.5 * x, 1.0, 7, 2),
        (lambda x: x + 10, 1.0, 1, 2),
        (lambda x: -x, 0.05, 1, -0.99),
        (lambda x: 0 * x, 0.3, 1, 0.01),
        (lambda x: x * np.float32([0, 1, 1, 1, 1, 1]), 0.95, 12, 0.6),
        (lambda x: x[:, ::-1], 0.4, 3, 0.0),
        (lambda x: np.roll(x, 1, axis=0), 0.4, 1, 0.0),
    ],
)
def test_every_damage_shows(pair, damage, agreement, sqnr_below, cosine_below):
    reference, _, labels = pair
    found = compare(reference, np.ascontiguousarray(damage(reference)), labels)
    assert found.agreement <= agreement
    assert found.sqnr_db < sqnr_below
    assert found.cosine_min < cosine_below


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_a_wrong_answer(pair, bad):
    reference, engine, labels = pair
    engine = reference.copy()
    right = int(np.flatnonzero(reference.argmax(1) == labels)[0])
    wrong = int(np.flatnonzero(reference.argmax(1) != labels)[0])
    engine[right, 0] = engine[wrong, 1] = bad
    found = compare(reference, engine, labels)
    assert found.not_finite == 2
    assert found.flips == Flips(1, 0)
    assert found.agreement == (N - 2) / N
    assert found.sqnr_db == 300, "of the finite rows"
    assert sum(map(sum, found.confusion_engine)) == N - 2
    verdict, reason = judge(found, 100.0, random_weights=False)
    assert verdict == "fail"
    assert f"2 of {N}" in reason
    assert judge(found, 100.0, random_weights=True)[0] == "fail"


def test_nothing_finite_at_all(pair):
    reference, _, labels = pair
    found = compare(reference, np.full_like(reference, np.nan), labels)
    assert (found.not_finite, found.top1_engine, found.agreement, found.sqnr_db, found.cosine_min) == (N, 0, 0, -300, -1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r, e, y: (r, e[:-1], y),
        lambda r, e, y: (r, e[:, :-1], y),
        lambda r, e, y: (r, e, y[:-1]),
        lambda r, e, y: (r[:0], e[:0], y[:0]),
        lambda r, e, y: (r[0], e[0], y),
        lambda r, e, y: (r, e, y[:, None]),
        lambda r, e, y: (r, e, np.where(y == 0, CLASSES, y)),
        lambda r, e, y: (r, e, np.where(y == 0, -1, y)),
    ],
)
def test_what_does_not_match_is_refused(pair, spoil):
    with pytest.raises(InputError, match="logits and labels do not match"):
        compare(*spoil(*pair))


def test_a_reference_that_is_not_finite_is_refused(pair):
    reference, engine, labels = pair
    reference[3, 3] = np.nan
    with pytest.raises(InputError, match="reference itself holds NaN"):
        compare(reference, engine, labels)


def test_cosine_where_rows_are_flat():
    flat, row = np.full((1, 4), 3.0), np.array([[1.0, 2, 3, 4]])
    assert centred_cosine(flat, flat) == 1
    assert centred_cosine(flat, row) == 0
    assert centred_cosine(row, 5 * row + 7) == pytest.approx(1)


counts = st.integers(0, 300)


@given(lost=counts, won=counts, same=counts, level=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_interval_is_walds_on_half_a_flip_more_per_cell(lost, won, same, level):
    """Oracle: the mean of +1, -1 and 0 with weights lost + 1/2, won + 1/2 and same + 1, and numpy's weighted variance."""
    images = max(1, lost + won + same)
    values, weights = np.array([1.0, -1.0, 0.0]), np.array([lost + 0.5, won + 0.5, images - lost - won + 1.0])
    mean = np.average(values, weights=weights)
    variance = np.average((values - mean) ** 2, weights=weights) / weights.sum()
    expected = scipy.stats.norm.interval(level, loc=100 * mean, scale=100 * np.sqrt(variance))
    found = drop_interval(Flips(lost, won), images, level)
    assert (found.level, found.low_points, found.high_points) == (level, *map(pytest.approx, expected))
    mirrored = drop_interval(Flips(won, lost), images, level)
    assert (-mirrored.high_points, -mirrored.low_points) == pytest.approx((found.low_points, found.high_points))


def test_interval_covers_what_it_says():
    """20,000 draws of 500 paired answers with a true drop of 2 points: about 95 % of the intervals hold it."""
    draws = np.random.default_rng(1).multinomial(500, [0.05, 0.03, 0.92], size=20_000)
    patterns, repeats = np.unique(draws[:, :2], axis=0, return_counts=True)
    intervals = [drop_interval(Flips(int(b), int(c)), 500) for b, c in patterns]
    covered = sum(n for i, n in zip(intervals, repeats, strict=True) if i.low_points <= 2.0 <= i.high_points)
    assert 0.94 < covered / len(draws) < 0.965


def test_interval_moves_and_shrinks_as_it_should():
    base = drop_interval(Flips(10, 5), 1000)
    more_lost, more_images = drop_interval(Flips(11, 5), 1000), drop_interval(Flips(100, 50), 10_000)
    assert more_lost.low_points > base.low_points
    assert more_lost.high_points > base.high_points
    assert more_images.high_points - more_images.low_points < base.high_points - base.low_points
    certain = drop_interval(Flips(10, 5), 1000, level=0.99)
    assert certain.low_points < base.low_points < base.high_points < certain.high_points
    nothing = drop_interval(Flips(0, 0), 1000)
    assert nothing.low_points < 0 < nothing.high_points, "no flip among 1000 images is no proof that there is none"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.1, 0.4, "pass"),
        (-0.1, 0.5, "pass"),
        (-0.1, 0.5 + 1e-9, "inconclusive"),
        (0.5, 0.9, "inconclusive"),
        (0.5 + 1e-9, 0.9, "fail"),
        (-3.0, -1.0, "pass"),
        (-3.0, 3.0, "inconclusive"),
    ],
)
def test_verdict_needs_the_whole_interval(pair, low, high, verdict):
    comparison = replace(compare(*pair), interval=Interval(0.95, low, high))
    found, reason = judge(comparison, 0.5, random_weights=False)
    assert found == verdict
    assert f"[{low:+.2f}, {high:+.2f}], budget 0.5" in reason
    assert ("do not decide" in reason) == (verdict == "inconclusive")


@pytest.mark.parametrize(
    ("cosine", "verdict"),
    [(1.0, "pass"), (RANDOM_WEIGHTS_COSINE, "pass"), (RANDOM_WEIGHTS_COSINE - 1e-9, "fail"), (-1.0, "fail")],
)
def test_drawn_weights_are_judged_by_numbers(pair, cosine, verdict):
    comparison = replace(compare(*pair), cosine_min=cosine, interval=Interval(0.95, 90.0, 99.0))
    found, reason = judge(comparison, 0.5, random_weights=True)
    assert found == verdict
    assert "random weights have no accuracy" in reason


def test_report_survives_its_file(pair, tmp_path):
    comparison = compare(*pair)
    source = Source("model.onnx", "0" * 64, "ONNX Runtime, CPU")
    verdict, reason = judge(comparison, 0.5, random_weights=False)
    report = DriftReport(
        reference=source,
        engine=source,
        data="d",
        data_sha256="1",
        preprocess_sha256="2",
        budget_points=0.5,
        judged_by="accuracy",
        random_weights=False,
        verdict=verdict,
        reason=reason,
        **vars(comparison),
    )
    write_artifact(tmp_path / "drift.json", report)
    assert read_artifact(tmp_path / "drift.json", DriftReport, remake="x") == report
