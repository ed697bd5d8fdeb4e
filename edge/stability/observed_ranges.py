"""Ranges of the values inside one XNorm: observed on images (`ObservedRanges`), or bounds for every input (`SiteMaxima`).

    a       argument of the norm: Q (B, H, N, D), or K^T V (B, H, D, D)
    vector  what one norm is taken over: a token's q_h, or a column of K^T V
    sum     sum a^2 over a vector
    partial the largest partial sum on the way to an entry of K^T V, whatever the order of summation:
            max(sum of the positive products, minus sum of the negative ones) = (sum |k v| + |sum k v|) / 2

All ranges are kept per head, in float64. Observations merge in any order to the same result; scaling by powers of two is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Operand = Literal["q", "kv"]
"""What an XNorm normalises: Q, or K^T V."""

LOWEST_EXPONENT, HIGHEST_EXPONENT = -400, 400
"""Range of the histogram of exponents of sum a^2; values beyond it are counted at its ends. FP32's own is -298 to 256."""


@dataclass(frozen=True)
class SiteMaxima:
    """The largest values per head: observed, or bounds for every input (`edge.stability.input_bounds`).

    Attributes:
        argument_max, sum_max: (H,) of |a| and sum a^2.
        partial_max: (H,) of the partial sums of K^T V; zeros for "q".
        factor_max: (2, H) of |k| and |v|; zeros for "q".
    """

    argument_max: Float64
    sum_max: Float64
    partial_max: Float64
    factor_max: Float64

    def scaled(self, exponents: Int64) -> Self:
        """The same after each factor, (1, H) for "q" or (2, H) for "kv", is multiplied by 2^-exponent."""
        total = exponents.sum(axis=0)
        return replace(
            self,
            argument_max=self.argument_max * np.exp2(-total),
            sum_max=self.sum_max * np.exp2(-2 * total),
            partial_max=self.partial_max * np.exp2(-total),
            factor_max=self.factor_max * np.exp2(-exponents) if len(exponents) == 2 else self.factor_max,
        )

    def of_all_heads(self) -> dict[str, float]:
        """The largest of all heads, by the names of `edge.stability.certificate.Quantity`."""
        argument = float(self.argument_max.max())
        k, v = (float(side.max()) for side in self.factor_max)
        total, partial = float(self.sum_max.max()), float(self.partial_max.max())
        return {"argument": argument, "square": argument**2, "sum": total, "partial": partial, "k": k, "v": v}


@dataclass(frozen=True)
class ObservedRanges(SiteMaxima):
    """Ranges over some images, per head.

    Attributes:
        vectors: how many per head.
        zero: (H,) vectors that were exactly zero: FP16 and FP32 treat them alike, so no minimum counts them.
        argument_min: (H,) smallest over nonzero vectors of the vector's largest |a|; inf when there were none.
        sum_min: (H,) smallest nonzero sum a^2; inf when there was none.
        exponents: int64 (H, bins): vectors by floor(log2(sum a^2)), from LOWEST_EXPONENT on, zero vectors left out.
    """

    vectors: int
    zero: Int64
    argument_min: Float64
    sum_min: Float64
    exponents: Int64

    def merge(self, other: ObservedRanges) -> ObservedRanges:
        """The ranges over the images of both."""
        return ObservedRanges(
            vectors=self.vectors + other.vectors,
            zero=self.zero + other.zero,
            argument_max=np.maximum(self.argument_max, other.argument_max),
            argument_min=np.minimum(self.argument_min, other.argument_min),
            sum_max=np.maximum(self.sum_max, other.sum_max),
            sum_min=np.minimum(self.sum_min, other.sum_min),
            exponents=self.exponents + other.exponents,
            partial_max=np.maximum(self.partial_max, other.partial_max),
            factor_max=np.maximum(self.factor_max, other.factor_max),
        )

    def scaled(self, exponents: Int64) -> Self:
        """The same images after each factor is multiplied by 2^-exponent."""
        total = exponents.sum(axis=0)
        return replace(
            super().scaled(exponents),
            argument_min=self.argument_min * np.exp2(-total),
            sum_min=self.sum_min * np.exp2(-2 * total),
            exponents=np.stack([np.roll(row, -2 * int(p)) for row, p in zip(self.exponents, total, strict=True)]),
        )

    def share_from(self, exponent: int) -> Float64:
        """(H,) share of the vectors with sum a^2 >= 2^exponent."""
        return np.asarray(self.exponents[:, self._bin(exponent) :].sum(axis=1) / max(self.vectors, 1))

    def share_below(self, exponent: int) -> Float64:
        """(H,) share of the vectors with 0 < sum a^2 < 2^exponent."""
        return np.asarray(self.exponents[:, : self._bin(exponent)].sum(axis=1) / max(self.vectors, 1))

    def _bin(self, exponent: int) -> int:
        bins = HIGHEST_EXPONENT - LOWEST_EXPONENT
        return min(max(exponent - LOWEST_EXPONENT, 0), bins)


def observe_vectors(a: npt.NDArray[np.float32], axis: int, partial_max: Float64, factor_max: Float64) -> ObservedRanges:
    """Ranges of one array a (B, H, M, D) whose vectors lie along `axis`, -1 or -2."""
    vectors = np.moveaxis(a, axis, -1)  # (B, H, M, D)
    largest = np.abs(a).max(axis=axis).astype(np.float64)  # (B, H, M)
    peak = np.where(largest > 0, largest, 1.0)
    unit = vectors / peak[..., None].astype(np.float32)  # squares of very small or large numbers would leave FP32
    sums = np.einsum("bhmd,bhmd->bhm", unit, unit).astype(np.float64) * peak**2 * (largest > 0)
    heads = a.shape[1]
    by_head = np.moveaxis(sums, 1, 0).reshape(heads, -1)  # (H, B * M)
    largest_by_head = np.moveaxis(largest, 1, 0).reshape(heads, -1)
    nonzero = by_head > 0
    bins = HIGHEST_EXPONENT - LOWEST_EXPONENT
    exponents = np.zeros((heads, bins), np.int64)
    for head in range(heads):
        _, e = np.frexp(by_head[head][nonzero[head]])  # x = m 2^e with 1/2 <= m < 1: floor(log2 x) = e - 1
        exponents[head] = np.bincount(np.clip(e - 1 - LOWEST_EXPONENT, 0, bins - 1), minlength=bins)
    return ObservedRanges(
        vectors=by_head.shape[1],
        zero=(~nonzero).sum(axis=1).astype(np.int64),
        argument_max=largest_by_head.max(axis=1),
        argument_min=np.where(nonzero, largest_by_head, np.inf).min(axis=1),
        sum_max=by_head.max(axis=1),
        sum_min=np.where(nonzero, by_head, np.inf).min(axis=1),
        exponents=exponents,
        partial_max=partial_max,
        factor_max=factor_max,
    )
