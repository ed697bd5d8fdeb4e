"""Oracles: scipy for KL, arithmetic by hand for SQNR. Every comparator must fail what is worse."""

import numpy as np
import pytest

from calib.errors import DataError
from calib.metrics import sqnr_db, top1_agreement

ALL = [sqnr_db, top1_agreement]


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(16, 10)).astype(np.float32)


def test_sqnr_of_a_tenth_of_noise_is_twenty_db():
    reference = np.array([3.0, -4.0])
    assert sqnr_db(reference, reference * 1.1) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == float("inf")
    assert sqnr_db(np.zeros(3), np.ones(3)) == float("-inf")


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_sqnr_survives_extreme_magnitudes(scale):
    reference = np.array([3.0, -4.0, 1.0])
    test = np.array([3.1, -4.0, 1.0])
    assert sqnr_db(reference * scale, test * scale) == pytest.approx(10 * np.log10(26 / 0.01))


def test_top1_agreement_counts_rows(logits):
    flipped = logits.copy()
    flipped[:4] *= -1
    expected = sum(a.argmax() == b.argmax() for a, b in zip(logits, flipped, strict=True)) / 16
    assert top1_agreement(logits, flipped) == expected < 1
    assert top1_agreement(logits, 2 * logits) == 1


@pytest.mark.parametrize(
    "spoil", [lambda x: 2 * x, lambda x: 0.5 * x, lambda x: 0 * x, lambda x: -x, lambda x: x * ([0] + [1] * 9)]
)
def test_sqnr_drops_for_every_kind_of_error(logits, spoil):
    assert sqnr_db(logits, spoil(logits)) < 15


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_one_bad_number_is_refused_by_every_metric(logits, metric, bad, side):
    spoiled = logits.copy()
    spoiled[3, 3] = bad
    pair = (spoiled, logits) if side == 0 else (logits, spoiled)
    with pytest.raises(DataError, match=r"1 of 160 elements"):
        metric(*pair)


@pytest.mark.parametrize("metric", ALL)
def test_shapes_must_agree(logits, metric):
    with pytest.raises(DataError, match="shape"):
        metric(logits, logits[:1])  # would broadcast
    with pytest.raises(DataError, match="nothing to compare"):
        metric(logits[:0], logits[:0])


def test_logits_need_a_batch_axis():
    with pytest.raises(DataError, match="B, classes"):
        top1_agreement(np.ones(3), np.ones(3))
