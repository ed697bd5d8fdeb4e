"""Oracles: counts in plain Python, scipy's quantiles, a simulation of the interval's coverage."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats

from calib.artifact import read_artifact, write_artifact
from calib.errors import InputError
from edge.drift.drift_report import DriftReport, Source, Subject, judge_sides
from edge.numeric_tolerances import RANDOM_WEIGHTS_COSINE
from edge.tasks.budget import Budget
from edge.tasks.classification.compare import centred_cosine, compare, judge
from edge.tasks.classification.drop_interval import Flips, Paired, drop_interval, images_to_decide, mcnemar_p
from edge.tasks.classification.logit_metrics import BINS
from edge.tasks.classification.logits import Logits
from edge.tasks.interval import Interval, share_interval
from edge.tasks.registry import load_task

N, CLASSES = 400, 6


@pytest.fixture
def pair():
    """Reference logits, those of an engine with noise, labels that the reference mostly agrees with."""
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
    _, verdict, reason = judge(found, 100.0, random_weights=False)
    assert verdict == "fail"
    assert f"2 of {N}" in reason
    assert judge(found, 100.0, random_weights=True)[1] == "fail"


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
        lambda r, e, _y: (r[:0], e[:0], None),
        lambda r, e, _y: (r, e[:-1], None),
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
    judged_by, found, reason = judge(comparison, 0.5, random_weights=False)
    assert (judged_by, found) == ("accuracy", verdict)
    assert f"[{low:+.2f}, {high:+.2f}], budget 0.5" in reason
    assert ("do not decide" in reason) == (verdict == "inconclusive")


@pytest.mark.parametrize(
    ("cosine", "verdict"),
    [(1.0, "pass"), (RANDOM_WEIGHTS_COSINE, "pass"), (RANDOM_WEIGHTS_COSINE - 1e-9, "fail"), (-1.0, "fail")],
)
def test_random_weights_are_judged_by_numbers(pair, cosine, verdict):
    comparison = replace(compare(*pair), cosine_min=cosine, interval=Interval(0.95, 90.0, 99.0))
    judged_by, found, reason = judge(comparison, 0.5, random_weights=True)
    assert (judged_by, found) == ("numbers", verdict)
    assert "random weights have no accuracy" in reason


def test_report_survives_its_file(pair, tmp_path):
    source = Source("model.onnx", "0" * 64, "ONNX Runtime, CPU")
    subject = Subject(source, source, "d", "1", "2")
    report = judge_sides(load_task("classification"), subject, Logits(*pair).sides, Budget(), random_weights=False)
    write_artifact(tmp_path / "drift.json", report)
    assert read_artifact(tmp_path / "drift.json", DriftReport, remake="x") == report


def test_the_interval_is_that_of_the_four_cells(pair):
    found, (facts, _) = compare(*pair), brute_force(*pair)
    right = facts["right_reference"]
    cells = Paired(right - facts["lost"], facts["lost"], facts["won"], N - right - facts["won"])
    assert found.interval == drop_interval(cells)
    assert found.mcnemar_p == mcnemar_p(Flips(facts["lost"], facts["won"]))
    assert found.changed_interval == share_interval(N - facts["same"], N)
    needed = images_to_decide(cells, found.drop_points + 0.3)
    assert f"about {needed:,} would" in judge(found, found.drop_points + 0.3, random_weights=False)[2]
    assert "no number of images would" in judge(found, found.drop_points, random_weights=False)[2]


def softmax(rows):
    return scipy.special.softmax(rows.astype(np.float64), axis=1)


def test_distances_are_scipys(pair):
    reference, engine, _ = pair
    found = compare(*pair).distance
    p, q = softmax(reference), softmax(engine)
    kl = [scipy.stats.entropy(a, b) for a, b in zip(p, q, strict=True)]
    assert (found.kl_mean, found.kl_max) == pytest.approx((np.mean(kl), np.max(kl)), rel=1e-9)
    assert found.max_abs == np.abs(reference.astype(np.float64) - engine).max()
    correlations = [1 - scipy.spatial.distance.correlation(a, b) for a, b in zip(reference, engine, strict=True)]
    assert found.cosine_mean == pytest.approx(np.mean(correlations), abs=1e-6)
    assert (found.confidence_reference, found.confidence_engine) == pytest.approx((p.max(1).mean(), q.max(1).mean()))
    shifts = []
    for a, b in zip(reference.astype(np.float64).tolist(), engine.astype(np.float64).tolist(), strict=True):
        answer = a.index(max(a))
        shifts.append(
            (b[answer] - max(v for i, v in enumerate(b) if i != answer))
            - (a[answer] - max(v for i, v in enumerate(a) if i != answer))
        )
    assert found.margin_shift_mean == pytest.approx(np.mean(shifts), abs=1e-9)


def test_calibration_error_is_that_of_a_plain_loop(pair):
    reference, engine, labels = pair
    found = compare(*pair)
    for logits, told in ((reference, found.reliability_reference), (engine, found.reliability_engine)):
        bins = [[] for _ in range(BINS)]
        for row, label in zip(softmax(logits), labels, strict=True):
            bins[min(int(row.max() * BINS), BINS - 1)].append((row.max(), row.argmax() == label))
        expected = sum(abs(sum(right for _, right in b) - sum(sure for sure, _ in b)) for b in bins) / N
        assert told.ece == pytest.approx(expected, abs=1e-12)
        assert [b.images for b in told.bins] == [len(b) for b in bins]
    sure = compare(reference, 50 * reference, labels)
    assert sure.reliability_engine.ece > found.reliability_reference.ece + 0.1, "too sure shows"
    assert sure.agreement == 1


def test_top_five(pair):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 9, N)
    reference = rng.normal(size=(N, 9)).astype(np.float32)
    engine = reference + rng.normal(scale=2, size=reference.shape).astype(np.float32)
    engine[0] = np.nan
    found = compare(reference, engine, labels)
    best = [sorted(range(9), key=lambda c, row=row: -row[c])[:5] for row in reference]
    assert found.top5_reference == pytest.approx(np.mean([label in top for top, label in zip(best, labels, strict=True)]))
    best = [sorted(range(9), key=lambda c, row=row: -row[c])[:5] for row in engine[1:]]
    assert found.top5_engine == pytest.approx(sum(label in top for top, label in zip(best, labels[1:], strict=True)) / N)
    assert any("1 of" in sentence and "NaN" in sentence for sentence in found.not_compared)
    few = compare(pair[0][:, :4], pair[1][:, :4], pair[2] % 4)
    assert (few.top5_reference, few.top5_engine) == (None, None)
    assert "top-5: there are 4 classes" in few.not_compared


def test_images_without_labels_are_judged_by_changed_answers(pair):
    reference, engine, labels = pair
    found = compare(reference, engine, None)
    known = compare(reference, engine, labels)
    assert not found.with_truth
    assert known.with_truth
    assert (found.agreement, found.sqnr_db, found.distance) == (known.agreement, known.sqnr_db, known.distance)
    assert any("no labels" in sentence for sentence in found.not_compared)
    changed = 100 * (1 - found.agreement)
    assert known.drop_points <= changed
    judged = {budget: judge(found, budget, random_weights=False)[:2] for budget in (changed / 4, changed, 4 * changed)}
    assert list(judged.values()) == [("agreement", "fail"), ("agreement", "inconclusive"), ("agreement", "pass")]
    broken = engine.copy()
    broken[5] = np.inf
    assert judge(compare(reference, broken, None), 100.0, random_weights=False)[1] == "fail"


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("random_weights", [True, False])
def test_a_reference_without_a_signal_is_inconclusive(labelled: bool, random_weights: bool) -> None:
    """Any engine agrees with it: SQNR and agreement are 0/0."""
    labels = np.arange(N) % CLASSES if labelled else None
    varied = np.random.default_rng(1).normal(size=(N, CLASSES)).astype(np.float32)
    for logits, words in (
        (np.zeros_like(varied), "zero for every image"),
        (np.repeat(varied[:1], N, 0), "the same for every image"),
    ):
        found = compare(logits, logits, labels)
        _, verdict, reason = judge(found, 5.0, random_weights=random_weights)
        assert (verdict, words in reason) == ("inconclusive", True)
        assert any(words in sentence for sentence in found.not_compared)
        broken = logits.copy()
        broken[0, 0] = np.nan
        assert judge(compare(logits, broken, labels), 5.0, random_weights=random_weights)[1] == "fail"
    assert compare(varied, varied, labels).constant_reference == ""
    assert judge(compare(varied, varied, None), 5.0, random_weights=random_weights)[1] == "pass"


def test_drift_of_an_ordinary_network_has_no_field_on_constants(tmp_path: Path) -> None:
    """What every reader of today's drift.json knows stays as it was."""
    logits = np.random.default_rng(1).normal(size=(N, CLASSES)).astype(np.float32)
    source = Source("model.onnx", "0" * 64, "ONNX Runtime, CPU")
    for reference, expected in ((logits, False), (np.zeros_like(logits), True)):
        task, sides = load_task("classification"), Logits(reference, reference, None).sides
        report = judge_sides(task, Subject(source, source, "d", "1", "2"), sides, Budget(1.5), random_weights=False)
        write_artifact(tmp_path / "drift.json", report)
        fields = json.loads((tmp_path / "drift.json").read_text())
        assert ("constant_reference" in fields) is expected
        assert fields["budget_points"] == 1.5
        assert not {"budget", "budget_sqnr_db", "budget_cosine"} & fields.keys()
        assert read_artifact(tmp_path / "drift.json", DriftReport, remake="x") == report
