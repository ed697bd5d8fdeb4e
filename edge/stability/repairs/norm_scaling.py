"""Move a norm to where FP16 holds it: 2^-p times what it reads, eps along with it (`homogeneity`), exact for every input.

The factor goes into the weights that compute what the norm reads, at no cost, where it is their only reader and FP16 still
holds them; else into one Mul before the norm. p is the middle of the powers with the best verdict, as far from
overflow as from underflow.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from calib.errors import InputError, VerdictError
from calib.graph_editor import GraphEditor
from edge.stability.float_formats import FP16
from edge.stability.instrumented_graph import OVERFLOW, VANISHING
from edge.stability.network_cases import NetworkFacts, SiteKey
from edge.stability.network_certificate import Repair
from edge.stability.power_of_two_folding import SMALLEST_WEIGHT_RMS, times_exactly
from edge.stability.repairs.homogeneity import degree_of_eps, degrees
from edge.stability.repairs.producing_weights import producing_weights
from edge.stability.site import Observed, Probe, Site
from edge.stability.site_verdict import NetworkCase, judge_site
from edge.stability.verdict import STABILITIES, UNCERTIFIED_MARGIN_BITS

SCALABLE = ("layer_norm", "rms_norm", "instance_norm", "group_norm", "l2_norm", "response_norm")
LARGEST_EXPONENT = 14
"""2^-14 is the smallest normal number of FP16, in which a Mul holds the factor."""
_ORDER = {"square": 2, "sum of squares": 2, "squared deviation": 2, "sum of squared deviations": 2}
_SUFFIX = "scaled"
_SMALLEST_COMPARED = 2.0**-100
"""The terms of a smaller sum may be subnormal in FP32, where a power of two takes digits away."""


@dataclass(frozen=True)
class _Plan:
    site: Site
    exponent: int
    known: Mapping[str, float]


def scale_norms(facts: NetworkFacts) -> tuple[onnx.ModelProto, dict[SiteKey, Repair]]:
    """The graph with every norm scaled whose verdict in FP16 that makes better, and what was done, by kind and name.

    The graph itself where there is none.
    """
    plans = [plan for site in facts.sites if site.kind in SCALABLE if (plan := _plan(facts, site)) is not None]
    if not plans:
        return facts.model, {}
    editor = GraphEditor(facts.model)
    repairs = {(plan.site.kind, plan.site.name): _scale(editor, facts, plan) for plan in plans}
    return editor.finish(), repairs


def _plan(facts: NetworkFacts, site: Site) -> _Plan | None:
    """The middle of the powers of two with the best verdict, if that is better than none."""
    case = facts.case(site)
    as_it_is = STABILITIES.index(judge_site(case, FP16).verdict)
    known = degrees(facts.index, site) if as_it_is else None
    if known is None or known.get(site.output) != 0:
        return None
    powers = [p for p in range(-LARGEST_EXPONENT, LARGEST_EXPONENT + 1) if p and _is_exact(known, p) and _fits(facts, site, p)]
    verdicts = [STABILITIES.index(judge_site(_scaled(facts, case, known, p), FP16).verdict) for p in powers]
    best = min(verdicts, default=as_it_is)
    equal = [p for p, verdict in zip(powers, verdicts, strict=True) if verdict == best]
    return _Plan(site, equal[len(equal) // 2], known) if best < as_it_is else None


def _is_exact(known: Mapping[str, float], power: int) -> bool:
    """Whether every tensor of the norm is multiplied by a power of two: not so of the root of a norm, for odd ones."""
    return all(float(power * degree).is_integer() for degree in known.values())


def _fits(facts: NetworkFacts, site: Site, power: int) -> bool:
    """Whether FP16 holds what the norm would read."""
    seen = facts.observed.get(Probe("value", (site.reads,))) or _largest(facts, site.reads)
    return power > 0 or seen is None or FP16.headroom_bits(math.ldexp(seen.maximum, -power)) >= UNCERTIFIED_MARGIN_BITS


def _largest(facts: NetworkFacts, tensor: str) -> Observed | None:
    return next((seen for probe, seen in facts.observed.items() if probe.stored and probe.tensors == (tensor,)), None)


def _scaled(facts: NetworkFacts, case: NetworkCase, known: Mapping[str, float], power: int) -> NetworkCase:
    """What is to be expected of a site once it reads 2^-power times as much."""
    factors = {eps.tensor: -power * degree_of_eps(facts.index, eps, known) for eps in case.site.eps}
    eps = tuple(replace(item, value=math.ldexp(item.value, int(factors[item.tensor]))) for item in case.site.eps)
    shifts = {
        probe: factors.get(probe.tensors[0], -power * known.get(probe.tensors[0], 0.0)) * _ORDER.get(probe.quantity, 1)
        for probe in case.site.probes
    }
    return replace(
        case,
        site=replace(case.site, eps=eps),
        observed={probe: _shifted(case.observed[probe], round(by)) for probe, by in shifts.items()},
        certified={p: None if (top := case.certified[p]) is None else math.ldexp(top, round(by)) for p, by in shifts.items()},
    )


def _shifted(seen: Observed, by: int) -> Observed:
    maximum, minimum = math.ldexp(seen.maximum, by), math.ldexp(seen.minimum, by)
    vanishing = 0 if minimum > VANISHING else seen.vanishing if by >= 0 else seen.count - seen.zeros
    overflowing = 0 if maximum < OVERFLOW else seen.overflowing if by <= 0 else seen.count
    return replace(seen, maximum=maximum, minimum=minimum, vanishing=vanishing, overflowing=overflowing)


def check_scaled_ranges(before: NetworkFacts, after: NetworkFacts, repairs: Mapping[SiteKey, Repair]) -> None:
    """Compare the ranges of every scaled norm, observed before and after, over the same images.

    Raises VerdictError where they are not the same times powers of two, to the last bit; FP32 itself loses digits of what falls
    below _SMALLEST_COMPARED. Minima are compared of what something divides by: others are not observed on all images.
    """
    now = {(site.kind, site.name): site for site in after.sites}
    for site in before.sites:
        repair = repairs.get((site.kind, site.name))
        known = degrees(before.index, site) if repair is not None else None
        if repair is None or known is None:
            continue
        expected = _scaled(before, before.case(site), known, repair.exponent).observed
        names = _names_after(site, now.get((site.kind, site.name), site))
        for probe in site.probes:
            seen = after.observed.get(replace(probe, tensors=tuple(names.get(name, name) for name in probe.tensors)))
            if seen is None or not _are_alike(seen, expected[probe], minima=probe.divides):
                raise VerdictError(
                    "a norm does not move as its scaling says",
                    where=site.name,
                    found=f"{probe.quantity} of {', '.join(probe.tensors)}: {_range_text(seen)}",
                    allowed=_range_text(expected[probe]),
                    next_command="report it with the graph; build with precision fp32 meanwhile",
                )


def _names_after(before: Site, after: Site) -> dict[str, str]:
    """Name of what a norm reads, and of the constants of its eps -> that after the repair."""
    eps = {old.tensor: new.tensor for old, new in zip(before.eps, after.eps, strict=True) if old.tensor}
    return {before.reads: after.reads, **eps}


def _are_alike(seen: Observed, expected: Observed, *, minima: bool) -> bool:
    pairs = [(seen.maximum, expected.maximum), *([(seen.minimum, expected.minimum)] if minima else [])]
    return all(one == other or max(one, other) < _SMALLEST_COMPARED for one, other in pairs)


def _range_text(seen: Observed | None) -> str:
    return "not observed" if seen is None else f"{seen.minimum:.9g} to {seen.maximum:.9g}"


def _scale(editor: GraphEditor, facts: NetworkFacts, plan: _Plan) -> Repair:
    """Carry out a plan."""
    site, factor = plan.site, np.float32(2.0**-plan.exponent)
    for eps in site.eps:
        _scale_eps(editor, eps.node, eps.tensor, -plan.exponent * degree_of_eps(facts.index, eps, plan.known))
    readers = [name for name in site.nodes if site.reads in facts.index.nodes[name].input]
    weights = producing_weights(editor, site.reads, readers)
    if weights is not None and all(_holds(editor, place, factor) for place in weights):
        for node, at in weights:
            editor.set_constant(node, at, editor.constant(node, at) * factor, _SUFFIX)
        return Repair(site.name, "scaled in the weights", plan.exponent, tuple(dict.fromkeys(node for node, _ in weights)))
    output = editor.new_name(f"{site.reads}/{_SUFFIX}")
    constant = editor.add_constant(f"{output}/factor", np.array(factor, np.float32))
    name = editor.new_name(f"{site.name}/{_SUFFIX}")
    editor.insert_after(site.reads, helper.make_node("Mul", [site.reads, constant], [output], name=name))
    for reader in readers:
        node = editor.node(reader)
        node.input[:] = [output if tensor == site.reads else tensor for tensor in node.input]
    return Repair(site.name, "scaled by a Mul", plan.exponent, (name,))


def _holds(editor: GraphEditor, place: tuple[str, int], factor: np.float32) -> bool:
    """Whether FP32 keeps every digit of a constant, and FP16 as many of a weight as before."""
    values = editor.constant(*place)
    try:
        scaled = times_exactly(values, np.full(1, factor), place[0])
    except InputError:
        return False
    magnitude = np.abs(scaled.astype(np.float64))
    rms = float(np.sqrt((magnitude**2).mean())) if values.ndim > 1 else 1.0
    shrinks = factor < 1 and 0 < rms < SMALLEST_WEIGHT_RMS
    return not shrinks and bool(magnitude.max(initial=0) <= FP16.largest)


def _scale_eps(editor: GraphEditor, name: str, tensor: str, power: float) -> None:
    """Multiply an eps by 2^power: a constant, or an attribute of its node."""
    node, factor = editor.node(name), np.float32(2.0**power)
    if tensor:
        at = editor.position(name, tensor)
        editor.set_constant(name, at, editor.constant(name, at) * factor, _SUFFIX)
        return
    key, default = ("min", 0.0) if node.op_type == "Clip" else ("epsilon", 1e-5)
    found: Iterable[onnx.AttributeProto] = [item for item in node.attribute if item.name == key]
    value = next((item.f for item in found), default)
    kept = [item for item in node.attribute if item.name != key]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(key, float(np.float32(value) * factor))])
