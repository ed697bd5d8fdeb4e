"""What is known of a tensor for every input: an interval, lengths of its vectors, a ball that it is an image of.

Arrays of facts have the rank of the tensor; an axis of size 1 stands for all places along it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.stability.bounds.affine_ball import SLACK, Float64
from edge.stability.bounds.ball import Ball

LIMIT = 1 << 16
"""Numbers in an array of facts; larger ones are reduced along their longest axis."""
_SMALLEST = 2.0**-125
"""Twice the smallest normal number of FP32: smaller ones may become zero."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Length:
    """||x||_p over `axes` (not negative, ascending) <= bound, an array with size 1 there; p is `order`."""

    axes: tuple[int, ...]
    order: Literal[1, 2]
    bound: Float64


@dataclass(frozen=True)
class Norm:
    """A tensor y that a norm of another tensor bounds, with n = ||tensor||_p over `axes`, which y keeps with size 1.

    power 1, 2:  y >= scale n^power.    power -1, -2:  y = scale t with 0 <= t <= n^power.
    """

    tensor: str
    axes: tuple[int, ...]
    order: Literal[1, 2]
    power: int
    scale: Float64
    rank: int
    kept: bool = True


@dataclass(frozen=True)
class Value:
    """Facts about a tensor.

    Attributes:
        shape: of the tensor; None where it is not known.
        low, high: interval; infinite where nothing is proven.
        lengths: norms of its vectors.
        ball: the tensor as an affine image of a ball.
        norm: a norm that it is a bound of.
        root, gain: x = gain * root, of another tensor; "" for itself.
        square_of: the tensor whose square it is, "" for none.
        sigmoid_of: the tensor whose sigmoid it is, "" for none.
        gated: an activation of a ball: g x for x of the ball, with g of each entry between two numbers.
        constant: its values, where the graph holds them.
    """

    shape: Shape | None
    low: Float64
    high: Float64
    lengths: tuple[Length, ...] = ()
    ball: Ball | None = None
    norm: Norm | None = None
    root: str = ""
    gain: Float64 = field(default_factory=lambda: np.ones(()))
    square_of: str = ""
    sigmoid_of: str = ""
    gated: tuple[Ball, tuple[float, float]] | None = None
    constant: npt.NDArray[Any] | None = None

    @property
    def magnitude(self) -> Float64:
        """|x|, as an array of facts."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))

    @property
    def largest(self) -> float:
        """|x| of the whole tensor; inf where nothing is proven."""
        return float(self.magnitude.max(initial=0.0))

    @property
    def rank(self) -> int:
        """Number of axes; 0 where the shape is not known."""
        return len(self.shape or ())

    def axes(self, axes: Iterable[int]) -> tuple[int, ...]:
        """Axes of the tensor, not negative, ascending."""
        return tuple(sorted(axis % max(self.rank, 1) for axis in axes))

    def plain(self) -> "Value":
        """The interval and lengths alone."""
        return Value(self.shape, self.low, self.high, self.lengths)


def unbounded(shape: Shape | None) -> Value:
    """Nothing is known."""
    ones = (1,) * len(shape or ())
    return Value(shape, np.full(ones, -np.inf), np.full(ones, np.inf))


def bounded(shape: Shape | None, low: Any, high: Any, lengths: tuple[Length, ...] = (), ball: Ball | None = None) -> Value:
    """A value from what is known of it; every fact narrows the interval, and no array exceeds LIMIT."""
    rank = len(shape or ())
    low, high = (_aligned(np.asarray(side, np.float64), rank) for side in (low, high))
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    if shape is None:
        return Value(None, np.asarray(low.min(initial=np.inf)), np.asarray(high.max(initial=-np.inf)))
    if ball is not None:
        ends = ball.interval()
        low, high = np.maximum(low, ends[0]), np.minimum(high, ends[1])
    kept = []
    for length in lengths:
        bound = np.where(np.isnan(length.bound), np.inf, length.bound)
        if np.isfinite(bound).any():
            low, high = np.maximum(low, -bound), np.minimum(high, bound)
            kept.append(replace(length, bound=reduced(bound, np.max)))
    return Value(shape, reduced(low, np.min), reduced(high, np.max), tuple(kept), ball)


def widened(shape: Shape | None, low: Any, high: Any, magnitude: Any, terms: float, **facts: Any) -> Value:
    """A value computed in FP32 from sums of `terms` terms, whose magnitudes add up to `magnitude`."""
    margin = SLACK * terms * np.asarray(magnitude, np.float64)
    return bounded(shape, low - margin, high + margin, **facts)


def rounded(shape: Shape | None, low: Any, high: Any, roundings: float = 1, **facts: Any) -> Value:
    """A value of one operation that rounds correctly, or nearly: rounding keeps order, the ends alone move, never past zero."""
    low, high = (np.asarray(side, np.float64) for side in (low, high))
    margin = SLACK * roundings
    low = np.where((low > 0) & (low < _SMALLEST), 0.0, low - margin * np.abs(low))
    high = np.where((high < 0) & (high > -_SMALLEST), 0.0, high + margin * np.abs(high))
    return bounded(shape, low, high, **facts)


def _aligned(array: Float64, rank: int) -> Float64:
    return array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim < rank else array


def reduced(array: npt.NDArray[Any], reduce: Callable[..., Any]) -> npt.NDArray[Any]:
    """At most LIMIT numbers: along the longest axes their largest, or smallest, stands for all."""
    while array.size > LIMIT:
        array = np.asarray(reduce(array, axis=int(np.argmax(array.shape)), keepdims=True))
    return array


def over(array: Float64, axes: Iterable[int], shape: Shape) -> Float64:
    """The array with every place along `axes` of the tensor."""
    sides = tuple(shape[axis] if axis in set(axes) else size for axis, size in enumerate(array.shape))
    return np.asarray(np.broadcast_to(array, sides))


def length_of(value: Value, axes: tuple[int, ...], order: Literal[1, 2] = 2) -> Float64:
    """The smallest bound that the facts give on a norm over `axes`, as an array with size 1 there."""
    assert value.shape is not None
    count = float(np.prod([value.shape[axis] for axis in axes]))
    powers = value.magnitude**order
    stored = np.prod([powers.shape[axis] for axis in axes])  # along each axis one number stands for all, or each has its own
    best = (powers.sum(axis=axes, keepdims=True) * (count / stored)) ** (1 / order)
    for length in value.lengths:
        if set(axes) <= set(length.axes):  # a part of a vector is not longer than the whole
            factor = 1.0 if length.order <= order else count**0.5
            best = np.minimum(best, factor * length.bound)
    if value.ball is not None:
        reach = value.ball.length(axes, value.shape)
        if reach is not None:
            best = np.minimum(best, reach * (1.0 if order == 2 else count**0.5))
    return np.asarray(best)


def unit_root(value: Value, name: str) -> Value:
    """The value with its own name as root where it has none."""
    return value if value.root else replace(value, root=name, gain=np.ones((1,) * value.rank))
