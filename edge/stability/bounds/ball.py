"""A tensor as an affine image of a ball: every entry x = gain (A_channel . u_place) + offset +- slack, ||u||_2 <= 1.

u is what a norm leaves, one vector for each place (token, head ...); A is the identity after the norm and a product of weights
after linear layers. Entries with the same place share their u. Which channel and place an entry has is rearranged together
with the tensor: computed, not assumed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.stability.bounds.affine_ball import SLACK, Float64

Int64 = npt.NDArray[np.int64]
MATRIX_LIMIT = 1 << 24
"""Numbers in a matrix whose largest singular value is worth its time."""


@dataclass(frozen=True)
class Rows:
    """The matrix A (channels, width): the identity, or diag(scale) weight transposed.

    Attributes:
        width: of u.
        weight: (width, channels), None for the identity.
        scale: (width,).
    """

    width: int
    weight: npt.NDArray[Any] | None = None
    scale: Float64 | None = None

    @cached_property
    def lengths(self) -> Float64:
        """||A_i||_2 of every row."""
        if self.weight is None or self.scale is None:
            return np.ones(self.width)
        return np.asarray(np.sqrt(np.square(self.scale) @ np.square(self.weight)))

    @property
    def dense(self) -> Float64:
        """The matrix; made when asked for, so that networks of many layers fit in memory."""
        if self.weight is None or self.scale is None:
            return np.eye(self.width)
        return np.ascontiguousarray((self.weight * self.scale[:, None]).T, np.float64)


@dataclass(frozen=True)
class Ball:
    """See the module's docstring. All arrays have the rank of the tensor, and size 1 where an axis makes no difference.

    Attributes:
        source: the tensor that the norm computes: balls of one source with equal places have equal u.
        rows: the matrix A.
        channels: which row of it.
        places: which u.
        gain, offset, slack: numbers of each entry.
    """

    source: str
    rows: Rows
    channels: Int64
    places: Int64
    gain: Float64
    offset: Float64
    slack: Float64
    _lengths: dict[tuple[int, ...], Float64] = field(default_factory=dict, init=False, repr=False, compare=False)

    def interval(self) -> tuple[Float64, Float64]:
        """Smallest and largest value of each entry."""
        reach = np.abs(self.gain) * self.rows.lengths[self.channels] * (1 + SLACK) + self.slack
        return self.offset - reach, self.offset + reach

    def mapped(self, move: Callable[[npt.NDArray[Any]], npt.NDArray[Any] | None]) -> "Ball | None":
        """The ball of a rearranged tensor; None where an array cannot follow, or one axis is of channels and of places."""
        arrays = [move(array) for array in (self.channels, self.places, self.gain, self.offset, self.slack)]
        if any(array is None for array in arrays):
            return None
        channels, places, gain, offset, slack = (np.asarray(array) for array in arrays)
        if any(a > 1 and b > 1 for a, b in zip(channels.shape, places.shape, strict=True)):
            return None
        return Ball(self.source, self.rows, channels, places, gain, offset, slack)

    def scaled(self, factor: Float64) -> "Ball":
        """The ball times a constant."""
        slack = (self.slack + SLACK * np.abs(self.offset)) * np.abs(factor)
        return replace(self, gain=self.gain * factor, offset=self.offset * factor, slack=slack)

    def shifted(self, constant: Float64) -> "Ball":
        """The ball plus a constant."""
        magnitude = np.maximum(*map(np.abs, self.interval())) + np.abs(constant)
        return replace(self, offset=self.offset + constant, slack=self.slack + SLACK * magnitude)

    def through(self, weight: npt.NDArray[Any], axis: int, reach: Float64) -> "Ball | None":
        """x @ weight, (K, M), along one axis of length K, on which alone the entries may depend; `reach` (K,) >= |x|.

        The weight is kept in its own type, which for FP32 takes half the memory.
        """
        mine: tuple[npt.NDArray[Any], ...] = (self.channels, self.gain, self.offset, self.slack)
        if self.places.shape[axis] != 1 or any(array.size != array.shape[axis] for array in mine):
            return None
        depth, count = weight.shape
        channels = np.broadcast_to(self.channels.reshape(-1), depth)
        gain, offset, slack = (np.broadcast_to(array.reshape(-1), depth) for array in mine[1:])
        if self.rows.weight is None and np.array_equal(channels, np.arange(self.rows.width)):
            rows = Rows(self.rows.width, weight, np.asarray(gain, np.float64))
        else:
            product: Float64 = self.rows.dense[channels].T @ (weight * gain[:, None]).astype(np.float64)
            rows = Rows(self.rows.width, product, np.ones(self.rows.width))
        sides = [1] * self.places.ndim
        sides[axis] = count
        moved = (offset @ weight).reshape(sides)
        loose = ((slack + SLACK * depth * reach) @ np.abs(weight)).reshape(sides)
        numbers = np.arange(count, dtype=np.int64).reshape(sides)
        return Ball(self.source, rows, numbers, self.places, np.ones([1] * len(sides)), moved, loose)

    def length(self, axes: tuple[int, ...], shape: tuple[int, ...]) -> Float64 | None:
        """Bound on ||x||_2 over axes along which all entries share their u; None where they do not."""
        if axes not in self._lengths:
            matrix = self.matrix(axes, shape)
            if matrix is None:
                return None
            gain, rows, offset = matrix
            top = np.abs(gain).max(axis=-1) if rows is None else largest_singular(rows)
            self._lengths[axes] = np.expand_dims(top * (1 + SLACK) + np.linalg.norm(offset, axis=-1), axes)
        return self._lengths[axes]

    def matrix(self, axes: tuple[int, ...], shape: tuple[int, ...]) -> "tuple[Float64, Float64 | None, Float64] | None":
        """gain (..., n), diag(gain) A (..., n, width) and |offset| with slack (..., n) of the vectors over `axes`.

        No matrix where A is the identity and no channel occurs twice in a vector. None where the vectors do not share their u,
        or there are too many.
        """
        if any(self.places.shape[axis] != 1 for axis in axes):
            return None
        arrays = (self.channels, self.gain, np.abs(self.offset) + self.slack)
        sides = np.broadcast_shapes(*(array.shape for array in arrays))
        sides = tuple(shape[axis] if axis in axes else side for axis, side in enumerate(sides))
        others = [axis for axis in range(len(sides)) if axis not in axes]
        kept = [sides[axis] for axis in others]
        channels, gain, offset = (
            np.broadcast_to(array, sides).transpose(*others, *axes).reshape(*kept, -1) for array in arrays
        )
        if self.rows.weight is None and (np.diff(np.sort(channels, axis=-1), axis=-1) > 0).all():
            return gain, None, offset
        if channels.size * self.rows.width > MATRIX_LIMIT:
            return None
        return gain, self.rows.dense[channels] * gain[..., None], offset


def largest_singular(matrix: Float64) -> Float64:
    """Bound on the largest singular value of each matrix (..., n, m)."""
    short = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.swapaxes(-1, -2)
    gram = short @ short.swapaxes(-1, -2)
    values = np.linalg.eigvalsh(gram)[..., -1]
    # eigenvalues are accurate to some units of 2^-52 of the largest
    return np.asarray(np.sqrt(np.maximum(values, 0.0) * (1 + 2.0**-30)))
