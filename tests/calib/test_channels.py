"""Oracles: a per-tensor Histogram of each channel's slice, numpy.histogram, numpy.percentile, min and max of the slice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from splits import merged_in_some_order, three_parts

from calib.calibrators import METHODS, method
from calib.channels import CHANNEL_BINS, ChannelHistograms, channel_amax
from calib.errors import InputError
from calib.histogram import Histogram

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ELEMENTS = FLOATS | st.sampled_from([0.0, -0.0, 1.0, 2.0**-149, 4096.0, -(2.0**127)])
DATA = arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3)), elements=ELEMENTS)


def observe(*chunks, axis=1, bins=CHANNEL_BINS):
    histograms = ChannelHistograms("x", axis, bins)
    for chunk in chunks:
        histograms.update(chunk)
    return histograms


def state(histograms):
    parts = (histograms.counts, histograms.exponents, histograms.minimum, histograms.maximum, histograms.amax)
    return [(part.dtype, part.tobytes()) for part in parts]


def observe_merged(*parts):
    merged = ChannelHistograms(parts[0].tensor, parts[0].axis, parts[0].bins)
    for part in parts:
        merged.merge(part)
    return merged


@settings(max_examples=60, deadline=None, derandomize=True)
@given(DATA, st.data())
def test_any_split_and_any_merge_order_give_the_same_bytes(values, data):
    whole = observe(values)
    merged = merged_in_some_order(values, data, observe)
    assert state(merged) == state(whole)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(DATA, st.data())
def test_merging_is_associative_and_commutative(values, data):
    a, b, c = three_parts(values, data, observe)
    expected = state(observe(values))
    assert state(observe_merged(observe_merged(a, b), c)) == expected
    assert state(observe_merged(a, observe_merged(b, c))) == expected
    assert state(observe_merged(c, a, b)) == state(observe_merged(b, c, a)) == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=5), elements=ELEMENTS), st.data())
def test_every_row_is_the_histogram_of_its_channel(values, data):
    axis = data.draw(st.integers(-values.ndim, values.ndim - 1))
    histograms = observe(values, axis=axis)
    for channel, part in enumerate(np.moveaxis(values, axis, 0)):
        expected = Histogram("x", CHANNEL_BINS)
        expected.update(part)
        row = histograms.row(channel)
        assert (row.counts.tobytes(), row.exponent, row.amax) == (expected.counts.tobytes(), expected.exponent, expected.amax)
        assert (histograms.minimum[channel], histograms.maximum[channel]) == (part.min(), part.max())
        assert histograms.amax[channel] == np.abs(part).max()


def test_counts_are_those_of_numpy():
    values = np.random.default_rng(0).normal(size=(50, 3, 7)).astype(np.float32) * np.array([[1e-3], [1], [1e4]], np.float32)
    histograms = observe(*np.split(values, 5))
    for channel in range(3):
        magnitudes = np.abs(values[:, channel].astype(np.float64))
        edges = np.arange(CHANNEL_BINS + 1) * 2.0 ** histograms.exponents[channel]
        np.testing.assert_array_equal(histograms.counts[channel], np.histogram(magnitudes, edges)[0])
        assert edges[-1] / 2 <= magnitudes.max() < edges[-1], "the upper half of the bins is in use"


def test_parts_larger_than_the_scratch_space_are_counted_once():
    """More elements than are binned at a time, along either axis beside that of the channels."""
    values = np.random.default_rng(1).normal(size=200_000).astype(np.float32)
    for shape, axis in (((1, 2, 100_000), 1), ((100_000, 2), 1), ((2, 100_000), 0), ((100, 2, 1000), 1), ((4, 5, 10_000), 2)):
        histograms = observe(values.reshape(shape), axis=axis)
        assert histograms.counts.sum() == values.size
        expected = Histogram("x", CHANNEL_BINS)
        expected.update(np.moveaxis(values.reshape(shape), axis, 0)[1])
        assert histograms.counts[1].tobytes() == expected.counts.tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_an_amax_per_channel(name):
    gains = np.float32([1, 8, 0.25])
    values = np.random.default_rng(2).laplace(size=(20_000, 1)).astype(np.float32) * gains
    found = channel_amax(observe(values), name)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, found[0] * gains.astype(np.float64))
    assert (found <= np.abs(values).max(axis=0)).all()
    fine = Histogram("x")
    fine.update(values[:, 0])
    assert found[0] == pytest.approx(METHODS[name](fine), rel=0.05), "512 bins tell much the same as 4,096"


@pytest.mark.parametrize("percent", [50.0, 99.0, 99.9])
def test_percentile_is_within_a_bin_of_numpys(percent):
    values = np.random.default_rng(3).laplace(size=(50_000, 2)).astype(np.float32) * np.float32([1, 100])
    histograms = observe(values)
    exact = np.percentile(np.abs(values), percent, axis=0, method="inverted_cdf")
    found = channel_amax(histograms, f"percentile:{percent}")
    assert (exact <= found).all()
    assert (found <= exact + 2.0**histograms.exponents).all()


def test_mse_of_a_channel_is_as_good_as_brute_force():
    def error(values, amax):
        step = amax / 127
        return np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2)

    values = np.random.default_rng(4).standard_t(3, size=(50_000, 2)).astype(np.float32)
    for channel, amax in enumerate(channel_amax(observe(values), "mse")):
        best = min(error(values[:, channel], a) for a in np.abs(values[:, channel]).max() * np.linspace(0.02, 1, 300))
        assert error(values[:, channel], amax) <= 1.05 * best


def test_another_channel_or_another_scale_is_told_apart():
    """Negative controls: what would go unseen if channels were mixed up or widths shared."""
    values = np.random.default_rng(5).normal(size=(64, 3)).astype(np.float32)
    assert state(observe(values)) != state(observe(values[:, ::-1]))
    assert state(observe(values)) != state(observe(2 * values))
    assert state(observe(values)) != state(observe(-values)), "the sign shows in minimum and maximum"
    assert observe(values).counts.tobytes() == observe(-values).counts.tobytes()
    assert state(observe(values)) != state(observe(values, values[:1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_strides_and_types_do_not_matter(dtype):
    values = np.random.default_rng(6).normal(size=(40, 6, 5)).astype(dtype)
    expected = state(observe(values.astype(np.float32)))
    assert state(observe(values[::-1])) == expected
    assert state(observe(values.transpose(2, 1, 0))) == expected
    assert state(observe(values[:0], values, values[:, :, :0])) == expected
    assert state(observe(np.moveaxis(values, 1, 2), axis=-1)) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_is_refused_with_the_tensor_named(bad):
    values = np.ones((2, 5), np.float32)
    histograms = observe(values)
    before = state(histograms)
    values[1, 2] = bad
    with pytest.raises(InputError, match=r"tensor x[\s\S]*1 of 10 elements"):
        histograms.update(values)
    assert state(histograms) == before


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="float32"):
        observe(np.ones((2, 3)))
    with pytest.raises(InputError, match="no such axis"):
        observe(np.ones((2, 3), np.float32), axis=2)
    with pytest.raises(InputError, match=r"channels changed[\s\S]*found: 4[\s\S]*allowed: 3"):
        observe(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match="power of two"):
        observe(bins=500)
    with pytest.raises(InputError, match="unknown calibration method"):
        channel_amax(observe(np.ones((2, 3), np.float32)), "best")
    values = np.ones((2, 3), np.float32)
    for other in (ChannelHistograms("y", 1), observe(values, axis=0), observe(values, bins=256)):
        with pytest.raises(InputError, match="different tensors, axes or resolutions"):
            observe(values).merge(other)
    with pytest.raises(InputError, match="channels changed"):
        observe(values).merge(observe(np.ones((2, 4), np.float32)))


def test_memory_is_fixed():
    histograms = observe(np.ones((4, 6), np.float32))
    size = histograms.counts.nbytes
    for scale in (1.0, 1e6, 1e-6):
        histograms.update(np.random.default_rng(7).normal(size=(5000, 6)).astype(np.float32) * np.float32(scale))
    assert histograms.counts.nbytes == size == 8 * 6 * CHANNEL_BINS
    assert histograms.counts.sum() == 6 * 15_004


def test_no_data_is_no_channels():
    assert channel_amax(observe(), "minmax").shape == (0,)
    assert state(observe_merged(observe(), observe())) == state(observe())
    zeros = observe(np.zeros((3, 2), np.float32))
    assert all((method(name)(zeros.row(0)) == 0.0) for name in METHODS)
