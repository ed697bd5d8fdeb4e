"""Correct rebuilds raise no false alarm: simulated at the shipped network's rates, summed exactly, and on subsets."""

from dataclasses import replace

import numpy as np
import pytest
from gate_builds import memory_build

from calib.errors import InputError
from calib.metrics import sqnr_db
from edge.gate.compare_builds import compare_builds
from edge.gate.update import make_baseline
from edge.images.labelled_images import ImageSet
from edge.tasks.classification.drop_interval import drop_limits
from edge.tasks.classification.gate_tolerances import FEW, Z, noise_points, sqnr_deviation_db
from edge.tasks.gate_row import Tolerance
from edge.tasks.interval import wilson_limits


def close_answers(rng, images, classes=5):
    """(reference, labels): nine of ten right; the logits of label and next class differ by 0.3: a small error flips them."""
    labels = rng.integers(0, classes, images)
    reference = rng.normal(0, 3, (images, classes)).astype(np.float32)
    answered = np.where(rng.random(images) < 0.9, labels, (labels + 1) % classes)
    top = reference.max(1)
    reference[np.arange(images), labels] = reference[np.arange(images), (labels + 1) % classes] = top + 1
    reference[np.arange(images), answered] = top + 1.3
    return reference, labels


def honest(rng, labels, reference):
    """Logits of an engine with 7.5 expected answers that turn wrong and 7.5 that turn right, of all images."""
    right = reference.argmax(1) == labels
    rates = np.where(right, 7.5 / right.sum(), 7.5 / (~right).sum())
    engine = reference + np.float32(0.02) * np.where(np.arange(reference.shape[1]) % 2, 1, -1).astype(np.float32)
    for i in np.flatnonzero(rng.random(len(labels)) < rates):
        wanted = labels[i] if not right[i] else (labels[i] + 1) % reference.shape[1]
        engine[i, wanted] = engine[i].max() + 0.05
    return engine


@pytest.mark.slow
@pytest.mark.parametrize("images", [10_000, 500])
def test_two_thousand_honest_rebuilds_raise_no_alarm(images, tmp_path):
    """The shipped network's rate, 15 of 10,000 answers, drawn independently for baseline and rebuild."""
    rng = np.random.default_rng(images)
    reference, labels = close_answers(rng, 10_000)
    taken = ImageSet("", ("",) * 10_000, np.arange(10_000), "2" * 64, lambda _i: None).take(images)
    chosen, wrong, changed = taken.labels, [], []
    for _ in range(40):
        baseline = make_baseline(memory_build(reference, honest(rng, labels, reference), labels))
        identity = replace(baseline.identity, data_sha256=taken.sha256, images=images)
        template = memory_build(reference[chosen], reference[chosen], labels[chosen], identity)
        for _ in range(50):
            engine = honest(rng, labels, reference)[chosen]
            same = engine.argmax(1) == reference[chosen].argmax(1)
            recorded = template.measured.answers
            figures = {**recorded.figures, "agreement": same.mean(), "sqnr_db": sqnr_db(reference[chosen], engine)}
            measured = replace(template.measured, answers=replace(recorded, figures=figures))
            build = replace(template, sides=replace(template.sides, engine=(engine,)), measured=measured)
            report = compare_builds(build, baseline, tmp_path)
            changed.append(int((~same).sum()))
            wrong += [report.reason] if report.verdict != "pass" else []
    assert len(changed) == 2000
    assert np.mean(changed) == pytest.approx(15 * images / 10_000, rel=0.2)
    assert wrong == []


def test_with_a_tolerance_of_nothing_honest_rebuilds_raise_alarms(tmp_path):
    """The negative control of the test above: the tolerances prevent false alarms."""
    rng = np.random.default_rng(0)
    reference, labels = close_answers(rng, 2000)
    baseline = make_baseline(memory_build(reference, honest(rng, labels, reference), labels))
    strict = replace(baseline, tolerances={name: Tolerance(0.0, "none") for name in baseline.tolerances})
    builds = [memory_build(reference, honest(rng, labels, reference), labels) for _ in range(20)]
    assert {compare_builds(build, baseline, tmp_path).verdict for build in builds} == {"pass"}
    assert "pass" not in {compare_builds(build, strict, tmp_path).verdict for build in builds}


@pytest.mark.parametrize(("of", "images"), [(500, 500), (10_000, 10_000), (10_000, 1000), (10_000, 500), (10_000, 5000)])
def test_the_noise_is_exceeded_as_rarely_as_stated(of, images):
    """The sum over all draws of baseline and rebuild, Poisson at every rate, against the sentence in the docstring."""
    poisson = pytest.importorskip("scipy.stats").poisson
    for rate in (0.05, 0.3, 1, 2, 3, 5, 8, 15, 30, 60):
        inside, outside = rate * images / of, rate * (1 - images / of)
        k = np.arange(int(inside + 9 * inside**0.5) + 20)
        rest = np.arange(int(outside + 9 * outside**0.5) + 20) if outside else np.zeros(1, int)
        shares = poisson.pmf(k, inside)
        upper = 100 * drop_limits(k[None, :], k[:, None], images)[1]
        alarms = 0.0
        for more, probability in zip(rest, poisson.pmf(rest, outside) if outside else [1.0], strict=True):
            limits = wilson_limits(k + more, of)[1]
            allowed = 100 * Z * np.sqrt(2 * limits * images + FEW) / images
            assert allowed[0] == pytest.approx(noise_points(images, int(more), of))
            alarms += probability * float((shares[:, None] * shares[None] * (upper > allowed[:, None])).sum())
        assert alarms < 1 / 20_000


def test_the_spread_of_sqnr_is_that_of_many_samples():
    rng = np.random.default_rng(3)
    reference = rng.normal(0, 3, (20_000, 10)) * rng.uniform(0.5, 2, (20_000, 1))
    engine = reference + rng.normal(0, 0.05, reference.shape) * rng.lognormal(0, 0.5, (20_000, 1))

    def sqnr(rows):
        noise = (engine[rows] - reference[rows]) ** 2
        return 10 * np.log10((reference[rows] ** 2).sum() / noise.sum())

    samples = [sqnr(rng.choice(20_000, 500)) for _ in range(400)]
    assert sqnr_deviation_db(reference[:500], engine[:500]) == pytest.approx(np.std(samples), rel=0.3)
    assert sqnr_deviation_db(reference[:500], reference[:500]) == 0.0


def test_a_subset_is_compared_with_the_baselines_answers_for_it(tmp_path):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 4, 2000)
    reference = np.eye(4, dtype=np.float32)[labels] * 12 + rng.normal(0, 1, (2000, 4)).astype(np.float32)
    engine = reference + rng.normal(0, 0.05, reference.shape).astype(np.float32)
    baseline = make_baseline(memory_build(reference, engine, labels))
    taken = ImageSet("", ("",) * 2000, np.arange(2000), "2" * 64, lambda _i: None).take(500)
    assert taken.sha256 != "2" * 64
    identity = replace(baseline.identity, data_sha256=taken.sha256, images=500)
    rows = taken.labels
    build = memory_build(reference[rows], engine[rows], labels[rows], identity)
    report = compare_builds(build, baseline, tmp_path)
    assert report.verdict == "pass"
    widths = {row.quantity: row.tolerance for row in report.rows}
    assert widths["accuracy"] > 2 * baseline.tolerances["accuracy"].tolerance
    broken = engine[rows].copy()
    broken[:60] = np.roll(broken[:60], 1, axis=1)
    found = results_of(compare_builds(memory_build(reference[rows], broken, labels[rows], identity), baseline, tmp_path))
    assert (found["accuracy"], found["agreement"]) == ("fail", "fail")
    for wrong in (replace(identity, images=501), replace(identity, data_sha256="2" * 64), replace(identity, images=4000)):
        with pytest.raises(InputError, match="other data"):
            compare_builds(replace(build, identity=wrong), baseline, tmp_path)


def results_of(report):
    return {row.quantity: row.result for row in report.rows}
