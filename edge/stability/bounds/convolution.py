"""Rules of Conv and ConvTranspose with constant weights: intervals per channel, lengths over channels tap by tap."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.stability.bounds.affine_ball import SLACK, Float64
from edge.stability.bounds.operator import Operator
from edge.stability.bounds.products import linear
from edge.stability.bounds.rearrange import mixed
from edge.stability.bounds.value import Value, bounded, length_of, unbounded


def conv(operator: Operator) -> Value:
    """Conv of any group, stride, padding and dilation; what is padded counts as zero at every place."""
    value, weight, shape = operator.value(0), operator.constant(1), operator.shape
    if value is None or value.shape is None or weight is None or shape is None or value.rank < 3:
        return unbounded(shape)
    groups, places = int(operator.attribute("group", 1)), tuple(range(2, value.rank))
    taps = weight.reshape(*weight.shape[:2], -1)
    padded = any(operator.attribute("pads", [])) or operator.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if groups == 1 and taps.shape[2] == 1 and not padded:
        even = value if value.ball is not None else mixed(value, *places)
        strided = any(step != 1 for step in operator.attribute("strides", []))
        result = linear(operator, even.plain() if strided else even, taps[:, :, 0].T, 1)
        return _with_bias(operator, result)
    even = mixed(value, *places)
    low, high = _channels(even.low, value.shape[1]), _channels(even.high, value.shape[1])
    if padded:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    depth = taps.shape[1] * taps.shape[2]
    ends, magnitude = _grouped(taps, low, high, groups)
    total = magnitude
    if groups == 1:
        norms = np.linalg.norm(taps, axis=1).sum(axis=1)  # over the taps, (M,)
        total = np.fmin(total, float(length_of(value, (1,)).max()) * norms)
    margin = SLACK * depth * total
    operator.record_partial_sum(float((total + margin).max()))
    low, high = np.fmax(ends[0], -total) - margin, np.fmin(ends[1], total) + margin
    sides = [1, -1, *[1] * len(places)]
    return _with_bias(operator, bounded(shape, low.reshape(sides), high.reshape(sides)))


def _channels(facts: Float64, count: int) -> Float64:
    """Per channel, whatever the image of the batch."""
    return np.broadcast_to(facts.reshape(len(facts), -1), (len(facts), count))


def _grouped(taps: npt.NDArray[Any], low: Float64, high: Float64, groups: int) -> tuple[tuple[Float64, Float64], Float64]:
    """Ends of the sums and the sums of magnitudes, (M,), for inputs (B, C) that are the same at every tap."""
    low, high = low.min(axis=0), high.max(axis=0)
    positive = np.maximum(taps, 0).sum(axis=2, dtype=np.float64).reshape(groups, -1, taps.shape[1])
    negative = np.minimum(taps, 0).sum(axis=2, dtype=np.float64).reshape(groups, -1, taps.shape[1])
    low, high = (side.reshape(groups, -1, 1) for side in (low, high))
    largest = np.maximum(np.abs(low), np.abs(high))
    ends = (positive @ low + negative @ high, positive @ high + negative @ low)
    return (ends[0].reshape(-1), ends[1].reshape(-1)), ((positive - negative) @ largest).reshape(-1)


def _with_bias(operator: Operator, value: Value) -> Value:
    if not operator.has_input(2):
        return value
    bias = operator.constant(2)
    if bias is None or value.shape is None:
        return unbounded(operator.shape)
    shift = bias.astype(np.float64).reshape(1, -1, *[1] * (value.rank - 2))
    ball = None if value.ball is None else value.ball.shifted(shift)
    margin = SLACK * (value.magnitude + np.abs(shift))
    return bounded(value.shape, value.low + shift - margin, value.high + shift + margin, ball=ball)


def conv_transpose(operator: Operator) -> Value:
    """ConvTranspose: every output adds up no more than all taps of its channel."""
    value, weight, shape = operator.value(0), operator.constant(1), operator.shape
    if value is None or value.shape is None or weight is None or shape is None or value.rank < 3:
        return unbounded(shape)
    groups = int(operator.attribute("group", 1))
    largest = mixed(value, *range(2, value.rank)).magnitude
    largest = _channels(largest, value.shape[1]).max(axis=0).reshape(groups, 1, -1)
    taps = np.abs(weight).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)  # (G, C/G, M/G, taps)
    total = (largest @ taps.sum(axis=3, dtype=np.float64)).reshape(-1)
    total = total * (1 + SLACK * weight[:, 0].size)
    operator.record_partial_sum(float(total.max()))
    total = total.reshape(1, -1, *[1] * (value.rank - 2))
    return _with_bias(operator, bounded(shape, -total, total))
