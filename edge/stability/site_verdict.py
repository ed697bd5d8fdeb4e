"""The verdict on a site of any kind in a 16-bit format, from what was observed and what is certified.

    unstable   a stored tensor overflows on these images; or at least LOST_SHARE of what an operator adds up inside, in 16 bits,
               overflow, or of what something divides by vanish; or a zero meets an eps that the format cannot hold (0 / 0)
    at risk    fewer are lost; or neither a certified maximum keeps MARGIN_BITS of headroom nor an observed one
               UNCERTIFIED_MARGIN_BITS; or what something divides by falls below the floor; or an eps, or a whole constant,
               vanishes
    stable     otherwise

What is inside an operator of which the target does not tell whether it widens it makes a site at risk at most.
A bound that does not fit the format proves nothing: bounds grow with depth, and then the observation decides. Where an eps that
the format holds is larger than what vanishes beside it, nothing is lost. The floor is that of `edge.stability.verdict`.

Inside an FP32 island nothing is stored but its result. BF16 has the range of FP32: only what overflows there can overflow.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge.stability.float_formats import FP16, FloatFormat
from edge.stability.site import Eps, Observed, Probe, Site
from edge.stability.target_precisions import Precision
from edge.stability.verdict import LOST_SHARE, MARGIN_BITS, STABILITIES, UNCERTIFIED_MARGIN_BITS, Judgement, floor_of_sum

_WITH_INNER_TENSORS = (
    "xnorm", "l2_norm", "layer_norm", "rms_norm", "instance_norm", "group_norm", "response_norm", "variance", "softmax",
    "reciprocal",
)  # fmt: skip
_SUMS_OF_SQUARES = ("sum of squares", "sum of squared deviations")
_IN_WORDS = {
    "square": "the square of {0}",
    "sum": "the sum over {0}",
    "sum of squares": "the sum of squares of {0}",
    "deviation": "the deviation of {0} from its mean",
    "squared deviation": "the squared deviation of {0} from its mean",
    "sum of squared deviations": "the sum of squared deviations of {0}",
    "partial sum": "a partial sum of {0} times {1}",
}


@dataclass(frozen=True)
class NetworkCase:
    """A site with what is known of its probes.

    Attributes:
        site: where.
        observed: over the images, of every probe.
        certified: a bound for every input; None, or no entry, where nothing is proven.
        precision: in which the target computes what is inside the operators of the site, as far as it tells.
        island: whether the nodes of the site compute in FP32.
    """

    site: Site
    observed: Mapping[Probe, Observed]
    certified: Mapping[Probe, float | None]
    precision: Precision = "fp16"
    island: bool = False

    @property
    def held(self) -> tuple[Probe, ...]:
        """The probes of what 16 bits have to hold: of an island what leaves it, of one around a constant nothing."""
        if not self.island:
            return tuple(p for p in self.site.probes if p.stored or self.precision != "fp32")
        if self.site.kind == "constant":
            return ()
        inside = self.site.kind in _WITH_INNER_TENSORS
        return tuple(p for p in self.site.probes if p.stored and (not inside or p.tensors == (self.site.output,)))


def judge_site(case: NetworkCase, fmt: FloatFormat) -> Judgement:
    """The verdict on a site in a 16-bit format; see the module's docstring."""
    problems = [*_failures(case, fmt), *_risks(case, fmt)]
    if problems:
        return max(problems, key=lambda problem: STABILITIES.index(problem.verdict))  # of equal ones the first
    left = {p: headroom_of(case, p, fmt) for p in case.held if p.saturates != "both"}
    certified = all(rests_on == "certified" for _, rests_on in left.values())
    bits = min((bits for bits, _ in left.values()), default=math.inf)
    if math.isinf(bits):
        return Judgement("stable", "certified", "nothing that 16 bits have to hold can overflow")
    text = "bits below overflow for every input" if certified else "bits left"
    norm = any(probe.divides for probe in case.held) and case.site.kind in ("xnorm", "l2_norm", "layer_norm", "rms_norm")
    no_eps = "; without an eps a zero gives 0 / 0, in FP32 too" if norm and not case.site.eps else ""
    digits = "" if fmt == FP16 else f", with {fmt.significant_bits} significant bits"
    return Judgement("stable", "certified" if certified else "observed", f"{bits:.1f} {text}{digits}{no_eps}")


def describe(probe: Probe) -> str:
    """A probe in words, such as "the sum of squares of x"."""
    return _IN_WORDS.get(probe.quantity, "{0}").format(*probe.tensors)


def headroom_of(case: NetworkCase, probe: Probe, fmt: FloatFormat) -> tuple[float, Literal["certified", "observed"]]:
    """Doublings left before overflow: proven ones where they suffice, else observed ones."""
    observed, bound = case.observed[probe].maximum, case.certified.get(probe)
    if case.site.kind == "constant" or set(probe.tensors) <= {item.tensor for item in case.site.eps}:
        return fmt.headroom_bits(observed), "certified"
    if bound is not None and fmt.headroom_bits(max(bound, observed)) >= MARGIN_BITS:
        return fmt.headroom_bits(max(bound, observed)), "certified"
    return fmt.headroom_bits(observed), "observed"


def _failures(case: NetworkCase, fmt: FloatFormat) -> Iterator[Judgement]:
    overflow = fmt.largest * (1 + 2.0 ** -(fmt.significant_bits + 1))  # rounds to infinity from here on
    for probe in case.held:
        seen, what = case.observed[probe], describe(probe)
        if probe.stored and probe.saturates != "both" and seen.maximum >= overflow:
            yield Judgement("unstable", "observed", f"{what} reaches {seen.maximum:.3g} and overflows")
        if fmt != FP16:
            continue
        for lost, verb in ((0 if probe.stored else seen.overflowing, "overflows"), (_vanishing(case, probe), "vanishes")):
            if lost >= LOST_SHARE * max(seen.count, 1):
                text = f"{what} {verb} in {lost / seen.count:.1%} of the cases"
                told = probe.stored or case.precision == "fp16"
                where = "" if told else f" where a target computes {case.site.op_type} in FP16"
                yield Judgement("unstable" if told else "at risk", "observed", text + where)
    zeros = any(case.observed[probe].zeros for probe in case.held if probe.divides)
    if zeros and (eps := _lost_eps(case, fmt)):
        yield Judgement("unstable", "observed", f"{eps}, and zeros occur: 0 / 0")


def _vanishing(case: NetworkCase, probe: Probe) -> float:
    """How many vanish of what something divides by, 1 or more; nan, which compares false, where none is lost."""
    lost = case.observed[probe].vanishing
    harmless = not probe.divides or _largest_eps(case, probe) >= FP16.smallest_subnormal / 2
    return math.nan if harmless or not lost else lost


def _risks(case: NetworkCase, fmt: FloatFormat) -> Iterator[Judgement]:
    for probe in case.held:
        seen, what = case.observed[probe], describe(probe)
        bits, rests_on = headroom_of(case, probe, fmt)
        if probe.saturates != "both" and rests_on == "observed":
            if seen.maximum > fmt.largest:
                yield Judgement("at risk", "observed", f"{what} reaches {seen.maximum:.3g} and may overflow")
            elif bits < UNCERTIFIED_MARGIN_BITS:
                text = f"another image may bring {what} above {seen.maximum:.3g}, {bits:.1f} bits below overflow"
                yield Judgement("at risk", "observed", text)
        if fmt == FP16 and not math.isnan(lost := _vanishing(case, probe)):
            yield Judgement("at risk", "observed", f"{what} vanishes in {lost:g} of {seen.count} cases")
        elif probe.divides and (floor := _floor(case, probe, fmt)) > max(seen.minimum, _largest_eps(case, probe)):
            text = f"{what} falls to {seen.minimum:.3g}, and below {floor:.3g} it loses digits"
            yield Judgement("at risk", "observed", text)
        if not case.site.eps and 0 < seen.maximum <= fmt.smallest_subnormal / 2:
            yield Judgement("at risk", "observed", f"{what} is zero in {fmt.name}: its largest number is {seen.maximum:.3g}")
    if text := _lost_eps(case, fmt):
        yield Judgement("at risk", "observed", f"{text}: a zero would give 0 / 0")


def _floor(case: NetworkCase, probe: Probe, fmt: FloatFormat) -> float:
    """Below it a quantity loses digits: a sum of squares as the XNorms' floor has it, anything else below normal numbers."""
    squares = next((p for p in case.site.probes if p.quantity in ("square", "squared deviation")), None)
    if probe.quantity in _SUMS_OF_SQUARES and squares is not None:
        terms = case.observed[squares].count // max(case.observed[probe].count, 1)
        return floor_of_sum(max(terms, 1), fmt)
    return fmt.smallest_normal


def _largest_eps(case: NetworkCase, probe: Probe) -> float:
    """The largest eps that the format holds, in the unit of a probe: of a norm, or of a sum or mean of squares."""
    norm = probe.stored and case.site.op_type == "ReduceL2"
    held = [eps for eps in case.site.eps if not _is_lost(case, eps, FP16)]
    return max((eps.on_norm if norm else eps.on_norm**2 for eps in held), default=0.0)


def _lost_eps(case: NetworkCase, fmt: FloatFormat) -> str:
    """In words, that every eps of the site rounds to zero in the format; empty where one does not, or there is none."""
    if case.island or not all(_is_lost(case, eps, fmt) for eps in case.site.eps):
        return ""
    return f"eps {case.site.eps[0].value:g} is zero in {fmt.name}" if case.site.eps else ""


def _is_lost(case: NetworkCase, eps: Eps, fmt: FloatFormat) -> bool:
    """Whether an eps rounds to zero; as an attribute it has the type in which the target computes the operator."""
    if not eps.tensor and case.precision == "fp32":
        return False
    return float(fmt.round(np.float32(eps.value))) == 0
