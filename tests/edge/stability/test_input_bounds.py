"""Bounds that hold for every input. Oracle: the numbers themselves, float64 numpy from hand-made layers and hostile tokens.

A bound is held from both sides: nothing may exceed it, and the worst tokens found come within a factor of it. Half of it, or
one that forgets a bias or a token, is exceeded by the same tokens.
"""

from dataclasses import replace

import numpy as np
import pytest
from for_all import for_all
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.stability.input_bounds import bound_kv, bound_q
from edge.stability.trace_layers import LayerNorm, Projection

QUANTITIES = ("argument_max", "sum_max", "partial_max", "factor_max")


def layer(rng, heads=2, dim=4, width=6, scale=1.0, *, offset=1.0, rank=None, source="z", tokens=3):
    matrix = rng.normal(size=(heads, dim, width)) * scale
    if rank is not None:
        matrix = rng.normal(size=(heads, dim, rank)) @ rng.normal(size=(heads, rank, width)) * scale
    norm = LayerNorm(rng.uniform(-2, 2, width), rng.normal(size=width) * offset)
    channels = np.arange(heads * dim).reshape(heads, dim)
    order = np.arange(tokens)[None]
    return Projection("w", "b", "m", channels, matrix, rng.normal(size=(heads, dim)) * offset, norm, source, order, owned=True)


def same_norm(key, value):
    return key, replace(value, norm=key.norm)


def apply(of, u):
    """Linear layer after LayerNorm's gain and bias, of u (N, C): (H, N, D)."""
    return np.einsum("hdc,nc->hnd", of.matrix, u * of.norm.gain + of.norm.bias) + of.offset[:, None]


def measured_q(of, u):
    a = apply(of, u)
    zeros = np.zeros((2, len(a)))
    return {
        "argument_max": np.abs(a).max((1, 2)),
        "sum_max": (a**2).sum(2).max(1),
        "partial_max": zeros[0],
        "factor_max": zeros,
    }


def measured_kv(key, value, u, axis, other=None):
    """Of K^T V over the tokens u (N, C); of `other` tokens for the values where they are not the same."""
    k, v = apply(key, u), apply(value, u if other is None else other)
    products = np.einsum("hnd,hne->hnde", k, v)
    a = products.sum(1)
    partial = np.maximum(np.maximum(products, 0).sum(1), np.maximum(-products, 0).sum(1))  # the worst order of summation
    return {
        "argument_max": np.abs(a).max((1, 2)),
        "sum_max": (a**2).sum(axis).max(1),
        "partial_max": partial.max((1, 2)),
        "factor_max": np.stack([np.abs(k).max((1, 2)), np.abs(v).max((1, 2))]),
    }


def exceeded(bound, found):
    """Names of the quantities of which some head exceeds its bound."""
    return {name for name in QUANTITIES if (found[name] > getattr(bound, name)).any()}


def scaled(bound, factor):
    return replace(bound, **{name: getattr(bound, name) * factor for name in QUANTITIES})


def on_sphere(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) * vectors.shape[-1] ** 0.5


def worst(objective, width, seed=0, starts=48, steps=150):
    """(starts, C) tokens ||u|| = sqrt(C), each a local maximum of a function of torch tensors (starts, C) -> (starts,)."""
    import torch

    u = torch.from_numpy(np.random.default_rng(seed).normal(size=(starts, width))).requires_grad_()
    optimizer = torch.optim.Adam([u], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (-torch.log(objective(u / u.norm(dim=1, keepdim=True) * width**0.5) + 1e-30).sum()).backward()
        optimizer.step()
    return on_sphere(u.detach().numpy())


def torch_apply(of, head):
    import torch

    matrix = torch.from_numpy(of.matrix[head] * of.norm.gain)
    offset = torch.from_numpy(of.matrix[head] @ of.norm.bias + of.offset[head])
    return lambda u: u @ matrix.T + offset


@given(seed=st.integers(0, 2**32 - 1), dims=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 8)))
@settings(max_examples=60, deadline=None)
def test_nothing_exceeds_the_bounds_of_a_random_layer(seed, dims):
    rng = np.random.default_rng(seed)
    heads, dim, width = dims
    shape = {"heads": heads, "dim": dim, "width": width, "offset": rng.choice([0.0, 1e-3, 1.0, 100.0])}
    key, value = same_norm(*(layer(rng, scale=10.0 ** rng.integers(-3, 4), rank=rng.choice([None, 1]), **shape) for _ in "kv"))
    directions = [rng.normal(size=(3, width)), np.sign(rng.normal(size=(3, width))), key.matrix[0, 0] * np.ones((3, 1))]
    for u in map(on_sphere, directions):
        assert not exceeded(bound_q(key), measured_q(key, u))
        for axis in (-1, -2):
            assert not exceeded(bound_kv(key, value, 3, axis), measured_kv(key, value, u, axis))
            assert not exceeded(bound_kv(key, value, 3, axis), measured_kv(key, value, u / 7, axis)), "inside the ball"


@pytest.mark.parametrize("offset", [0.0, 1.0, 4.0])
def test_q_is_reached_by_the_worst_token(offset):
    of = layer(np.random.default_rng(3), offset=offset)
    bound = bound_q(of)
    attacks = []
    for head in range(2):
        project = torch_apply(of, head)
        attacks += [worst(lambda u, p=project: (p(u) ** 2).sum(1), 6)]
        attacks += [worst(lambda u, p=project, i=i: p(u)[:, i] ** 2, 6, starts=8) for i in range(4)]
    found = measured_q(of, np.concatenate(attacks))
    assert not exceeded(bound, found)
    assert (bound.argument_max / found["argument_max"]).max() < 1.001, "the largest |a| is reached"
    assert (bound.sum_max / found["sum_max"]).max() < 1.8
    assert exceeded(scaled(bound, 0.5), found) == {"argument_max", "sum_max"}
    if offset:
        forgetful = (replace(of, offset=of.offset * 0), replace(of, norm=LayerNorm(of.norm.gain, of.norm.bias * 0)))
        assert any(exceeded(bound_q(wrong), found) for wrong in forgetful)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 1.0])
@for_all(axis=[-2, -1])
def test_kv_is_reached_by_the_worst_token(axis, offset):
    """All tokens alike and the worst that gradient ascent finds: K^T V = N k v^T."""
    rng = np.random.default_rng(4)
    key, value = same_norm(layer(rng, offset=offset), layer(rng, offset=offset))
    tokens = 2
    bound = bound_kv(key, value, tokens, axis)
    found = []
    for head in range(2):
        k, v = torch_apply(key, head), torch_apply(value, head)
        along, other = (k, v) if axis == -2 else (v, k)
        attacks = [worst(lambda u, a=along, o=other, j=j: (a(u) ** 2).sum(1) * o(u)[:, j] ** 2, 6, starts=16) for j in range(4)]
        attacks += [
            worst(lambda u, k=k, v=v, i=i, j=j: (k(u)[:, i] * v(u)[:, j]) ** 2, 6, starts=8, steps=80)
            for i in range(4)
            for j in range(4)
        ]
        attacks += [worst(lambda u, p=p, i=i: p(u)[:, i] ** 2, 6, starts=4) for p in (k, v) for i in range(4)]
        found += [measured_kv(key, value, np.repeat(u[None], tokens, 0), axis) for u in np.concatenate(attacks)]
    reached = {name: np.max([one[name] for one in found], axis=0) for name in QUANTITIES}
    assert not exceeded(bound, reached)
    assert (bound.factor_max / reached["factor_max"]).max() < 1.001
    assert (bound.argument_max / reached["argument_max"]).max() < (1.001 if offset == 0 else 1.5)
    assert (bound.sum_max / reached["sum_max"]).max() < 2.5
    halved = scaled(bound, 0.5)
    assert {"argument_max", "partial_max", "factor_max"} <= exceeded(halved, reached)
    assert "sum_max" in exceeded(scaled(bound, 0.4), reached)
    assert {"argument_max", "partial_max"} <= exceeded(bound_kv(key, value, tokens - 1, axis), reached), "a token is forgotten"
    if offset:
        unbiased = replace(key, offset=key.offset * 0, norm=LayerNorm(key.norm.gain, key.norm.bias * 0))
        assert exceeded(bound_kv(unbiased, replace(value, norm=unbiased.norm), tokens, axis), reached), "biases are forgotten"


@for_all(axis=[-2, -1])
def test_the_other_axis_has_keys_and_values_exchanged(axis):
    rng = np.random.default_rng(5)
    key, value = same_norm(layer(rng), layer(rng, scale=3.0))
    one, other = bound_kv(key, value, 4, axis), bound_kv(value, key, 4, -3 - axis)
    np.testing.assert_allclose(one.sum_max, other.sum_max)
    np.testing.assert_allclose(one.argument_max, other.argument_max)
    np.testing.assert_array_equal(one.factor_max, other.factor_max[::-1])
    assert not np.allclose(one.sum_max, bound_kv(key, value, 4, -3 - axis).sum_max), "the axis matters"


@pytest.mark.parametrize("apart", ["another LayerNorm", "another order of tokens"])
def test_keys_and_values_of_different_tokens_reach_further(apart):
    """k follows A, v follows B, which are orthogonal: one token cannot do both, two can."""
    rng = np.random.default_rng(6)
    key, value = same_norm(*(layer(rng, heads=1, dim=1, width=4, offset=0.0, tokens=2) for _ in "kv"))
    key = replace(key, matrix=np.array([[[1.0, 0, 0, 0]]]), norm=LayerNorm(np.ones(4), np.zeros(4)))
    value = replace(value, matrix=np.array([[[0.0, 1, 0, 0]]]), norm=key.norm)
    changes = {"source": "another"} if apart == "another LayerNorm" else {"order": value.order[:, ::-1]}
    u, w = on_sphere(np.array([[1.0, 0, 0, 0]] * 2)), on_sphere(np.array([[0.0, 1, 0, 0]] * 2))
    found = measured_kv(key, value, u, -2, other=w)
    assert exceeded(bound_kv(key, value, 2, -2), found) == {"argument_max", "sum_max", "partial_max"}, (
        "it would not hold of them"
    )
    bound = bound_kv(key, replace(value, **changes), 2, -2)
    assert not exceeded(bound, found)
    assert exceeded(scaled(bound, 0.99), found), "it is reached"


def test_biases_that_cancel_leave_their_rounding():
    """W b + w0 = 0 but for FP32's rounding, after a LayerNorm whose gain is zero."""
    rng = np.random.default_rng(7)
    of = layer(rng, width=64, offset=0.0)
    matrix = of.matrix.astype(np.float32).astype(np.float64)
    bias = rng.normal(size=64).astype(np.float32).astype(np.float64) * 1000
    of = replace(of, matrix=matrix, offset=-(matrix @ bias), norm=LayerNorm(np.zeros(64), bias))
    in_fp32 = np.abs(matrix.astype(np.float32) @ bias.astype(np.float32) + of.offset.astype(np.float32))
    assert in_fp32.max() > 1e-4, "the rounding is there"
    assert (in_fp32.max(1) <= bound_q(of).argument_max).all()
    assert bound_q(of).argument_max.max() < 1e-6 * (np.abs(matrix) @ np.abs(bias)).max() * 64


def test_without_a_layer_norm_nothing_is_certified():
    rng = np.random.default_rng(8)
    key, value = same_norm(layer(rng), layer(rng))
    bare = replace(value, norm=None)
    assert bound_q(bare) is None
    assert bound_kv(key, bare, 3, -2) is None
    assert bound_kv(bare, value, 3, -2) is None
