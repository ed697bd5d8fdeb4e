"""Rules of operators that work place by place: sums, products and quotients of tensors, and functions of one number."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from edge.stability.bounds.activations import ACTIVATIONS, SILU, Activation
from edge.stability.bounds.affine_ball import SLACK, Float64
from edge.stability.bounds.ball import Ball
from edge.stability.bounds.norm_tracking import unit_value
from edge.stability.bounds.operator import Operator
from edge.stability.bounds.rearrange import reshaping
from edge.stability.bounds.value import Length, Shape, Value, bounded, length_of, rounded, unbounded, widened

FAR = 1e300
"""Stands for infinity where a function is evaluated."""


def _ranked(value: Value, shape: Shape | None) -> Value:
    """The value with as many axes as a result that it is broadcast to, axes of size 1 before its own."""
    if shape is None or value.shape is None or value.rank >= len(shape):
        return value
    longer = (1,) * (len(shape) - value.rank) + value.shape
    moved = reshaping(value.shape, longer).value(value)
    return replace(moved, constant=None if value.constant is None else value.constant.reshape(longer))


def _pair(operator: Operator) -> tuple[Value, Value] | None:
    left, right = operator.value(0), operator.value(1)
    return None if left is None or right is None else (_ranked(left, operator.shape), _ranked(right, operator.shape))


def _grown(value: Value, shape: Shape | None) -> set[int]:
    """Axes along which the value is repeated in a result."""
    return {axis for axis, side in enumerate(value.shape or ()) if shape and side != shape[axis]}


def _exact(value: Value) -> Float64 | None:
    """The constant as numbers, where its array of facts holds all of them."""
    return value.low if value.constant is not None and value.low.size == value.constant.size else None


def added(operator: Operator) -> Value:
    """Add, Sub."""
    pair, shape = _pair(operator), operator.shape
    if pair is None:
        return unbounded(shape)
    left, right = pair
    if operator.op_type == "Sub":
        right = negated(right)
    lengths = []
    for axes in {fact.axes for value in pair for fact in value.lengths if fact.order == 2}:
        if shape is not None and not any(_grown(value, shape) & set(axes) for value in pair):
            bound = (length_of(left, axes) + length_of(right, axes)) * (1 + SLACK)
            lengths.append(Length(axes, 2, bound))
    ball = None
    for one, other in ((left, right), (right, left)):
        constant = _exact(other)
        if one.ball is not None and constant is not None and not _grown(one, shape):
            ball = one.ball.shifted(constant)
    return rounded(shape, left.low + right.low, left.high + right.high, lengths=tuple(lengths), ball=ball)


def negated(value: Value) -> Value:
    """-x."""
    ball = None if value.ball is None else value.ball.scaled(np.asarray(-1.0))
    constant = None if value.constant is None else -value.constant
    return replace(bounded(value.shape, -value.high, -value.low, value.lengths, ball), constant=constant)


def opposite(operator: Operator) -> Value:
    """Neg."""
    value = operator.value(0)
    return unbounded(operator.shape) if value is None else replace(negated(value), constant=None)


def _unless_norm(operator: Operator, rule: Callable[[Operator, Value, Value], Value]) -> Value:
    """A rule for a Mul or Div of two known operands, unless it is the last step of a norm, which is a bound itself."""
    pair = _pair(operator)
    if pair is None:
        return unbounded(operator.shape)
    unit = unit_value(operator)
    return rule(operator, *pair) if unit is None else unit


def multiplied(operator: Operator) -> Value:
    """Mul; x x and x sigmoid(x) as what they are."""
    return _unless_norm(operator, _product)


def divided(operator: Operator) -> Value:
    """Div: by what is not zero, or by a norm of what is divided."""
    return _unless_norm(operator, _quotient)


def _product(operator: Operator, left: Value, right: Value) -> Value:
    shape = operator.shape
    if operator.node.input[0] == operator.node.input[1]:
        lowest = np.where((left.low <= 0) & (left.high >= 0), 0.0, np.minimum(left.low**2, left.high**2))
        return rounded(shape, lowest, left.magnitude**2)
    for one, other, place in ((left, right, 0), (right, left, 1)):
        if other.sigmoid_of == operator.node.input[place]:
            return _applied(one, shape, SILU)
    corners = _corners(left, right, np.multiply)
    lengths = (*_scaled_lengths(left, right.magnitude, shape), *_scaled_lengths(right, left.magnitude, shape))
    ball = _scaled_ball(left, _exact(right), shape) or _scaled_ball(right, _exact(left), shape)
    return rounded(shape, *corners, lengths=lengths, ball=ball)


def _quotient(operator: Operator, left: Value, right: Value) -> Value:
    shape = operator.shape
    safe = (right.low > 0) | (right.high < 0)
    corners = _corners(left, right, np.divide)
    sign_known = (left.low >= 0) & (right.low >= 0)
    low = np.where(safe, corners[0], np.where(sign_known, 0.0, -np.inf))
    high = np.where(safe, corners[1], np.inf)
    inverse = np.where(safe, 1 / np.minimum(np.abs(right.low), np.abs(right.high)), np.inf)
    constant = _exact(right)
    ball = None if constant is None or not safe.all() else _scaled_ball(left, 1 / constant, shape)
    return rounded(shape, low, high, lengths=_scaled_lengths(left, inverse, shape), ball=ball)


def _corners(left: Value, right: Value, operation: Callable[..., Any]) -> tuple[Float64, Float64]:
    ends = [operation(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
    unknown = np.any([np.isnan(end) for end in np.broadcast_arrays(*ends)], axis=0)
    low, high = np.minimum.reduce(ends), np.maximum.reduce(ends)
    return np.where(unknown, -np.inf, low), np.where(unknown, np.inf, high)


def _scaled_lengths(value: Value, factor: Float64, shape: Shape | None) -> tuple[Length, ...]:
    """Lengths of the value times numbers of which the largest along the vectors counts."""
    grown = _grown(value, shape)
    return tuple(
        replace(fact, bound=fact.bound * factor.max(axis=fact.axes, keepdims=True) * (1 + SLACK))
        for fact in value.lengths
        if shape is not None and factor.ndim == len(shape) and not grown & set(fact.axes)
    )


def _scaled_ball(value: Value, factor: Float64 | None, shape: Shape | None) -> Ball | None:
    return None if value.ball is None or factor is None or _grown(value, shape) else value.ball.scaled(factor)


def extremes(operator: Operator) -> Value:
    """Max, Min."""
    values = [_ranked(value, operator.shape) for value in operator.inputs if value is not None]
    if len(values) != len(operator.inputs):
        return unbounded(operator.shape)
    choose = np.maximum if operator.op_type == "Max" else np.minimum
    return bounded(operator.shape, reduce(choose, [v.low for v in values]), reduce(choose, [v.high for v in values]))


def mean_of(operator: Operator) -> Value:
    """Sum, Mean of any number of tensors."""
    values = [_ranked(value, operator.shape) for value in operator.inputs if value is not None]
    if len(values) != len(operator.inputs):
        return unbounded(operator.shape)
    share = 1.0 if operator.op_type == "Sum" else 1 / len(values)
    low, high, magnitude = (share * sum(getattr(value, name) for value in values) for name in ("low", "high", "magnitude"))
    return widened(operator.shape, low, high, magnitude, len(values))


def chosen(operator: Operator) -> Value:
    """Where: either side."""
    left, right = operator.value(1), operator.value(2)
    if left is None or right is None:
        return unbounded(operator.shape)
    left, right = _ranked(left, operator.shape), _ranked(right, operator.shape)
    return bounded(operator.shape, np.minimum(left.low, right.low), np.maximum(left.high, right.high))


def clipped(operator: Operator) -> Value:
    """Clip; a limit that is not a constant does not count."""
    value = operator.value(0)
    if value is None:
        return unbounded(operator.shape)
    floor, ceiling = (None if (side := operator.value(place)) is None else side for place in (1, 2))
    low, high = value.low, value.high
    if floor is not None:
        low, high = np.maximum(low, floor.low.min()), np.maximum(high, floor.high.max())
    if ceiling is not None:
        low, high = np.minimum(low, ceiling.low.min()), np.minimum(high, ceiling.high.max())
    inside = (floor is None or floor.high.max() <= 0) and (ceiling is None or ceiling.low.min() >= 0)
    return bounded(operator.shape, low, high, value.lengths if inside else ())


def sloped(operator: Operator) -> Value:
    """PRelu."""
    pair = _pair(operator)
    if pair is None:
        return unbounded(operator.shape)
    value, slope = pair
    ends = _corners(replace(value, low=np.minimum(value.low, 0), high=np.minimum(value.high, 0)), slope, np.multiply)
    low = np.minimum(np.maximum(value.low, 0), ends[0])
    return rounded(operator.shape, low, np.maximum(np.maximum(value.high, 0), ends[1]))


def powered(operator: Operator) -> Value:
    """Pow with a constant exponent."""
    value, exponent = operator.value(0), operator.constant(1)
    if value is None or exponent is None or exponent.size != 1:
        return unbounded(operator.shape)
    power = float(exponent.reshape(-1)[0])
    ends = (np.abs(value.low) ** power, np.abs(value.high) ** power)
    if (value.low > 0).all() or (power > 0 and (value.low >= 0).all()):
        low, high = np.minimum(*ends), np.maximum(*ends)
    elif power > 0 and power == int(power):
        if power % 2:
            low, high = np.sign(value.low) * ends[0], np.sign(value.high) * ends[1]
        else:
            low, high = np.where((value.low <= 0) & (value.high >= 0), 0.0, np.minimum(*ends)), np.maximum(*ends)
    else:
        return unbounded(operator.shape)
    return rounded(operator.shape, low, high, 8)


def function(operator: Operator) -> Value:
    """A function of one number, see `edge.stability.bounds.activations`."""
    value = operator.value(0)
    if value is None:
        return unbounded(operator.shape)
    return _applied(value, operator.shape, ACTIVATIONS[operator.op_type](operator))


def waves(operator: Operator) -> Value:
    """Sin, Cos."""
    return bounded(operator.shape, -1 - SLACK, 1 + SLACK)


def reciprocal(operator: Operator) -> Value:
    """1 / x of an x that is not zero."""
    value = operator.value(0)
    if value is None:
        return unbounded(operator.shape)
    safe = (value.low > 0) | (value.high < 0)
    low = np.where(safe, 1 / value.high, np.where(value.low >= 0, 0.0, -np.inf))
    high = np.where(safe, 1 / value.low, np.inf)
    return rounded(operator.shape, low, high)


def _applied(value: Value, shape: Shape | None, activation: Activation) -> Value:
    """f of the interval; lengths by the steepness, those of a ball among them."""
    ends = [_at(activation, end) for end in (value.low, value.high)]
    turns = (value.low < activation.turn) & (value.high > activation.turn)
    low = np.where(turns | (value.low < activation.domain), activation.least, np.minimum(*ends))
    high = np.maximum(*ends)
    lengths: tuple[Length, ...] = ()
    if activation.steepness is not None and value.shape is not None:
        factor = activation.steepness * (1 + 16 * SLACK)
        lengths = tuple(replace(fact, bound=fact.bound * factor) for fact in (*value.lengths, *_lengths_of_ball(value)))
    if activation.relative:
        result = rounded(shape, low, high, 16, lengths=lengths)
    else:
        magnitude = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1.0)
        result = widened(shape, low, high, magnitude, 16, lengths=lengths)
    gated = None if activation.gate is None or value.ball is None else (value.ball, activation.gate)
    return replace(result, gated=gated)


def _at(activation: Activation, end: Float64) -> Float64:
    """f at one end of an interval; infinite where that end is and f has not come to rest."""
    result = activation.apply(np.clip(end, max(-FAR, activation.domain), FAR))
    for far in (-FAR, FAR):
        beyond = end * np.sign(far) > FAR
        near, further = (float(activation.apply(np.asarray(max(x, activation.domain)))) for x in (far, far * 1e8))
        if near != further:
            result = np.where(beyond, np.sign(further) * np.inf, result)
    return np.asarray(result)


def _lengths_of_ball(value: Value) -> tuple[Length, ...]:
    """The length along the axes of a ball's channels."""
    if value.ball is None or value.shape is None:
        return ()
    axes = tuple(axis for axis, side in enumerate(value.ball.channels.shape) if side > 1)
    bound = value.ball.length(axes, value.shape) if axes else None
    return () if bound is None else (Length(axes, 2, bound),)
