"""Bounds on the values inside an XNorm that hold for every image, from the weights alone.

LayerNorm gives z = g * u + b with ||u||_2 <= sqrt(C), whatever it reads. A linear layer after it computes

    W z + w0 = A u + c      A = W diag(g)      c = W b + w0

so that q and K^T V have the bounds of `edge.stability.bounds.affine_ball`, with r = sqrt(C). Where k and v do not read the same
tokens in the same order, a product of their bounds replaces the forms. For sums along the other axis k and v are exchanged.

(That u also sums to zero is not used: rounding can break it when the spread of a token is tiny beside its mean.) Every bound
is widened by SLACK per term of the longest sum, more than FP32 arithmetic can add to it (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1); so is c, by the magnitudes of its terms, since they may cancel. ||u|| <= sqrt(C)
does not hold in arithmetic that computes the variance as a difference of sums, when the mean of a token is some thousand
times its spread. Quantized inputs (INT8, FP16) change the values by a few percent at most; the margins of
`edge.stability.verdict` account for them.
"""

import numpy as np

from edge.stability.bounds.affine_ball import SLACK, AffineBall, bound_columns, bound_entries
from edge.stability.finders.xnorm import XNormSite
from edge.stability.observed_ranges import SiteMaxima
from edge.stability.trace_layers import Projection, SiteLayers


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
    alike = key.source == value.source and np.array_equal(key.order, value.order)
    entries = bound_entries(k, v, tokens, alike)  # (H, D, D)
    along, other = (k, v) if axis == -2 else (v, k)
    vectors = bound_columns(along, other, tokens, alike)  # (H, D), one per vector
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


def _affine(layer: Projection) -> AffineBall | None:
    if layer.norm is None:
        return None
    width = layer.matrix.shape[2]
    exact = np.abs(layer.matrix @ layer.norm.bias + layer.offset)
    summed = np.abs(layer.matrix) @ np.abs(layer.norm.bias) + np.abs(layer.offset)
    return AffineBall(layer.matrix * layer.norm.gain, exact + SLACK * width * summed, width**0.5)
