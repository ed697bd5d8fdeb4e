"""Rules of products: MatMul and Gemm with weights, MatMul of two activations, Einsum.

x W        |sum_k x_k W_kj|  by intervals, W+ and W- apart; by lengths, ||x|| ||W_j||; by balls, row norms of A
x = g z    g of each entry between a and b, z = A u + c of a ball: m = (a + b) / 2, h = (b - a) / 2
           |x W_j| <= |m| |z W_j| + h ||W_j|| ||z||
x y        depth x largest x largest; ||x|| ||y|| (Cauchy-Schwarz); ||x||_1 max |y|; of one u, `affine_ball`
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.stability.bounds.affine_ball import SLACK, AffineBall, Float64, bound_columns, bound_entries
from edge.stability.bounds.ball import MATRIX_LIMIT, Ball
from edge.stability.bounds.operator import Operator
from edge.stability.bounds.rearrange import transposing
from edge.stability.bounds.value import Length, Shape, Value, bounded, length_of, over, unbounded, widened


def matmul(operator: Operator) -> Value:
    """MatMul."""
    left, right = operator.value(0), operator.value(1)
    if left is None or right is None or None in (left.shape, right.shape, operator.shape) or min(left.rank, right.rank) < 2:
        return unbounded(operator.shape)
    if right.constant is not None and right.rank == 2:
        return linear(operator, left, right.constant, left.rank - 1)
    if left.constant is not None or right.constant is not None:
        return _weighted(operator, left, right)
    return _activations(operator, left, right)


def gemm(operator: Operator) -> Value:
    """Gemm with a constant second factor."""
    value, weight, shape = operator.value(0), operator.constant(1), operator.shape
    if value is None or value.rank != 2 or weight is None or shape is None:
        return unbounded(shape)
    if operator.attribute("transA", 0):
        assert value.shape is not None
        value = transposing(value.shape, (1, 0)).value(value)
    weight = weight.T if operator.attribute("transB", 0) else weight
    product = linear(operator, value, weight * np.float32(operator.attribute("alpha", 1.0)), 1)
    bias, beta = operator.value(2), float(operator.attribute("beta", 1.0))
    if bias is None:
        return product
    sides = [side * beta for side in (bias.low, bias.high)]
    low, high = np.minimum(*sides), np.maximum(*sides)
    exact = bias.constant is not None and bias.low.size == bias.constant.size and product.ball is not None
    ball = product.ball.shifted(np.atleast_2d(sides[0])) if exact and product.ball else None
    magnitude = product.magnitude + np.maximum(np.abs(low), np.abs(high))
    return widened(shape, product.low + low, product.high + high, magnitude, 1, ball=ball)


def linear(operator: Operator, value: Value, weight: npt.NDArray[Any], axis: int) -> Value:
    """sum over k of x_k weight (K, M), with x_k along one axis: also a convolution of 1 x 1."""
    depth, exact = weight.shape[0], weight.astype(np.float64)
    absolute = np.abs(exact)
    low, high, largest = (
        np.moveaxis(over(side, [axis], value.shape or ()), axis, -1) for side in (value.low, value.high, value.magnitude)
    )
    magnitude = largest @ absolute
    if np.isfinite(magnitude).all():
        middle, spread = (low + high) / 2 @ exact, (high - low) / 2 @ absolute
        low, high = middle - spread, middle + spread
    else:
        positive, negative = np.maximum(exact, 0), np.minimum(exact, 0)
        low, high = low @ positive + high @ negative, high @ positive + low @ negative
    length = np.moveaxis(length_of(value, (axis,)), axis, -1)
    longest = np.moveaxis(length_of(value, (axis,), 1), axis, -1)
    bounds = (magnitude, length * np.sqrt(np.square(exact).sum(axis=0)), longest * absolute.max(axis=0))
    total = np.fmin.reduce(np.broadcast_arrays(*bounds))
    reach = _gated_reach(value, weight, axis)
    narrow = total if reach is None else np.fmin(total, reach)
    low, high = np.fmax(low, -narrow), np.fmin(high, narrow)
    ball = None
    if value.ball is not None and largest.size == depth:
        ball = value.ball.through(weight, axis, largest.reshape(-1))
    margin = SLACK * depth * total
    operator.record_partial_sum(float((total + margin).max()))
    low, high = (np.moveaxis(side, -1, axis) for side in (low - margin, high + margin))
    return bounded(operator.shape, low, high, ball=ball)


def _gated_reach(value: Value, weight: npt.NDArray[Any], axis: int) -> Float64 | None:
    """A bound on an activation of a ball times a weight, see the module's docstring; (..., M)."""
    if value.gated is None or value.shape is None:
        return None
    ball, (least, most) = value.gated
    middle, half = (least + most) / 2, (most - least) / 2
    length, through = ball.length((axis,), value.shape), ball.through(weight, axis, np.zeros(weight.shape[0]))
    if length is None or through is None:
        return None
    direct = np.moveaxis(np.maximum(*map(np.abs, through.interval())), axis, -1)
    apart = np.moveaxis(length, axis, -1) * np.linalg.norm(weight, axis=0)
    return np.asarray((abs(middle) * direct + half * apart) * (1 + SLACK * (weight.shape[0] + 32)))


def _weighted(operator: Operator, left: Value, right: Value) -> Value:
    """A constant of any rank times an activation, on either side: by intervals."""
    assert left.shape is not None
    assert right.shape is not None
    depth = left.shape[-1]
    if right.constant is not None:
        swapped = [transposing(v.shape or (), (*range(v.rank - 2), v.rank - 1, v.rank - 2)) for v in (right, left)]
        weight, value = right.constant.swapaxes(-1, -2), swapped[1].value(left)
    else:
        assert left.constant is not None
        weight, value = left.constant, right
    positive, negative = np.maximum(weight, 0).astype(np.float64), np.minimum(weight, 0).astype(np.float64)
    low, high, largest = (over(side, [value.rank - 2], value.shape or ()) for side in (value.low, value.high, value.magnitude))
    ends = (positive @ low + negative @ high, positive @ high + negative @ low)
    magnitude = (positive - negative) @ largest
    if right.constant is not None:
        ends, magnitude = (ends[0].swapaxes(-1, -2), ends[1].swapaxes(-1, -2)), magnitude.swapaxes(-1, -2)
    result = widened(operator.shape, *ends, magnitude, depth)
    operator.record_partial_sum(float(magnitude.max()) * (1 + SLACK * depth))
    return result


def _activations(operator: Operator, left: Value, right: Value) -> Value:
    """(..., M, K) x (..., K, N)."""
    assert left.shape is not None
    assert right.shape is not None
    depth, axes = left.shape[-1], (left.rank - 1, right.rank - 2)
    total = over(left.magnitude, [axes[0]], left.shape) @ over(right.magnitude, [axes[1]], right.shape)
    for bound in (
        length_of(left, axes[:1]) * length_of(right, axes[1:]),
        length_of(left, axes[:1], 1) * right.magnitude.max(axis=-2, keepdims=True),
        left.magnitude.max(axis=-1, keepdims=True) * length_of(right, axes[1:], 1),
    ):
        total = np.fmin(total, bound)
    lengths = []
    of_one = _of_one_ball(left, right)
    wide = 1 + SLACK * depth
    if of_one is not None:
        entries, columns, rows = of_one
        total = np.fmin(total, entries)
        rank = len(operator.shape or ())
        lengths += [Length((rank - 2,), 2, columns * wide), Length((rank - 1,), 2, rows * wide)]
    lengths += _mixtures(left, right, operator.shape)
    operator.record_partial_sum(float(total.max()) * wide)
    narrow = _inner_product(left, right)
    reach = total if narrow is None else np.fmin(total, narrow)
    positive = (left.low >= 0).all() and (right.low >= 0).all()
    margin = SLACK * depth * total
    return bounded(operator.shape, np.where(positive, 0.0, -reach - margin), reach + margin, lengths=tuple(lengths))


def _mixtures(left: Value, right: Value, shape: Shape | None) -> list[Length]:
    """Rows that are sums of rows of the right side by weights of ||x||_1: not longer than that times the longest."""
    own = [fact for fact in left.lengths if fact.order == 1 and fact.axes == (left.rank - 1,)]
    if not own or shape is None or left.rank != right.rank:
        return []
    longest = length_of(right, (right.rank - 1,)).max(axis=-2, keepdims=True)
    return [Length((len(shape) - 1,), 2, own[0].bound * longest * (1 + SLACK * left.shape[-1]))] if left.shape else []


def _heads(ball: Ball | None, shape: Shape | None, summed: int, along: int) -> tuple[Float64, Float64] | None:
    """Matrix (..., D, width) and offset (..., D) of a ball with its channels `along` one of the last axes; None for others."""
    if ball is None or shape is None or ball.places.shape[along] != 1:
        return None
    if any(array.shape[summed] != 1 for array in (ball.channels, ball.gain, ball.offset, ball.slack)):
        return None
    count = np.prod(np.broadcast_shapes(ball.channels.shape, ball.gain.shape)) * ball.rows.width
    if count > MATRIX_LIMIT:
        return None
    arrays = (ball.channels, ball.gain, np.abs(ball.offset) + ball.slack)
    sides = list(np.broadcast_shapes(*(array.shape for array in arrays)))
    sides[along] = shape[along]
    channels, gain, offset = (np.moveaxis(np.broadcast_to(array, sides), along, -1)[..., 0, :] for array in arrays)
    return ball.rows.dense[channels] * gain[..., None], np.asarray(offset, np.float64)


def _of_one_ball(left: Value, right: Value) -> tuple[Float64, Float64, Float64] | None:
    """Entries, columns and rows of K^T V where both are of the same u, place by place along the sum."""
    one, other = left.ball, right.ball
    if one is None or other is None or one.source != other.source or left.rank != right.rank or left.shape is None:
        return None
    if not np.array_equal(one.places.swapaxes(-1, -2), other.places):
        return None
    k, v = _heads(one, left.shape, left.rank - 1, left.rank - 2), _heads(other, right.shape, right.rank - 2, right.rank - 1)
    if k is None or v is None:
        return None
    lead = np.broadcast_shapes(k[1].shape[:-1], v[1].shape[:-1])
    balls = [
        AffineBall(
            np.broadcast_to(matrix, (*lead, *matrix.shape[-2:])).reshape(-1, *matrix.shape[-2:]),
            np.broadcast_to(offset, (*lead, offset.shape[-1])).reshape(-1, offset.shape[-1]),
            1 + SLACK,
        )
        for matrix, offset in (k, v)
    ]
    tokens = left.shape[-1]
    entries = bound_entries(balls[0], balls[1], tokens, True)
    columns, rows = bound_columns(balls[0], balls[1], tokens, True), bound_columns(balls[1], balls[0], tokens, True)
    return (
        entries.reshape(*lead, *entries.shape[1:]),
        columns.reshape(*lead, 1, -1),
        rows.reshape(*lead, -1, 1),
    )


def _inner_product(left: Value, right: Value) -> Float64 | None:
    """(A u + c) . (B w + d) <= s(A' B) + s(A) ||d|| + s(B) ||c|| + ||c|| ||d||, one number per head."""
    one, other = left.ball, right.ball
    if one is None or other is None or left.shape is None or right.shape is None or one.rows.weight is other.rows.weight:
        return None
    k, v = _heads(one, left.shape, left.rank - 2, left.rank - 1), _heads(other, right.shape, right.rank - 1, right.rank - 2)
    if k is None or v is None or k[0].size * v[0].shape[-2] > MATRIX_LIMIT:
        return None
    corners = [np.asarray(np.linalg.qr(matrix.swapaxes(-1, -2), mode="r")) for matrix, _ in (k, v)]  # A' = Q R
    crossed = np.linalg.norm(corners[0] @ corners[1].swapaxes(-1, -2), ord=2, axis=(-2, -1))
    lengths = [np.linalg.norm(offset, axis=-1) for _, offset in (k, v)]
    tops = [np.linalg.norm(corner, ord=2, axis=(-2, -1)) for corner in corners]
    best = crossed + tops[0] * lengths[1] + tops[1] * lengths[0] + lengths[0] * lengths[1]
    return np.asarray(best[..., None, None] * (1 + SLACK * (left.shape[-1] + one.rows.width)))


def einsum(operator: Operator) -> Value:
    """Einsum of two tensors: depth x largest x largest, one number for all."""
    shapes = [None if value is None else value.shape for value in operator.inputs]
    terms = str(operator.attribute("equation", "")).replace(" ", "").split("->")
    names = terms[0].split(",")
    if len(names) != 2 or len(terms) != 2 or None in shapes or "." in terms[0]:
        return unbounded(operator.shape)
    sides: dict[str, int] = {}
    for name, shape in zip(names, shapes, strict=True):
        sides |= {letter: max(side, sides.get(letter, 1)) for letter, side in zip(name, shape or (), strict=True)}
    depth = float(np.prod([side for letter, side in sides.items() if letter not in terms[1]]))
    left, right = (value for value in operator.inputs if value is not None)
    reach = depth * left.largest * right.largest * (1 + SLACK * depth)
    summed = set(sides) - set(terms[1])
    if all(summed <= set(name) and len(set(name)) == len(name) for name in names):
        by_length = [
            length_of(v, tuple(sorted(map(name.index, summed)))).max() for v, name in zip((left, right), names, strict=True)
        ]
        reach = min(reach, float(np.prod(by_length)) * (1 + SLACK * depth))
    operator.record_partial_sum(reach)
    return bounded(operator.shape, -reach, reach)
