"""Oracles: numpy.histogram on all data at once, numpy.percentile, brute force over the data itself, scipy's entropy."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from splits import merged_in_some_order, three_parts

from calib.calibrators import METHODS, entropy, minmax, mse, percentile, range_method
from calib.errors import DataError, InputError, UsageError
from calib.histogram import BINS, Histogram

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
DATA = arrays(np.float32, st.integers(1, 60), elements=FLOATS | st.sampled_from([0.0, 1.0, 2.0**-149, 4096.0, -(2.0**127)]))


def observe(*chunks):
    histogram = Histogram("x")
    for chunk in chunks:
        histogram.update(chunk)
    return histogram


def state(histogram):
    return histogram.counts.tobytes(), histogram.exponent, histogram.amax


@settings(max_examples=100, deadline=None, derandomize=True)
@given(DATA, st.data())
def test_any_split_and_any_merge_order_give_the_same_bytes(values, data):
    whole = observe(values)
    merged = merged_in_some_order(values, data, observe)
    assert state(merged) == state(whole)
    for reduce in METHODS.values():
        assert reduce(merged) == reduce(whole)


def merged(*parts):
    result = Histogram("x")
    for part in parts:
        result.merge(part)
    return result


@settings(max_examples=100, deadline=None, derandomize=True)
@given(DATA, st.data())
def test_merging_is_associative_and_commutative(values, data):
    a, b, c = three_parts(values, data, observe)
    expected = state(observe(values))
    assert state(merged(merged(a, b), c)) == state(merged(a, merged(b, c))) == expected
    assert state(merged(c, a, b)) == state(merged(b, c, a)) == expected


@settings(deadline=None, derandomize=True)
@given(DATA)
def test_counts_are_those_of_numpy(values):
    histogram = observe(values)
    magnitudes = np.abs(values.astype(np.float64))
    edges = np.arange(BINS + 1) * histogram.width
    np.testing.assert_array_equal(histogram.counts, np.histogram(magnitudes, edges)[0])
    assert histogram.amax == magnitudes.max() < edges[-1]
    if histogram.amax > 1e-30:
        assert histogram.amax >= edges[-1] / 2, "the upper half of the bins is in use"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shapes_strides_and_types_do_not_matter(dtype):
    values = np.random.default_rng(0).normal(size=(40, 50)).astype(dtype)
    expected = state(observe(values.astype(np.float32).ravel()))
    assert state(observe(values.T[::-1])) == expected
    assert state(observe(values[:0], values)) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_is_refused_with_the_tensor_named(bad):
    histogram = Histogram("blocks.0/q")
    with pytest.raises(DataError, match=r"blocks\.0/q[\s\S]*1 of 5 elements"):
        histogram.update(np.array([1, 2, bad, 4, 5], np.float32))
    assert histogram.size == 0


def test_wrong_types_are_refused():
    with pytest.raises(DataError, match="float32"):
        Histogram("x").update(np.ones(3))


def test_minmax_is_exact():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert minmax(observe(values)) == np.abs(values).max()


@pytest.mark.parametrize("percent", [50.0, 99.0, 99.9, 99.99])
def test_percentile_is_within_a_bin_of_numpys(percent):
    values = np.random.default_rng(1).laplace(size=200_000).astype(np.float32)
    histogram = observe(values)
    exact = np.percentile(np.abs(values), percent, method="inverted_cdf")
    found = percentile(histogram, percent)
    assert exact <= found <= exact + histogram.width
    assert range_method(f"percentile:{percent}")(histogram) == found
    assert percentile(histogram, 100) == histogram.amax


def quantization_mse(values, amax):
    step = amax / 127
    return np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2)


@pytest.mark.parametrize("draw", ["normal", "laplace", "standard_t"])
def test_mse_is_as_good_as_brute_force_over_the_data(draw):
    rng = np.random.default_rng(2)
    values = rng.standard_t(3, 100_000) if draw == "standard_t" else getattr(rng, draw)(size=100_000)
    values = values.astype(np.float32).astype(np.float64)
    best = min(quantization_mse(values, a) for a in np.abs(values).max() * np.linspace(0.02, 1, 400))
    found = quantization_mse(values, mse(observe(values.astype(np.float32))))
    assert found <= 1.02 * best


@pytest.mark.parametrize("draw", ["normal", "laplace", "standard_t"])
def test_weighted_mse_is_as_good_as_brute_force_over_the_data(draw):
    """The oracle rounds and clips the values themselves, and weights the errors of those beyond the last level's bin."""

    def weighted(amax):
        error = (values - np.clip(np.rint(values / (amax / 127)), -127, 127) * (amax / 127)) ** 2
        return np.mean(error * np.where(np.abs(values) > 127.5 / 127 * amax, 16.0, 1.0))

    rng = np.random.default_rng(2)
    values = rng.standard_t(3, 100_000) if draw == "standard_t" else getattr(rng, draw)(size=100_000)
    values = values.astype(np.float32).astype(np.float64)
    best = min(map(weighted, np.abs(values).max() * np.linspace(0.02, 1, 400)))
    histogram = observe(values.astype(np.float32))
    found = METHODS["weighted_mse"](histogram)
    assert weighted(found) <= 1.02 * best
    assert mse(histogram) < found <= histogram.amax, "it clips less than mse"
    assert weighted(mse(histogram)) > 1.05 * best, "the control: mse is not the answer"


def test_mse_does_not_clip_a_uniform_distribution():
    values = np.linspace(-1, 1, 100_001, dtype=np.float32)
    assert mse(observe(values)) == pytest.approx(1.0, rel=0.01)


def plain_kl(counts, i):
    """The textbook loop: threshold of i bins against 128 levels."""
    p = counts[:i].astype(float).copy()
    q = np.zeros(i)
    for level in range(128):
        bins = [b for b in range(i) if b * 128 // i == level and counts[b] > 0]
        for b in bins:
            q[b] = counts[bins].sum() / len(bins)
    p[-1] += counts[i:].sum()
    return scipy.stats.entropy(p, q)


def test_entropy_agrees_with_the_textbook_loop():
    values = np.random.default_rng(3).standard_t(4, 30_000).astype(np.float32)
    histogram = observe(values)
    counts = histogram.counts.reshape(2048, 2).sum(axis=1)
    counts[0] = counts[1]
    last = int(histogram.amax / (2 * histogram.width)) + 1
    candidates = list(range(last, 127, -16))
    best = candidates[int(np.argmin([plain_kl(counts[:last], i) for i in candidates]))]
    assert entropy(histogram) == pytest.approx(min(best * 2 * histogram.width, histogram.amax))


def test_entropy_clips_a_far_outlier_and_minmax_does_not():
    values = np.append(np.random.default_rng(3).normal(size=100_000), 40.0).astype(np.float32)
    assert 3 < entropy(observe(values)) < 8
    assert minmax(observe(values)) == 40


def test_exact_zeros_do_not_move_entropy():
    values = np.random.default_rng(5).laplace(size=50_000).astype(np.float32)
    assert entropy(observe(values, np.zeros(200_000, np.float32))) == entropy(observe(values))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_stays_within_the_data_and_scales_with_it(name):
    values = np.random.default_rng(4).laplace(size=50_000).astype(np.float32)
    amax = METHODS[name](observe(values))
    assert 0 < amax <= np.abs(values).max()
    assert METHODS[name](observe(values * np.float32(8))) == 8 * amax


@pytest.mark.parametrize("name", METHODS)
def test_every_method_handles_constants_and_zeros(name):
    assert METHODS[name](observe(np.full(1000, 3.0, np.float32))) == pytest.approx(3.0, rel=1e-3)
    assert METHODS[name](observe(np.zeros(1000, np.float32))) == 0.0


@pytest.mark.parametrize("name", ["nothing", "percentile:0", "percentile:x", "percentile:101", "minmax:3"])
def test_unknown_methods_are_refused(name):
    with pytest.raises(InputError):
        range_method(name)


def test_the_list_of_methods_is_in_the_message():
    with pytest.raises(UsageError, match="minmax, percentile, entropy, mse"):
        range_method("histogram")


def test_memory_is_fixed():
    histogram = observe(np.ones(10, np.float32))
    size = histogram.counts.nbytes
    histogram.update(np.random.default_rng(0).normal(size=100_000).astype(np.float32) * 1e6)
    assert histogram.counts.nbytes == size == 8 * BINS
    assert histogram.size == 100_010
    assert math.log2(histogram.width).is_integer()
