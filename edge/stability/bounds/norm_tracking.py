"""Which tensor a norm is of, so that a quotient by it is recognised, whatever the spelling.

    y >= scale ||t||^p          ReduceL2, ReduceL1, ReduceSumSquare; sums and means of x x, of x^2, of what is not negative;
                                these + what is not negative; max(., .); a root; times what is positive
    y = scale s, s <= ||t||^-p  the reciprocal of these, and its multiples
    x = gain t                  t itself, times constants

    x / y, x y  =  (gain / scale) u,  ||u||_p <= 1         x of the same t

LayerNorm, RMSNorm, L2 norms and response norms in pieces, and a softmax in pieces, are all of this kind. Vectors so short that
their squares vanish in FP32, without an eps, are not covered: FP32 itself does not compute them.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.stability.bounds.affine_ball import SLACK, Float64
from edge.stability.bounds.ball import Ball, Int64, Rows
from edge.stability.bounds.operator import Operator
from edge.stability.bounds.value import Length, Norm, Shape, Value, bounded

_FP32_MAX = 3e38
_POWERS = {"ReduceL2": 1, "ReduceSumSquare": 2, "ReduceL1": 1}


def unit_value(operator: Operator) -> Value | None:
    """The value of a Div or Mul that divides a tensor by its own norm; None for any other."""
    left, right = operator.value(0), operator.value(1)
    if left is None or right is None or operator.shape is None:
        return None
    if operator.op_type == "Div":
        return _unit(operator, left, right, 1)
    return _unit(operator, left, right, -1) or _unit(operator, right, left, -1)


def _unit(operator: Operator, vector: Value, divisor: Value, power: int) -> Value | None:
    norm, shape = divisor.norm, operator.shape
    if norm is None or norm.power != power or not norm.kept or norm.tensor != vector.root or shape is None:
        return None
    if vector.shape != shape:
        return None
    scale = norm.scale if power == -1 else 1 / norm.scale
    count = math.prod(shape[axis] for axis in norm.axes)
    return unit_vectors(operator.node.output[0], shape, norm.axes, vector.gain * scale * (1 + SLACK * (count + 8)), norm.order)


def unit_vectors(name: str, shape: Shape, axes: tuple[int, ...], gain: Float64, order: Literal[1, 2] = 2) -> Value:
    """gain u with ||u||_p <= 1 over axes; `gain` is of the tensor's rank. For one axis and p = 2 with its ball."""
    gain = gain.reshape((1,) * (len(shape) - gain.ndim) + gain.shape)
    lengths = (Length(axes, order, np.abs(gain).max(axis=axes, keepdims=True)),)
    return bounded(shape, -np.abs(gain), np.abs(gain), lengths, _ball(name, shape, axes, gain) if order == 2 else None)


def _ball(name: str, shape: Shape, axes: tuple[int, ...], gain: Float64) -> Ball | None:
    if len(axes) != 1:
        return None
    (axis,) = axes
    sides = [1] * len(shape)
    sides[axis] = shape[axis]
    channels: Int64 = np.arange(shape[axis], dtype=np.int64).reshape(sides)
    others = [1 if place == axis else side for place, side in enumerate(shape)]
    places: Int64 = np.arange(int(np.prod(others)), dtype=np.int64).reshape(others)
    zeros = np.zeros([1] * len(shape))
    return Ball(name, Rows(shape[axis]), channels, places, gain, zeros, zeros)


def tracked(operator: Operator, result: Value) -> Value:
    """The result with what it is a norm, a multiple or a square of."""
    value = operator.value(0)
    if result.shape is None or not operator.inputs or value is None:
        return result
    op = operator.op_type
    if op in ("Add", "Max", "Clip", "Sqrt", "Reciprocal", "Identity", "Expand", "Unsqueeze", "Reshape"):
        result = replace(result, norm=_kept_norm(operator, result))
    if op in ("Mul", "Div"):
        result = _multiple(operator, result)
    if op in ("Neg", "Identity"):
        result = replace(result, root=value.root, gain=value.gain * (-1.0 if op == "Neg" else 1.0))
    if op == "Pow":
        result = _power(operator, result)
    if op == "Sigmoid":
        result = replace(result, sigmoid_of=operator.node.input[0])
    if op.startswith("Reduce"):
        result = replace(result, norm=_reduced_norm(operator, value))
    return result


def _reduced_norm(operator: Operator, value: Value) -> Norm | None:
    op = operator.op_type
    axes = operator.axes(1, value.rank) if value.shape else None
    if not axes or value.shape is None:
        return None
    count = float(np.prod([value.shape[axis] for axis in axes]))
    kept = bool(operator.attribute("keepdims", 1))
    ones = np.ones((1,) * value.rank)
    if op in _POWERS:
        return Norm(operator.node.input[0], axes, 1 if op == "ReduceL1" else 2, _POWERS[op], ones, value.rank, kept)
    if op not in ("ReduceSum", "ReduceMean"):
        return None
    share = ones if op == "ReduceSum" else ones / count
    if value.square_of:
        return Norm(value.square_of, axes, 2, 2, share, value.rank, kept)
    return Norm(operator.node.input[0], axes, 1, 1, share, value.rank, kept) if (value.low >= 0).all() else None


def _kept_norm(operator: Operator, result: Value) -> Norm | None:
    """The norm that a result is of because an input is."""
    op = operator.op_type
    with_norm = [place for place, value in enumerate(operator.inputs) if value is not None and value.norm is not None]
    if not with_norm:
        return None
    place = with_norm[0]
    value = operator.inputs[place]
    norm = None if value is None else value.norm
    if value is None or norm is None or result.shape is None:
        return None
    if op in ("Unsqueeze", "Reshape"):
        sides = tuple(1 if axis in norm.axes else -1 for axis in range(norm.rank))
        squeezed = [side for side in result.shape if side != 1]
        fits = len(result.shape) == norm.rank and all(result.shape[axis] == 1 for axis, side in enumerate(sides) if side == 1)
        same = squeezed == [side for side in value.shape or () if side != 1]
        return replace(norm, kept=True) if fits and same and (norm.kept or _in_order(norm, value, result)) else None
    if op in ("Identity", "Expand"):
        return norm if len(result.shape) == norm.rank else None
    return _grown_norm(operator, norm, place) if norm.kept and norm.power > 0 and len(result.shape) == norm.rank else None


def _grown_norm(operator: Operator, norm: Norm, place: int) -> Norm | None:
    """The norm after what makes it larger, its root or its reciprocal; `place` is that of the input that is the norm."""
    op = operator.op_type
    if op == "Sqrt":
        return replace(norm, power=1, scale=np.sqrt(norm.scale)) if norm.power == 2 else None
    if op == "Reciprocal":
        return replace(norm, power=-norm.power, scale=1 / norm.scale)
    other = operator.value(1 - place) if op == "Add" else operator.value(2)
    if op == "Add":
        return norm if other is not None and (other.low >= 0).all() else None
    ceiling = op == "Clip" and other is not None and other.low.min() < _FP32_MAX
    return norm if op == "Max" or (place == 0 and not ceiling) else None


def _in_order(norm: Norm, value: Value, result: Value) -> bool:
    """Whether axes of size 1 come in where the norm took them away."""
    expected = [side for axis, side in enumerate(result.shape or ()) if axis not in norm.axes]
    return list(value.shape or ()) == expected


def _multiple(operator: Operator, result: Value) -> Value:
    """Mul and Div by constants; a constant by a norm; a square."""
    left, right = operator.inputs[:2]
    if left is None or right is None:
        return result
    divides = operator.op_type == "Div"
    if not divides and operator.node.input[0] == operator.node.input[1]:
        return replace(result, square_of=operator.node.input[0])
    if divides and left.constant is not None and right.norm is not None and right.norm.kept and right.norm.power > 0:
        scale = _numbers(left, result.rank) / right.norm.scale
        return (
            replace(result, norm=replace(right.norm, power=-right.norm.power, scale=scale))
            if result.rank == right.norm.rank
            else result
        )
    for value, other in ((left, right),) if divides else ((left, right), (right, left)):
        if other.constant is None or value.constant is not None or value.rank != result.rank:
            continue
        numbers = _numbers(other, result.rank)
        if divides and not np.all(numbers):
            continue
        factor = 1 / numbers if divides else numbers
        norm = value.norm
        if norm is not None and (norm.power < 0 or (factor > 0).all()) and norm.kept:
            result = replace(result, norm=replace(norm, scale=norm.scale * factor))
        if value.shape == result.shape:
            result = replace(result, root=value.root, gain=value.gain * factor)
    return result


def _numbers(value: Value, rank: int) -> Float64:
    assert value.constant is not None
    numbers: npt.NDArray[Any] = value.constant.astype(np.float64)
    return numbers.reshape((1,) * (rank - numbers.ndim) + numbers.shape)


def _power(operator: Operator, result: Value) -> Value:
    value, exponent = operator.value(0), operator.constant(1)
    if value is None or exponent is None or exponent.size != 1:
        return result
    power = float(exponent.reshape(-1)[0])
    if power == 2:
        return replace(result, square_of=operator.node.input[0])
    norm = value.norm
    if norm is None or not norm.kept or norm.power < 1:
        return result
    if (norm.power, power) in ((2, 0.5), (2, -0.5), (1, -1.0)):
        scale = norm.scale**power
        return replace(result, norm=replace(norm, power=1 if power > 0 else -1, scale=scale))
    return result
