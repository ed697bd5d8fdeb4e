"""Rules of norms, softmax, sums, means and pooling, and of quantization."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edge.stability.bounds.affine_ball import SLACK, Float64
from edge.stability.bounds.norm_tracking import unit_vectors
from edge.stability.bounds.operator import Operator
from edge.stability.bounds.rearrange import mixed
from edge.stability.bounds.value import Length, Value, bounded, length_of, over, unbounded, widened


def layer_norm(operator: Operator) -> Value:
    """LayerNormalization, RMSNormalization: g sqrt(n) u + b with ||u|| <= 1 over n entries, whatever they read."""
    value, shape = operator.value(0), operator.shape
    if value is None or value.shape is None or shape is None:
        return unbounded(shape)
    first = int(operator.attribute("axis", -1)) % value.rank
    return _affine_unit(operator, tuple(range(first, value.rank)), lambda numbers: numbers)


def channel_norm(operator: Operator) -> Value:
    """InstanceNormalization and GroupNormalization (opset 21): the same over the places of a channel, or of a group."""
    value, shape = operator.value(0), operator.shape
    if value is None or value.shape is None or shape is None or value.rank < 3:
        return unbounded(shape)
    groups = (
        int(operator.attribute("num_groups", value.shape[1])) if operator.op_type == "GroupNormalization" else value.shape[1]
    )
    places = tuple(range(2, value.rank))
    sides = (1, -1, *[1] * len(places))
    if groups == value.shape[1]:
        return _affine_unit(operator, places, lambda numbers: numbers.reshape(sides))
    count = np.prod(value.shape[1:]) / groups
    scale, shift = operator.constant(1), operator.constant(2)
    if scale is None or shift is None or scale.size not in (value.shape[1], groups):
        return unbounded(shape)
    repeats = value.shape[1] // scale.size
    gain, offset = (np.repeat(side.astype(np.float64), repeats).reshape(sides) for side in (scale, shift))
    reach = np.abs(gain) * count**0.5 * (1 + SLACK * count)
    return widened(shape, offset - reach, offset + reach, reach + np.abs(offset), 1)


def _affine_unit(operator: Operator, axes: tuple[int, ...], place: Callable[[Float64], Float64]) -> Value:
    """scale sqrt(n) u + bias over axes; `place` brings scale and bias to those of the tensor."""
    value = operator.value(0)
    assert value is not None
    assert value.shape is not None
    factors = [operator.constant(1), operator.constant(2) if operator.has_input(2) else np.zeros(())]
    if (operator.has_input(1) and factors[0] is None) or factors[1] is None:
        return unbounded(operator.shape)
    count = float(np.prod([value.shape[axis] for axis in axes]))
    gain, offset = (place(np.asarray(1.0 if factor is None else factor, np.float64)) for factor in factors)
    unit = unit_vectors(operator.node.output[0], value.shape, axes, gain * count**0.5 * (1 + SLACK * count))
    shift = offset.reshape((1,) * (value.rank - offset.ndim) + offset.shape)
    moved = np.linalg.norm(over(shift, axes, value.shape).reshape(-1)) if len(axes) == 1 else np.abs(shift).max() * count**0.5
    lengths = tuple(replace(fact, bound=fact.bound + moved) for fact in unit.lengths)
    ball = None if unit.ball is None else unit.ball.shifted(shift)
    magnitude = unit.magnitude + np.abs(shift)
    return widened(value.shape, unit.low + shift, unit.high + shift, magnitude, 1, lengths=lengths, ball=ball)


def batch_norm(operator: Operator) -> Value:
    """BatchNormalization of fixed statistics."""
    value, numbers = operator.value(0), [operator.constant(place) for place in (1, 2, 3, 4)]
    if value is None or value.rank < 2 or any(array is None for array in numbers) or operator.attribute("training_mode", 0):
        return unbounded(operator.shape)
    sides = (1, -1, *[1] * (value.rank - 2))
    scale, bias, mean, variance = (np.asarray(array, np.float64).reshape(sides) for array in numbers)
    gain = scale / np.sqrt(variance + float(operator.attribute("epsilon", 1e-5)))
    offset = bias - mean * gain
    ends = (value.low * gain + offset, value.high * gain + offset)
    magnitude = (value.magnitude + np.abs(mean)) * np.abs(gain) + np.abs(bias)
    return widened(operator.shape, np.minimum(*ends), np.maximum(*ends), magnitude, 4)


def lp_norm(operator: Operator) -> Value:
    """LpNormalization."""
    value = operator.value(0)
    if value is None or value.shape is None:
        return unbounded(operator.shape)
    axis, order = int(operator.attribute("axis", -1)) % value.rank, int(operator.attribute("p", 2))
    gain = np.full((1,) * value.rank, 1 + SLACK * (value.shape[axis] + 8))
    return unit_vectors(operator.node.output[0], value.shape, (axis,), gain, 1 if order == 1 else 2)


def softmax(operator: Operator) -> Value:
    """Softmax: not negative, and adds up to 1. LogSoftmax: not positive, no less than minus the spread of the logits."""
    value = operator.value(0)
    if value is None or value.shape is None:
        return unbounded(operator.shape)
    axis = int(operator.attribute("axis", -1)) % value.rank
    count = value.shape[axis]
    if operator.op_type == "LogSoftmax":
        spread = value.high.max(axis=axis, keepdims=True) - value.low + np.log(count)
        return widened(value.shape, -spread, 0.0, spread + value.magnitude + 1, count)
    wide = 1 + SLACK * (count + 16)
    sides = [1] * value.rank
    return bounded(value.shape, np.zeros(sides), np.full(sides, wide), (Length((axis,), 1, np.full(sides, wide)),))


_NORMS = ("ReduceL1", "ReduceL2", "ReduceSumSquare")


def reduced_sum(operator: Operator) -> Value:
    """ReduceSum, ReduceMean, ReduceL1, ReduceL2, ReduceSumSquare, ReduceMax, ReduceMin."""
    value, shape = operator.value(0), operator.shape
    axes = None if value is None or value.shape is None else operator.axes(1, value.rank)
    if value is None or value.shape is None or shape is None or axes is None:
        return unbounded(shape)
    if not axes:
        return bounded(shape, value.low, value.high)
    count = float(np.prod([value.shape[axis] for axis in axes]))
    op = operator.op_type
    if op in ("ReduceMax", "ReduceMin"):
        choose = np.max if op == "ReduceMax" else np.min
        low, high = (choose(side, axis=axes, keepdims=True) for side in (value.low, value.high))
        margin: Float64 = np.zeros(())
    elif op in ("ReduceSum", "ReduceMean"):
        share = 1.0 if op == "ReduceSum" else 1 / count
        low, high = (_summed(side, axes, value) * share for side in (value.low, value.high))
        reach = np.fmin(length_of(value, axes, 1), length_of(value, axes) * count**0.5) * share
        low, high = np.fmax(low, -reach), np.fmin(high, reach)
        margin = SLACK * count * reach
    else:
        reach = length_of(value, axes, 1 if op == "ReduceL1" else 2)
        high = reach**2 if op == "ReduceSumSquare" else reach
        low, margin = np.zeros_like(high), SLACK * count * high
    least = 0.0 if op in _NORMS or (value.low >= 0).all() else -np.inf
    low, high = np.maximum(low - margin, least), high + margin
    if not operator.attribute("keepdims", 1):
        low, high = (side.reshape([s for axis, s in enumerate(side.shape) if axis not in axes]) for side in (low, high))
    return bounded(shape, low, high)


def _summed(side: Float64, axes: tuple[int, ...], value: Value) -> Float64:
    assert value.shape is not None
    count = np.prod([value.shape[axis] / side.shape[axis] for axis in axes])
    return np.asarray(side.sum(axis=axes, keepdims=True) * count)


def pooled(operator: Operator) -> Value:
    """Pooling, Resize by nearest or linear interpolation, GridSample: between smallest and largest of a channel, or zero."""
    value, shape = operator.value(0), operator.shape
    if value is None or value.shape is None or shape is None or value.rank < 3 or len(shape) != value.rank:
        return unbounded(shape)
    op = operator.op_type
    if op == "Resize" and operator.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return unbounded(shape)
    if op == "Resize" and operator.attribute("mode", "nearest") == "cubic":
        if operator.attribute("antialias", 0):
            return unbounded(shape)
        reach = mixed(value, *range(value.rank)).magnitude * 1.5**value.rank  # absolute weights of a = -0.75 add up to 1.375
        return bounded(shape, -reach, reach)
    axes = tuple(range(value.rank)) if op == "Resize" and value.shape[:2] != shape[:2] else tuple(range(2, value.rank))
    even = mixed(value, *axes)
    low, high = even.low, even.high
    if op in ("AveragePool", "GridSample"):
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    terms = math.prod(value.shape[2:]) if "Average" in op else 8
    return widened(shape, low, high, 0.0 if "Max" in op else even.magnitude, terms)


def dequantized(operator: Operator) -> Value:
    """DequantizeLinear of 8-bit codes: (code - zero point) scale, whatever the code."""
    scale, zero = operator.constant(1), operator.constant(2) if operator.has_input(2) else np.zeros((), np.uint8)
    shape = operator.shape
    if scale is None or zero is None or zero.dtype not in (np.int8, np.uint8) or shape is None:
        return unbounded(shape)
    limits = np.iinfo(zero.dtype if operator.has_input(2) else np.int8)
    widest = (limits.min - zero.astype(np.float64), limits.max - zero.astype(np.float64))
    if not operator.has_input(2):
        widest = (np.asarray(-128.0), np.asarray(255.0))
    sides = [1] * len(shape)
    if scale.size > 1:
        sides[int(operator.attribute("axis", 1)) % len(shape)] = scale.size
        widest = (np.broadcast_to(widest[0], scale.shape), np.broadcast_to(widest[1], scale.shape))
    numbers = scale.astype(np.float64)
    low, high = ((end * numbers).reshape(sides) for end in widest)
    return widened(shape, low, high, np.maximum(np.abs(low), np.abs(high)), 2)


def cast(operator: Operator) -> Value:
    """Cast between float types, and of truth values."""
    value = operator.value(0)
    return unbounded(operator.shape) if value is None else bounded(operator.shape, value.low, value.high, value.lengths)
