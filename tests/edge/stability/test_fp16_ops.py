"""Rounding and the emulated norm. Oracles: numpy's float16, ml_dtypes' bfloat16, and the norm written as a loop over scalars of
those types, one operation at a time.
"""

import math

import ml_dtypes
import numpy as np
import pytest
from for_all import for_all
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.stability.float_formats import BF16, FORMATS, FP16
from edge.stability.fp16_ops import MMA_DEPTH, emulate_product, emulate_xnorm, exact_xnorm, relative_error
from edge.stability.site import Eps

TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
pytestmark = pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid", "ignore:divide")


def eps(kind="clamp", acts_on="norm", value=2.0**-14):
    return Eps(kind, acts_on, value, "node", "tensor")


def same(found, expected):
    """Equal as numbers of the format, signs of zeros included; NaN is NaN."""
    expected = np.asarray(expected).astype(np.float32)
    nan = np.isnan(expected)
    return np.array_equal(nan, np.isnan(found)) and np.array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_every_number_of_the_format_and_every_tie(fmt):
    """All 2^16 numbers stay; halfway between neighbours goes to the even one, a hair beyond to the nearer."""
    every = np.arange(2**16, dtype=np.uint16).view(TYPES[fmt.name])
    values = every.astype(np.float32)
    assert same(fmt.round(values), every)
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    middle = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    for between in (middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))):
        assert same(fmt.round(between), between.astype(TYPES[fmt.name]))
    assert (fmt.round(middle) != fmt.round(np.nextafter(middle, np.float32(np.inf)))).mean() > 0.4, "ties are ties"


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
@settings(max_examples=150, deadline=None)
def test_any_float32_rounds_as_the_types_do(bits):
    values = np.array(bits, np.uint32).view(np.float32)
    for fmt in FORMATS.values():
        assert same(fmt.round(values), values.astype(TYPES[fmt.name]))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_limits_are_those_of_the_type(fmt):
    info = ml_dtypes.finfo(TYPES[fmt.name])
    limits = (fmt.largest, fmt.smallest_normal, fmt.smallest_subnormal, fmt.significant_bits)
    assert limits == (float(info.max), float(info.smallest_normal), float(info.smallest_subnormal), info.nmant + 1)
    assert fmt.round(np.float32(fmt.largest)) == np.float32(fmt.largest)
    assert np.isinf(fmt.round(np.float32(fmt.largest * (1 + 2.0**-fmt.significant_bits))))
    assert fmt.round(np.float32(fmt.smallest_subnormal / 2)) == 0
    assert fmt.headroom_bits(fmt.largest / 8) == pytest.approx(3)
    assert fmt.headroom_bits(fmt.largest * 2) == pytest.approx(-1)
    assert fmt.floor_bits(fmt.smallest_normal * 4) == 2
    assert fmt.floor_bits(fmt.smallest_subnormal, subnormal=True) == 0
    assert fmt.headroom_bits(0.0) == fmt.floor_bits(0.0) == math.inf


def loop(vector, of, guards=()):
    """The norm of one vector in scalars of a 16-bit type: what is stored is rounded, nothing else is known of float32."""
    stored = [of(x) for x in vector]
    sums = [of(x * x) for x in stored]
    while len(sums) > 1:
        half = (len(sums) + 1) // 2
        sums = [of(sums[i] + sums[i + half]) if i + half < len(sums) else sums[i] for i in range(half)]
    total = guarded(sums[0], of, guards, "square")
    norm = guarded(of(np.sqrt(total)), of, guards, "norm")
    return [of(x / norm) for x in stored]


def guarded(value, of, guards, acts_on):
    for guard in guards:
        if guard.acts_on == acts_on:
            value = max(value, of(guard.value)) if guard.kind == "clamp" else of(value + of(guard.value))
    return value


def loop_fp32(vector, of, guards=()):
    """The same with the sum, and an eps on it, in float32."""
    stored = [of(x) for x in vector]
    total = np.float32(math.fsum(float(x) ** 2 for x in stored))
    norm = guarded(of(np.sqrt(guarded(total, np.float32, guards, "square"))), of, guards, "norm")
    return [of(x / norm) for x in stored]


GUARDS = [(), (eps(),), (eps("added"),), (eps(acts_on="square"),), (eps("added", "square", 1e-3),), (eps(value=1e-12),)]


@pytest.mark.parametrize("guards", GUARDS, ids=str)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@for_all(axis=[-1, -2], scale=[1.0, 2.0**-9, 2.0**-14, 2.0**6, 2.0**9])
def test_the_norm_is_the_loop_over_scalars(fmt, scale, axis, guards):
    """In range, subnormal, and overflowing: with sums in the format to the last bit, in FP32 but for float32's own order."""
    a = (np.random.default_rng(1).normal(size=(1, 2, 7, 5)) * scale).astype(np.float32)
    a[0, 0, :, 0] = a[0, 1, 0] = 0
    vectors = np.moveaxis(a, axis, -1)
    expected = np.array([[[loop(v, TYPES[fmt.name], guards) for v in rows] for rows in heads] for heads in vectors])
    found = np.moveaxis(emulate_xnorm(a, axis, fmt, "storage", guards), axis, -1)
    assert same(found, expected)
    if scale == 1.0:
        assert not same(found * np.float32(1 + 2.0**-7), expected), "negative control"
    expected = np.array([[[loop_fp32(v, TYPES[fmt.name], guards) for v in rows] for rows in heads] for heads in vectors])
    found = np.moveaxis(emulate_xnorm(a, axis, fmt, "fp32", guards), axis, -1)
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2.0 ** (2 - fmt.significant_bits), atol=1e-7)


def test_an_overflow_gives_zeros_and_says_nothing():
    a = np.full((1, 1, 1, 4), 200.0, np.float32)  # sum a^2 = 160000
    assert emulate_xnorm(a, -1, FP16, "storage").tolist() == [[[[0.0] * 4]]]
    for other in (
        emulate_xnorm(a, -1, FP16, "fp32"),
        emulate_xnorm(a, -1, BF16, "storage"),
        emulate_xnorm(a / 2, -1, FP16, "storage"),
    ):
        assert other.tolist() == [[[[0.5] * 4]]]
    assert np.isnan(emulate_xnorm(a * 1000, -1, FP16, "storage")).all(), "a stored infinity is worse: infinity / infinity"


@pytest.mark.parametrize(("value", "dead"), [(2.0**-14, False), (2.0**-24, False), (1e-8, True), (1e-12, True), (None, True)])
@pytest.mark.parametrize("accumulate", ["storage", "fp32"])
def test_a_zero_vector_meets_an_eps_that_vanishes(value, dead, accumulate):
    guards = () if value is None else (eps(value=value),)
    found = emulate_xnorm(np.zeros((1, 1, 1, 4), np.float32), -1, FP16, accumulate, guards)
    assert np.isnan(found).all() if dead else not found.any()
    assert not np.isnan(emulate_xnorm(np.zeros((1, 1, 1, 4), np.float32), -1, BF16, accumulate, guards)).any() or value is None


@pytest.mark.parametrize("acts_on", ["norm", "square"])
def test_an_eps_in_fp32_sums_is_not_forgotten(acts_on):
    """1e-8 is nothing in FP16, but an FP32 accumulator keeps it where it acts on the square."""
    found = emulate_xnorm(np.zeros((1, 1, 1, 4), np.float32), -1, FP16, "fp32", (eps("added", acts_on, 1e-8),))
    assert np.isnan(found).all() == (acts_on == "norm")


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@for_all(depth=[1, 15, 16, 17, 100])
def test_product_rounds_after_every_step_of_a_tensor_core(fmt, depth):
    rng = np.random.default_rng(depth)
    of = TYPES[fmt.name]
    k, v = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 1, 2, depth), (1, 1, depth, 3)))
    expected = np.zeros((2, 3))
    for i in range(2):
        for j in range(3):
            total = of(0)
            for start in range(0, depth, MMA_DEPTH):
                steps = range(start, min(start + MMA_DEPTH, depth))
                total = of(
                    np.float32(float(total) + math.fsum(float(of(k[0, 0, i, n])) * float(of(v[0, 0, n, j])) for n in steps))
                )
            expected[i, j] = total
    step = 2.0 ** (1 - fmt.significant_bits)
    found = emulate_product(k, v, fmt, "storage")[0, 0]
    np.testing.assert_allclose(found, expected, rtol=step, atol=step, err_msg="an odd tie may fall to the other side")
    assert (found == expected).mean() > 0.6
    exact = k[0, 0].astype(float) @ v[0, 0].astype(float)
    errors = [relative_error(emulate_product(k, v, fmt, mode)[0, 0], exact) for mode in ("fp32", "storage")]
    assert errors[0] < 2 * step
    assert depth < 100 or errors[1] > errors[0], "rounding on the way costs digits"


def test_a_product_overflows_only_where_it_is_stored():
    k, v = np.full((1, 1, 1, 32), 100.0, np.float32), np.full((1, 1, 32, 1), 100.0, np.float32)
    v[0, 0, 16:] = -100.0
    assert emulate_product(k, v, FP16, "fp32") == 0
    assert not np.isfinite(emulate_product(k, v, FP16, "storage")), "160000 on the way"


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("accumulate", ["storage", "fp32"])
def test_in_range_the_error_is_that_of_a_few_roundings(fmt, accumulate):
    a = np.random.default_rng(0).normal(size=(2, 4, 30, 48))
    exact = exact_xnorm(a, -1, (eps(),))
    np.testing.assert_allclose(np.linalg.norm(exact, axis=-1), 1)
    found = emulate_xnorm(a.astype(np.float32), -1, fmt, accumulate, (eps(),))
    error = relative_error(found, exact)
    assert 2.0 ** -(fmt.significant_bits + 3) < error < 2.0 ** -(fmt.significant_bits - 1)
    assert relative_error(found * 2, exact) == pytest.approx(1, abs=0.01)
    assert relative_error(found / 2, exact) == pytest.approx(0.5, abs=0.01)
    assert relative_error(-found, exact) == pytest.approx(2, abs=0.01)
    found[0, 0, 0, 0] = np.nan
    assert relative_error(found, exact) == math.inf
    assert relative_error(np.zeros(3, np.float32), np.zeros(3)) == 0
    assert relative_error(np.ones(3, np.float32), np.zeros(3)) == math.inf


@pytest.mark.parametrize(
    ("guard", "norm"),
    [
        (eps(value=10.0), 10.0),
        (eps(value=1.0), 3.0),
        (eps("added", value=1.0), 4.0),
        (eps("added", "square", 16.0), 5.0),
        (eps(acts_on="square", value=36.0), 6.0),
    ],
)
def test_exact_norm_has_the_eps_of_the_graph(guard, norm):
    assert exact_xnorm(np.array([[3.0, 0.0]]), -1, (guard,)).tolist() == [[3 / norm, 0]]
    assert exact_xnorm(np.array([[3.0, 0.0]]), -1).tolist() == [[1, 0]]
    assert not exact_xnorm(np.zeros((1, 2)), -1).any()
