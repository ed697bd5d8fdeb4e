"""Bounds on the values inside an XNorm that hold for every image, from the weights alone.

LayerNorm gives z = g * u + b with ||u||_2 <= sqrt(C), whatever it reads. A linear layer after it computes

    W z + w0 = A u + c      A = W diag(g)      c = W b + w0

so that, with rows A_i and the largest singular value s(A):

    q     |a_i|      <= sqrt(C) ||A_i|| + |c_i|
          sum a^2    <= (sqrt(C) s(A) + ||c||)^2, and no more than the sum of the squares of the line above

K^T V sums N products of tokens, each k (A, c) times v (B, d) of the same u. With x = sqrt(C) u', ||u'|| <= 1,

    |A_i.u'| |B_j.u'| <= (||A_i|| ||B_j|| + |A_i.B_j|) / 2                      (a symmetric form of rank two)
    ||A u'|| |B_j.u'| <= (s(A) ||B_j|| + ||A B_j||) / 2

    kv    |a_ij|, partial sums
            <= N [C (||A_i|| ||B_j|| + |A_i.B_j|) / 2 + sqrt(C) (||A_i|| |d_j| + |c_i| ||B_j||) + |c_i d_j|]
          sum over i of a_ij^2
            <= N^2 [C (s(A) ||B_j|| + ||A B_j||) / 2 + sqrt(C) (s(A) |d_j| + ||c|| ||B_j||) + ||c|| |d_j|]^2

(That u also sums to zero is not used: rounding can break it when the spread of a token is tiny beside its mean.) Where k and v
do not read the same tokens in the same order, a product of their bounds replaces the forms. For sums along the other
axis k and v are exchanged. Every bound is widened by SLACK per term of the longest sum, more than FP32
arithmetic can add to it (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); so is c, by the
magnitudes of its terms, since they may cancel. ||u|| <= sqrt(C) does not hold in arithmetic that computes the variance as a
difference of sums, when the mean of a token is some thousand times its spread. Quantized inputs (INT8, FP16) change the values
by a few percent at most; the margins of `edge.stability.verdict` account for them.
"""

from dataclasses import dataclass

import numpy as np

from edge.stability.finders.xnorm import XNormSite
from edge.stability.observed_ranges import Float64, SiteMaxima
from edge.stability.trace_layers import Projection, SiteLayers

SLACK = 2.0**-22
"""Relative widening per term summed: four times FP32's unit roundoff of 2^-24, for LayerNorm, layer, K^T V and norm."""


@dataclass(frozen=True)
class _Affine:
    """A u + c of every head: matrix (H, D, C), offset >= |c| (H, D), for ||u|| <= radius."""

    matrix: Float64
    offset: Float64
    radius: float

    @property
    def rows(self) -> Float64:
        """||A_i||, (H, D)."""
        return np.asarray(np.linalg.norm(self.matrix, axis=2))

    @property
    def top(self) -> Float64:
        """s(A), (H,)."""
        return np.asarray(np.linalg.norm(self.matrix, ord=2, axis=(1, 2)))

    @property
    def largest(self) -> Float64:
        """Bound on every |A_i u + c_i|, (H, D)."""
        return self.radius * self.rows + self.offset

    @property
    def length(self) -> Float64:
        """Bound on ||A u + c||, (H,)."""
        whole = self.radius * self.top + np.linalg.norm(self.offset, axis=1)
        return np.asarray(np.minimum(whole, np.linalg.norm(self.largest, axis=1)))


def bound_q(layer: Projection) -> SiteMaxima | None:
    """Bounds of an XNorm over the channels of a linear layer; None when the layer reads no LayerNorm."""
    affine = _affine(layer)
    if affine is None:
        return None
    wide = 1 + SLACK * sum(affine.matrix.shape[1:])
    zeros = np.zeros(len(affine.matrix))
    return SiteMaxima(affine.largest.max(axis=1) * wide, affine.length**2 * wide, zeros, np.zeros((2, len(zeros))))


def bound_kv(key: Projection, value: Projection, tokens: int, axis: int) -> SiteMaxima | None:
    """Bounds of an XNorm over K^T V (H, D, D) along `axis`, -2 (columns) or -1 (rows), summed over `tokens`; None as above."""
    k, v = _affine(key), _affine(value)
    if k is None or v is None or k.radius != v.radius:
        return None
    wide = 1 + SLACK * (sum(k.matrix.shape[1:]) + tokens)
    cross = k.matrix @ v.matrix.transpose(0, 2, 1)  # A_i.B_j, (H, D, D)
    form = k.rows[:, :, None] * v.rows[:, None, :] + np.abs(cross)
    alike = key.source == value.source and np.array_equal(key.order, value.order)
    mixed = k.rows[:, :, None] * v.offset[:, None, :] + k.offset[:, :, None] * v.rows[:, None, :]
    fixed = k.offset[:, :, None] * v.offset[:, None, :]
    entries = tokens * (k.radius**2 * form / 2 + k.radius * mixed + fixed)  # (H, D, D)
    apart = tokens * k.largest[:, :, None] * v.largest[:, None, :]
    entries = np.minimum(entries, apart) if alike else apart
    along, other = (k, v) if axis == -2 else (v, k)
    top, length = along.top[:, None], np.linalg.norm(along.offset, axis=1, keepdims=True)
    through = along.matrix @ other.matrix.transpose(0, 2, 1)  # A B_j, (H, D, D): column j belongs to vector j
    vectors = tokens * (
        k.radius**2 * (top * other.rows + np.linalg.norm(through, axis=1)) / 2
        + k.radius * (top * other.offset + length * other.rows)
        + length * other.offset
    )  # (H, D), one per vector
    apart = tokens * along.length[:, None] * other.largest
    vectors = np.minimum(vectors, apart) if alike else apart
    vectors = np.minimum(vectors, np.linalg.norm(entries, axis=axis))
    largest = entries.max(axis=(1, 2)) * wide
    factors = np.stack([k.largest.max(axis=1), v.largest.max(axis=1)]) * wide
    return SiteMaxima(largest, (vectors.max(axis=1) * wide) ** 2, largest, factors)


def bound_site(site: XNormSite, traced: SiteLayers) -> SiteMaxima | None:
    """Bounds for every input; None where the site does not lead back to a LayerNorm through linear layers."""
    if not traced.layers:
        return None
    if site.operand == "q":
        return bound_q(traced.layers[0])
    return bound_kv(traced.layers[0], traced.layers[1], traced.tokens, site.axis) if traced.tokens else None


def _affine(layer: Projection) -> _Affine | None:
    if layer.norm is None:
        return None
    width = layer.matrix.shape[2]
    exact = np.abs(layer.matrix @ layer.norm.bias + layer.offset)
    summed = np.abs(layer.matrix) @ np.abs(layer.norm.bias) + np.abs(layer.offset)
    return _Affine(layer.matrix * layer.norm.gain, exact + SLACK * width * summed, width**0.5)
