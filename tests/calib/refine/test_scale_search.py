"""Oracle: the error of a quantization computed in float64 from its definition, with another implementation of each step."""

import numpy as np
import pytest
from for_all import for_all

from calib.calibrators import METHODS
from calib.histogram import Histogram
from calib.refine.activation_sample import ActivationSample
from calib.refine.scale_search import product, search_scale
from calib.scales import activation_scale

ONE = np.zeros((1, 32), np.intp) + np.arange(32)


def sample_of(values):
    """A sample of (n, K): every element is a channel."""
    return ActivationSample(
        values[:, None].astype(np.float32), values.min(axis=0), values.max(axis=0), np.abs(values).max(axis=0)
    )


def weight(rows=32, columns=24, seed=3):
    return (np.random.default_rng(seed).normal(size=(1, rows, columns)) / np.sqrt(rows)).astype(np.float32)


def brute_error(values, matrix, scale, factors=1.0, zero=0.0):
    """Mean squared error of the layer outputs around its mean, relative to the outputs' mean square."""
    x, w = np.asarray(values, np.float64), np.asarray(matrix[0], np.float64)
    factors = np.broadcast_to(np.asarray(factors, np.float64), x.shape[1])
    levels = np.maximum(np.minimum(np.round(x * factors / scale - zero), 127), -128) + zero
    divided = w / factors[:, None]
    step = np.abs(divided).max(axis=0) / 127
    wrong = (levels * scale) @ (np.round(divided / step) * step) - x @ w
    return np.mean((wrong - wrong.mean(axis=0)) ** 2) / np.mean((x @ w) ** 2)


def gelu(x):
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


DATA = {
    "normal": lambda r: r.normal(size=(512, 32)),
    "uniform": lambda r: r.uniform(-1, 1, size=(512, 32)),
    "laplace": lambda r: r.laplace(size=(512, 32)),
    "student": lambda r: r.standard_t(4, size=(512, 32)),
    "heavy tails": lambda r: r.standard_t(2, size=(512, 32)),
    "relu": lambda r: np.maximum(r.normal(size=(512, 32)), 0),
    "gelu": lambda r: gelu(2 * r.normal(size=(512, 32))),
    "one outlier": lambda r: np.concatenate([r.normal(size=(511, 32)), np.full((1, 32), 30.0)]),
}


@pytest.mark.parametrize("kind", DATA)
@for_all(seed=[0, 1])
def test_no_method_has_a_better_scale(kind, seed):
    """Candidates are 9 % apart, which near the best scale costs a few percent of the error: 8 % are a third of a dB."""
    values = DATA[kind](np.random.default_rng(seed)).astype(np.float32)
    choice = search_scale(sample_of(values), weight(), ONE)
    histogram = Histogram("t")
    histogram.update(values)
    errors = {name: brute_error(values, weight(), activation_scale(f(histogram), "t")) for name, f in METHODS.items()}
    found = brute_error(values, weight(), choice.scale)
    assert found <= 1.08 * min(errors.values()), errors
    assert choice.error == pytest.approx(found, rel=0.02)
    assert choice.plain
    assert choice.shift == 0


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_the_brute_force_error_rises_for_a_wrong_scale(factor):
    """The control of the oracle."""
    values = DATA["normal"](np.random.default_rng(11))
    choice = search_scale(sample_of(values), weight(), ONE)
    assert brute_error(values, weight(), factor * choice.scale) > 3 * choice.error


def test_scales_are_exact_in_fp16():
    for make in DATA.values():
        choice = search_scale(sample_of(make(np.random.default_rng(11))), weight(), ONE, factors=True, zero=True)
        assert float(np.float16(choice.scale)) == choice.scale


def test_a_range_not_centred_on_zero_is_shifted():
    values = gelu(2 * np.random.default_rng(4).normal(size=(512, 32)))
    plain = search_scale(sample_of(values), weight(), ONE)
    choice = search_scale(sample_of(values), weight(), ONE, zero=True)
    assert choice.zero > 60, "from -0.17 to 8: nearly all of the negative levels would lie idle"
    assert choice.zero * 4 == round(choice.zero * 4)
    assert np.all(choice.factors == 1)
    assert choice.shift == -choice.zero * choice.scale
    found = brute_error(values, weight(), choice.scale, zero=choice.zero)
    assert found == pytest.approx(choice.error, rel=0.02)
    # the weights' own rounding is in both errors and cannot be shifted away
    assert found < 0.5 * brute_error(values, weight(), plain.scale)


def test_a_range_centred_on_zero_is_not_shifted():
    half = np.random.default_rng(4).normal(size=(256, 32))
    values = np.concatenate([half, -half])
    assert search_scale(sample_of(values), weight(), ONE, zero=True).plain


def wide_channel():
    values = np.random.default_rng(5).normal(size=(512, 32))
    values[:, 7] *= 50
    return values


def test_one_wide_channel_gets_factors():
    values = wide_channel()
    plain = search_scale(sample_of(values), weight(), ONE)
    choice = search_scale(sample_of(values), weight(), ONE, factors=True)
    others = np.delete(choice.factors, 7)
    assert choice.factors[7] == 1, "the widest channel stays, the others are drawn up to it"
    assert np.all(others >= 4)
    np.testing.assert_array_equal(np.exp2(np.round(np.log2(choice.factors))), choice.factors)
    assert choice.zero == 0
    found = brute_error(values, weight(), choice.scale, choice.factors)
    assert found == pytest.approx(choice.error, rel=0.02)
    assert found < 0.5 * brute_error(values, weight(), plain.scale)


def halves(first, second):
    """A sample as `take_samples` makes it: patches of the second half, ranges of both, early ones of the first."""
    both = np.concatenate([first, second])
    return ActivationSample(second[:, None].astype(np.float32), both.min(axis=0), both.max(axis=0), np.abs(first).max(axis=0))


def growing(early, late):
    """Two halves with a wide channel 7, and a channel 3 of these two sizes."""
    first, second = (np.random.default_rng(seed).normal(size=(512, 32)) for seed in (21, 22))
    for values, size in ((first, early), (second, late)):
        values[:, 7] *= 50
        values[:, 3] *= size
    return first, second


def test_a_channel_that_grows_in_the_second_half_gets_no_large_factor():
    small, grown = (growing(0.2, late) for late in (0.2, 30))
    steady = search_scale(halves(*small), weight(), ONE, factors=True)
    assert steady.factors[3] >= 16, "the control: it is small in both halves"
    choice = search_scale(halves(*grown), weight(), ONE, factors=True)
    assert choice.factors[3] == 1
    largest = np.abs(np.concatenate(grown)).max(axis=0)
    assert np.all(choice.factors * largest <= largest.max()), "nothing is drawn beyond the widest channel"
    factors = np.ones(32)
    factors[3] = steady.factors[3]
    others = brute_error(grown[1], weight(), choice.scale, factors)
    assert brute_error(grown[1], weight(), choice.scale, choice.factors) < 0.1 * others, "what the first half would have cost"


def test_factors_are_evaluated_on_images_they_were_not_made_from():
    """The same patches and ranges: had the first half shown channel 3 small, a factor made from it would have clipped it."""
    sample = halves(*growing(30, 30))
    shown, hidden = sample.early, sample.early.copy()
    hidden[3] /= 200
    assert search_scale(sample, weight(), ONE, factors=True).factors.max() >= 4
    blind = ActivationSample(sample.patches, sample.low, sample.high, hidden)
    assert search_scale(blind, weight(), ONE, factors=True).plain
    assert shown[3] > 50 * hidden[3]


@for_all(seed=range(4))
def test_factors_are_rounded_down(seed):
    """By hand: the largest power of two that does not exceed (max r / r_c)^alpha, with the ranges of all images."""
    random = np.random.default_rng(seed)
    sizes = np.exp2(random.uniform(-3, 3, 32))
    first, second = (random.normal(size=(512, 32)) * sizes for _ in range(2))
    largest = np.abs(np.concatenate([first, second])).max(axis=0)
    choice = search_scale(halves(first, second), weight(), ONE, factors=True)
    powers = np.exp2(np.arange(12))

    def by_hand(alpha, room=1.0):
        return np.array([powers[powers <= room * (largest.max() / r) ** alpha].max() for r in largest])

    wanted = [by_hand(alpha) for alpha in (0.5, 1.0)]
    assert any(np.array_equal(choice.factors, w) for w in wanted)
    nearest = [by_hand(alpha, room=np.sqrt(2)) for alpha in (0.5, 1.0)]
    assert not any(np.array_equal(choice.factors, n) for n in nearest), "the control: rounded to the nearest"


def test_factors_go_with_channels_not_with_positions_of_the_patch():
    """A depthwise 3 x 3 patch: nine elements of one channel share its factor."""
    patches = np.random.default_rng(6).normal(size=(512, 4, 9)).astype(np.float32) * np.float32([1, 1, 1, 40]).reshape(4, 1)
    wide = np.abs(patches).max(axis=(0, 2))
    channels = np.repeat(np.arange(4), 9).reshape(4, 9)
    matrix = np.random.default_rng(7).normal(size=(4, 9, 1)).astype(np.float32)
    choice = search_scale(ActivationSample(patches, -wide, wide, wide), matrix, channels, factors=True)
    assert choice.factors.shape == (4,)
    assert choice.factors[3] == 1
    assert np.all(choice.factors[:3] >= 4)
    other = np.roll(channels, 1, axis=0)  # the control: another channel's range for every patch makes factors worthless
    assert search_scale(ActivationSample(patches, -wide, wide, wide), matrix, other, factors=True).plain


@pytest.mark.parametrize("make", [wide_channel, lambda: gelu(2 * wide_channel())])
def test_changes_that_are_not_allowed_are_not_made(make):
    values = make()
    assert search_scale(sample_of(values), weight(), ONE).plain
    assert search_scale(sample_of(values), weight(), ONE, factors=True).zero == 0
    assert np.all(search_scale(sample_of(values), weight(), ONE, zero=True).factors == 1)


def test_a_change_must_reach_the_required_gain():
    """The same tensor: factors are found, and left alone where the gain that is asked for is larger than theirs."""
    values = wide_channel()
    free = search_scale(sample_of(values), weight(), ONE, factors=True)
    share = free.error / search_scale(sample_of(values), weight(), ONE).error
    assert search_scale(sample_of(values), weight(), ONE, factors=True, gain=1.01 * share).factors.max() > 1
    assert search_scale(sample_of(values), weight(), ONE, factors=True, gain=0.99 * share).plain


@pytest.mark.parametrize("level", [0.0, 3.5])
def test_a_constant_tensor_gets_no_choice(level):
    values = np.full((512, 32), level)
    assert search_scale(sample_of(values), weight(), ONE, factors=True, zero=True) is None
    values[0, 0] += 1
    assert search_scale(sample_of(values), weight(), ONE, factors=True, zero=True) is not None


def test_a_layer_that_is_zero_has_no_error():
    values = DATA["normal"](np.random.default_rng(11))
    choice = search_scale(sample_of(values), np.zeros((1, 32, 4), np.float32), ONE, factors=True, zero=True)
    assert choice.plain
    assert choice.error == 0


@pytest.mark.parametrize("groups", [1, 3])
def test_product_is_a_product_per_group(groups):
    random = np.random.default_rng(11)
    patches = random.normal(size=(5, groups, 7)).astype(np.float32)
    matrix = random.normal(size=(groups, 7, 4)).astype(np.float32)
    by_hand = np.stack([patches[:, g].astype(np.float64) @ matrix[g] for g in range(groups)], axis=1)
    np.testing.assert_allclose(product(patches, matrix), by_hand, rtol=1e-5, atol=1e-6)
