"""Observed ranges. Oracle: the same numbers from float64 numpy, vector by vector; merged and scaled ranges to the last bit."""

import itertools
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from for_all import for_all
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.errors import InputError
from edge.stability.finders.xnorm import XNormSite, find_sites
from edge.stability.measure_ranges import measure, observe
from edge.stability.observed_ranges import LOWEST_EXPONENT, ObservedRanges, observe_vectors

Q = XNormSite("q", "q", -1, ("q",), "a", "o")
KV = XNormSite("kv", "kv", -2, ("kv",), "a", "o", ("k", "v"))


def equal(one, other):
    """To the last bit, in every field."""
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(ObservedRanges))


def random_tensor(rng, shape=(3, 2, 5, 4), spread=8):
    """Vectors of very different lengths, some of them zero."""
    lengths = np.exp2(rng.uniform(-spread, spread, (*shape[:3], 1)))
    return (rng.normal(size=shape) * lengths * (rng.random((*shape[:3], 1)) > 0.1)).astype(np.float32)


def by_hand(a, axis):
    """Every vector looked at on its own, in Python floats."""
    heads = a.shape[1]
    found = {
        "zero": [0] * heads,
        "amax": [0.0] * heads,
        "amin": [math.inf] * heads,
        "max": [0.0] * heads,
        "min": [math.inf] * heads,
    }
    exponents = [[] for _ in range(heads)]
    for head in range(heads):
        for vector in np.moveaxis(a[:, head], axis, -1).reshape(-1, a.shape[axis]).astype(float).tolist():
            total, largest = math.fsum(x * x for x in vector), max(map(abs, vector))
            found["amax"][head] = max(found["amax"][head], largest)
            if largest == 0:
                found["zero"][head] += 1
                continue
            found["amin"][head] = min(found["amin"][head], largest)
            found["max"][head], found["min"][head] = max(found["max"][head], total), min(found["min"][head], total)
            exponents[head].append(math.floor(math.log2(total)))
    return found, exponents


@for_all(axis=[-1, -2], size=[1.0, 1e-18, 1e18], seed=[0, 1])
def test_ranges_are_those_of_the_vectors(axis, size, seed):
    """Squares of 1e-36 vanish in FP32, of 1e36 overflow: the sums are right all the same."""
    a = random_tensor(np.random.default_rng(seed)) * np.float32(size)
    found = observe(replace(Q, axis=axis), {"a": a})
    expected, exponents = by_hand(a, axis)
    assert found.vectors == a.size // a.shape[1] // a.shape[axis]
    assert found.zero.tolist() == expected["zero"]
    assert found.argument_max.tolist() == expected["amax"]
    assert found.argument_min.tolist() == expected["amin"]
    np.testing.assert_allclose(found.sum_max, expected["max"], rtol=1e-6)
    np.testing.assert_allclose(found.sum_min, expected["min"], rtol=1e-6)
    for head, of in enumerate(exponents):
        counted = np.repeat(np.arange(found.exponents.shape[1]) + LOWEST_EXPONENT, found.exponents[head])
        np.testing.assert_allclose(counted, sorted(of), atol=1)
        assert (counted != sorted(of)).mean() < 0.02, "a sum at a power of two may round to either side"
    assert not found.partial_max.any()
    assert not found.factor_max.any()


def test_vectors_of_ranges_along_the_other_axis_differ():
    a = random_tensor(np.random.default_rng(0))
    assert not np.allclose(observe(Q, {"a": a}).sum_max, observe(replace(Q, axis=-2), {"a": a}).sum_max)


def factors(rng, tokens=6):
    k = rng.normal(size=(2, 3, 4, tokens)).astype(np.float32)
    v = rng.normal(size=(2, 3, tokens, 4)).astype(np.float32)
    return {"k": k, "v": v, "a": k @ v}


def test_partial_sums_are_the_worst_over_all_orders():
    tensors = factors(np.random.default_rng(2))
    found = observe(KV, tensors)
    products = np.einsum("bhin,bhnj->bhijn", tensors["k"].astype(float), tensors["v"].astype(float))
    worst = np.maximum(products.clip(min=0).sum(-1), (-products).clip(min=0).sum(-1)).max((0, 2, 3))
    np.testing.assert_allclose(found.partial_max, worst, rtol=1e-5)
    in_order = np.abs(products.cumsum(-1)).max((0, 2, 3, 4))
    assert (found.partial_max >= in_order * (1 - 1e-6)).all()
    assert (found.partial_max >= found.argument_max).all()
    assert found.factor_max.tolist() == [[float(np.abs(tensors[n][:, h]).max()) for h in range(3)] for n in "kv"]
    assert (worst > np.abs(products.sum(-1)).max((0, 2, 3))).any(), "the last sum alone would be too small"


def test_a_network_with_one_head_has_three_axes():
    a = random_tensor(np.random.default_rng(0), (3, 1, 5, 4))
    assert equal(observe(Q, {"a": a}), observe(Q, {"a": a[:, 0]}))
    assert equal(observe(Q, {"a": a[:, :, 0]}), observe(Q, {"a": a[:, 0, 0]})), "an embedding has two"
    with pytest.raises(InputError, match="no batch"):
        observe(Q, {"a": a[0, 0, 0]})


@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.integers(1, 70),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_split_in_any_order_merges_to_the_same(seed, dim, cuts, order):
    rng = np.random.default_rng(seed)
    a = random_tensor(rng, (12, 2, 3, dim), spread=30)
    partial, factor = np.abs(rng.normal(size=(12, 2))), np.abs(rng.normal(size=(12, 2, 2)))
    bounds = sorted({0, *cuts, 12})
    parts = [observe_vectors(a[i:j], -1, partial[i:j].max(0), factor[i:j].max(0)) for i, j in itertools.pairwise(bounds)]
    order.shuffle(parts)
    while len(parts) > 1:  # any association, too
        i = order.randrange(len(parts) - 1)
        parts[i : i + 2] = [parts[i].merge(parts[i + 1])]
    assert equal(parts[0], observe_vectors(a, -1, partial.max(0), factor.max(0)))


def test_merging_keeps_what_only_one_side_has_seen():
    """Negative control of `equal`: a batch left out shows."""
    rng = np.random.default_rng(3)
    one, other = (observe(Q, {"a": random_tensor(rng)}) for _ in range(2))
    assert not equal(one, one.merge(other))
    assert not equal(one.merge(other), one.merge(one))


@given(seed=st.integers(0, 2**32 - 1), key=st.lists(st.integers(-20, 20), min_size=3, max_size=3), value=st.integers(-20, 20))
@settings(max_examples=40, deadline=None)
def test_scaled_ranges_are_those_of_scaled_tensors(seed, key, value):
    tensors = factors(np.random.default_rng(seed))
    exponents = np.stack([key, np.full(3, value)])
    k, v = (np.ldexp(tensors[n], -e[None, :, None, None]) for n, e in zip("kv", exponents, strict=True))
    assert equal(observe(KV, tensors).scaled(exponents), observe(KV, {"k": k, "v": v, "a": k @ v}))
    q = np.ldexp(tensors["a"], -exponents[0][None, :, None, None])
    assert equal(observe(Q, tensors).scaled(exponents[:1]), observe(Q, {"a": q}))
    wrong = exponents + np.array([[0], [1]])
    assert not equal(observe(KV, tensors).scaled(wrong), observe(KV, {"k": k, "v": v, "a": k @ v}))


def test_shares_count_vectors():
    a = np.zeros((1, 1, 8, 2), np.float32)
    a[0, 0, :6, 0] = [2.0**-3, 1, 2, 2, 256, 300]  # sum a^2: 2^-6, 2^0, 2^2, 2^2, 2^16, 2^16.5; two zero vectors
    found = observe(Q, {"a": a})
    assert [float(found.share_from(e)[0]) for e in (16, 17, 2, -500)] == [2 / 8, 0, 4 / 8, 6 / 8]
    assert [float(found.share_below(e)[0]) for e in (-6, -5, 1, 500)] == [0, 1 / 8, 2 / 8, 6 / 8]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a", "k", "v"])
def test_what_is_not_finite_is_refused_by_name(name, value):
    tensors = factors(np.random.default_rng(0))
    tensors[name] = tensors[name].copy()
    tensors[name][1, 2, 0, 0] = value
    with pytest.raises(InputError, match=rf"not a finite number[\s\S]*kv, tensor {name}"):
        observe(KV, tensors)


def test_a_graph_is_measured_batch_by_batch(tiny_graph, tiny_images):
    sites = find_sites(tiny_graph)
    whole, images, _ = measure(tiny_graph, sites, [tiny_images])
    told = []
    parts, count, _ = measure(tiny_graph, sites, [tiny_images[:1], tiny_images[1:4], tiny_images[4:]], told.append)
    assert (images, count, told) == (6, 6, [1, 4, 6])
    for one, other in zip(whole, parts, strict=True):
        assert equal(one, other)
    with pytest.raises(InputError, match="no images"):
        measure(tiny_graph, sites, [])
    with pytest.raises(InputError, match=r"NaN or infinity in the images[\s\S]*after image 6"):
        measure(tiny_graph, sites, [tiny_images, tiny_images * np.float32(np.nan)])
