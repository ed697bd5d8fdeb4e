"""The verdict per site and precision, from its ranges.

A site computes a -> sum a^2 -> norm -> a / norm in a 16-bit format, sums included: no runtime promises better. Per head,

    unstable   a tensor that is stored overflows on these images (infinity / infinity is NaN), or at least LOST_SHARE of
               the vectors are lost: their sum overflows (a / infinity is 0), or falls below half a subnormal number, so
               that every square is zero, though no clamp had decided in FP32 already; or a zero vector meets an eps that
               the format cannot hold (0 / 0)
    at risk    fewer vectors are lost; or a certified maximum comes within MARGIN_BITS of the largest number (where nothing is
               certified: an observed one within UNCERTIFIED_MARGIN_BITS); or an observed sum falls below the floor; or the
               eps vanishes in the format (where there is none, FP32 divides zero by zero alike)
    stable     otherwise

The floor: every a_i^2 below the smallest normal number is rounded to a multiple of the smallest subnormal s, an error of at
most s / 2. Over d terms the norm is off by at most d s / 4 relative to sum a^2, which stays below half a unit in the last
place, 2^-t with t significant bits, as long as sum a^2 >= d s 2^(t - 2). FP16: d 2^-15.

An FP32 island takes the sums out of the format: what is left is what is stored on its edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge.stability.float_formats import FloatFormat
from edge.stability.observed_ranges import Float64, ObservedRanges, SiteMaxima

if TYPE_CHECKING:
    from edge.stability.finders.xnorm import XNormSite

Stability = Literal["stable", "at risk", "unstable"]
RestsOn = Literal["certified", "observed"]
STABILITIES: tuple[Stability, ...] = ("stable", "at risk", "unstable")
"""From best to worst."""

MARGIN_BITS = 1.0
"""Headroom that a certified maximum keeps: quantized weights and inputs move values by a few percent, not by a factor of 2."""
UNCERTIFIED_MARGIN_BITS = 4.0
"""Headroom that an observed maximum keeps where nothing is certified: other images may reach further."""
LOST_SHARE = 1e-3
"""Share of a head's vectors from which their loss is called unstable. Fewer hardly change an accuracy; such a site is at risk,
and repaired like an unstable one."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on one site in one precision, what it rests on, and why, in one sentence."""

    verdict: Stability
    rests_on: RestsOn
    reason: str


@dataclass(frozen=True)
class SiteCase:
    """One site with the ranges of its values.

    Attributes:
        site: where.
        dim: length d of its vectors.
        observed: over the images.
        certified: for every input, None where nothing is certified.
        island: whether the site computes in FP32.
        output_bound: proven bound on what follows from the normalised vectors alone: gamma a / ||a||, the attention's output.
    """

    site: XNormSite
    dim: int
    observed: ObservedRanges
    certified: SiteMaxima | None
    island: bool = False
    output_bound: float = 1.0

    @property
    def expected(self) -> SiteMaxima:
        """The maxima to reckon with: certified, or observed."""
        return self.observed if self.certified is None else self.certified

    @property
    def margin_bits(self) -> float:
        """Headroom that these maxima keep."""
        return UNCERTIFIED_MARGIN_BITS if self.certified is None else MARGIN_BITS


def worst(verdicts: list[Stability]) -> Stability:
    """The worst of some verdicts; "stable" for none."""
    return max(verdicts, key=STABILITIES.index, default="stable")


def floor_of_sum(dim: int, fmt: FloatFormat) -> float:
    """Smallest sum of `dim` squares whose norm is correct in the format to half a unit in the last place."""
    return float(dim * fmt.smallest_subnormal * 2.0 ** (fmt.significant_bits - 2))


def judge(case: SiteCase, fmt: FloatFormat) -> Judgement:
    """The verdict on a site in a 16-bit format; see the module's docstring."""
    if problem := next(chain(_failures(case, fmt), _risks(case, fmt)), None):
        return problem
    left = fmt.headroom_bits(max(expected for _observed, expected in _maxima(case).values()))
    no_eps = "" if case.site.eps else "; without an eps a zero vector gives 0 / 0, in FP32 too"
    if case.certified is None:
        return Judgement("stable", "observed", f"{left:.1f} bits left{no_eps}")
    return Judgement("stable", "certified", f"{left:.1f} bits below overflow for every input{no_eps}")


def _maxima(case: SiteCase) -> dict[str, tuple[float, float]]:
    """Quantity -> (observed maximum, maximum to expect) of everything that the format has to hold."""
    observed, expected = case.observed.of_all_heads(), case.expected.of_all_heads()
    names = {"argument": "a", "sum": "sum a^2", "k": "k", "v": "v", "partial": "partial sums of K^T V"}
    held = ["argument", "sum"] if case.site.operand == "q" else [*names]
    if case.island:
        held = ["argument"] if case.site.operand == "q" else ["k", "v"]  # K^T V belongs to the island
    maxima = {names[quantity]: (observed[quantity], expected[quantity]) for quantity in held}
    return {**maxima, "gamma a / ||a||": (case.output_bound, case.output_bound)}


def _failures(case: SiteCase, fmt: FloatFormat) -> Iterator[Judgement]:
    overflow = fmt.largest * (1 + 2.0 ** -(fmt.significant_bits + 1))  # rounds to infinity from here on
    for name, (top, _expected) in _maxima(case).items():
        if name in ("a", "k", "v", "gamma a / ||a||") and top >= overflow:
            yield Judgement("unstable", "observed", f"{name} reaches {top:.3g} and overflows")
    if case.island:
        return
    over = case.observed.share_from(round(math.log2(fmt.largest)))
    under = case.observed.share_below(round(math.log2(fmt.smallest_subnormal / 2))) - _clamped_share(case, fmt)
    for share, what in ((over, "overflows"), (under, "vanishes")):
        if share.max() >= LOST_SHARE:
            text = f"sum a^2 {what} in {share.max():.1%} of the vectors of head {int(share.argmax())}"
            yield Judgement("unstable", "observed", text)
    if case.observed.zero.any() and (eps := _lost_eps(case.site, fmt)):
        yield Judgement("unstable", "observed", f"{eps}, and zero vectors occur: 0 / 0")


def _risks(case: SiteCase, fmt: FloatFormat) -> Iterator[Judgement]:
    basis: RestsOn = "observed" if case.certified is None else "certified"
    margin, source = case.margin_bits, "another image" if case.certified is None else "some input"
    for name, (observed, expected) in _maxima(case).items():
        if observed > fmt.largest:
            yield Judgement("at risk", "observed", f"{name} reaches {observed:.3g} and overflows")
        elif fmt.headroom_bits(expected) < margin:
            bits = f"{margin:g} bit{'s' * (margin != 1)}"
            text = f"{source} may bring {name} to {expected:.3g}, less than {bits} below overflow"
            yield Judgement("at risk", basis, text)
    if not case.island:
        lowest, floor = float(case.observed.sum_min.min()), floor_of_sum(case.dim, fmt)
        if lowest < floor:
            text = f"sum a^2 falls to {lowest:.3g}, and below {floor:.3g} its squares lose digits"
            yield Judgement("at risk", "observed", text)
        if case.site.eps and (eps := _lost_eps(case.site, fmt)):
            yield Judgement("at risk", "observed", f"{eps}: a zero vector would give 0 / 0")


def _clamped_share(case: SiteCase, fmt: FloatFormat) -> Float64:
    """(H,) share of the vectors shorter than an eps that the format holds: they are a / eps, in FP32 and in the format."""
    clamps = [e.on_norm for e in case.site.eps if e.kind == "clamp" and float(fmt.round(np.float32(e.value))) > 0]
    if not clamps:
        return np.zeros(len(case.observed.zero))
    vanishing = round(math.log2(fmt.smallest_subnormal / 2))
    return case.observed.share_below(min(math.floor(2 * math.log2(max(clamps))), vanishing))


def _lost_eps(site: XNormSite, fmt: FloatFormat) -> str:
    """In words, that every eps of the site rounds to zero in the format; empty where one does not."""
    if any(float(fmt.round(np.float32(eps.value))) > 0 for eps in site.eps):
        return ""
    return f"eps {site.eps[0].value:g} is zero in {fmt.name}" if site.eps else f"a missing eps is zero in {fmt.name}"


def reckoned_sum(case: SiteCase) -> Float64:
    """(H,) the largest sum a^2 to expect, with its margin."""
    return np.asarray(case.expected.sum_max * 2.0**case.margin_bits)
