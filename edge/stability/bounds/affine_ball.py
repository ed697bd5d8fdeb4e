"""Vectors A u + c of a ball ||u||_2 <= r, and sums of products of two of them.

    |a_i|    <= r ||A_i|| + |c_i|              A_i: row of A, s(A): largest singular value
    ||a||_2  <= r s(A) + ||c||                 and no more than the norm of the line above

K^T V sums N products of tokens, each k (A, c) times v (B, d) of the same u. With x = r u', ||u'|| <= 1,

    |A_i.u'| |B_j.u'| <= (||A_i|| ||B_j|| + |A_i.B_j|) / 2                      (a symmetric form of rank two)
    ||A u'|| |B_j.u'| <= (s(A) ||B_j|| + ||A B_j||) / 2

    entries    |a_ij|, partial sums
            <= N [r^2 (||A_i|| ||B_j|| + |A_i.B_j|) / 2 + r (||A_i|| |d_j| + |c_i| ||B_j||) + |c_i d_j|]
    columns    sum over i of a_ij^2
            <= N^2 [r^2 (s(A) ||B_j|| + ||A B_j||) / 2 + r (s(A) |d_j| + ||c|| ||B_j||) + ||c|| |d_j|]^2
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

SLACK = 2.0**-22
"""Relative widening per term summed: four times FP32's unit roundoff of 2^-24 (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 3.1)."""


@dataclass(frozen=True)
class AffineBall:
    """A u + c of every head: matrix (H, D, C), offset >= |c| (H, D), for ||u|| <= radius."""

    matrix: Float64
    offset: Float64
    radius: float

    @cached_property
    def rows(self) -> Float64:
        """||A_i||, (H, D)."""
        return np.asarray(np.linalg.norm(self.matrix, axis=2))

    @cached_property
    def top(self) -> Float64:
        """s(A), (H,)."""
        return np.asarray(np.linalg.norm(self.matrix, ord=2, axis=(1, 2)))

    @cached_property
    def largest(self) -> Float64:
        """Bound on every |A_i u + c_i|, (H, D)."""
        return self.radius * self.rows + self.offset

    @cached_property
    def length(self) -> Float64:
        """Bound on ||A u + c||, (H,)."""
        whole = self.radius * self.top + np.linalg.norm(self.offset, axis=1)
        return np.asarray(np.minimum(whole, np.linalg.norm(self.largest, axis=1)))


def bound_entries(k: AffineBall, v: AffineBall, tokens: int, alike: bool) -> Float64:
    """Bounds on the entries and partial sums of K^T V (H, D, D); `alike`: k and v are of the same u, token by token."""
    apart = tokens * k.largest[:, :, None] * v.largest[:, None, :]
    if not alike:
        return apart
    cross = k.matrix @ v.matrix.transpose(0, 2, 1)  # A_i.B_j, (H, D, D)
    form = k.rows[:, :, None] * v.rows[:, None, :] + np.abs(cross)
    mixed = k.rows[:, :, None] * v.offset[:, None, :] + k.offset[:, :, None] * v.rows[:, None, :]
    fixed = k.offset[:, :, None] * v.offset[:, None, :]
    entries = tokens * (k.radius**2 * form / 2 + k.radius * mixed + fixed)  # (H, D, D)
    return np.asarray(np.minimum(entries, apart))


def bound_columns(along: AffineBall, other: AffineBall, tokens: int, alike: bool) -> Float64:
    """Bounds on the lengths of the vectors of K^T V, (H, D): they lie along `along`, one for each row of `other`."""
    apart = tokens * along.length[:, None] * other.largest
    if not alike:
        return apart
    top, length = along.top[:, None], np.linalg.norm(along.offset, axis=1, keepdims=True)
    through = along.matrix @ other.matrix.transpose(0, 2, 1)  # A B_j, (H, D, D): column j belongs to vector j
    vectors = tokens * (
        along.radius**2 * (top * other.rows + np.linalg.norm(through, axis=1)) / 2
        + along.radius * (top * other.offset + length * other.rows)
        + length * other.offset
    )  # (H, D), one per vector
    return np.asarray(np.minimum(vectors, apart))
