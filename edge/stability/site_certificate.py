"""One XNorm as a SiteCertificate: its ranges and verdicts, the errors of the emulated norm, what INT8 does to its vectors."""

import math
from dataclasses import dataclass

import numpy as np

from calib.calibrators import mse
from calib.histogram import Histogram
from calib.scales import QMAX
from edge.stability.certificate import Bits, HeadRanges, Int8Loss, Quantity, SiteCertificate
from edge.stability.finders.xnorm import XNormSite
from edge.stability.float_formats import BF16, FORMATS, FP16, Float32, FloatFormat
from edge.stability.fp16_ops import Accumulate, emulate_product, emulate_xnorm, exact_xnorm, relative_error
from edge.stability.measure_ranges import by_head
from edge.stability.power_of_two_folding import Fold
from edge.stability.trace_layers import SiteLayers
from edge.stability.verdict import Judgement, SiteCase, Stability, judge, worst

_ACCUMULATORS: dict[str, Accumulate] = {"": "storage", "/fp32": "fp32"}
"""Suffix of a format in SiteCertificate.errors -> where its sums are kept."""
INT8_RISKY_ERROR, INT8_BROKEN_ERROR = 0.1, 0.5
"""Direction error after the norm from which INT8 is at risk, and unstable; measured networks have about 0.01, and 1 is a vector
that became zero."""
INT8_DEAD_SHARE = 1e-3


@dataclass(frozen=True)
class SiteEvidence:
    """Errors of a site on the checked images, see the fields of these names in SiteCertificate."""

    errors: dict[str, float | None]
    int8: Int8Loss
    int8_in_front: Int8Loss


def gather_evidence(site: XNormSite, tensors: dict[str, Float32], formats: tuple[str, ...] = tuple(FORMATS)) -> SiteEvidence:
    """Evidence of one site, with the eps that it has in the graph, on a batch of its argument and the factors of "kv"."""
    arrays, (axis, *_) = zip(*(by_head(tensors[name], site.axis) for name in (site.factors or (site.argument,))), strict=True)
    wide = [x.astype(np.float64) for x in arrays]
    argument = wide[0] if site.operand == "q" else wide[0] @ wide[1]
    exact = exact_xnorm(argument, axis, site.eps)
    errors = {}
    for name in formats:
        for suffix, accumulate in _ACCUMULATORS.items():
            a = arrays[0] if site.operand == "q" else emulate_product(arrays[0], arrays[1], FORMATS[name], accumulate)
            emulated = emulate_xnorm(a, axis, FORMATS[name], accumulate, site.eps)
            errors[f"{name}{suffix}"] = _finite(relative_error(emulated, exact))
    unit = exact.astype(np.float32)
    return SiteEvidence(errors, int8_loss(unit, unit, axis), int8_loss(argument.astype(np.float32), unit, axis))


def int8_loss(tensor: Float32, unit: Float32, axis: int) -> Int8Loss:
    """Errors that symmetric INT8 with one scale for `tensor` causes in its vectors along `axis`, of the directions of `unit`.

    The scale comes from the least squared error, as in a build, and is no larger than max |x| / 127.
    """
    histogram = Histogram("vectors")
    histogram.update(tensor)
    if histogram.amax == 0:
        return Int8Loss(0.0, 0.0, 0.0)
    amax = mse(histogram)
    codes = np.clip(np.rint(tensor * (QMAX / amax)), -QMAX, QMAX)
    alive = np.abs(tensor).max(axis=axis) > 0
    length = np.linalg.norm(codes, axis=axis, keepdims=True)
    moved = np.divide(codes, length, out=np.zeros_like(codes), where=length > 0)
    flat = np.linalg.norm(unit, axis=axis, keepdims=True)  # below 1 where an eps was felt
    direction = np.divide(unit, flat, out=np.zeros_like(unit), where=flat > 0)
    error = np.linalg.norm(moved - direction, axis=axis)
    dead = length.squeeze(axis) == 0
    count = max(int(alive.sum()), 1)
    return Int8Loss(
        dead_fraction=float((dead & alive).sum() / count),
        direction_error=float(error[alive].sum() / count),
        clipped_fraction=float((np.abs(tensor) > amax * (1 + 0.5 / QMAX)).mean()),
    )


def judge_int8(loss: Int8Loss) -> Judgement:
    """The verdict on INT8 after the norm."""
    figures = f"{loss.dead_fraction:.2%} dead vectors, direction error {loss.direction_error:.3f}"
    if loss.dead_fraction >= INT8_DEAD_SHARE or loss.direction_error >= INT8_BROKEN_ERROR:
        return Judgement("unstable", "observed", f"INT8 after the norm: {figures}")
    at_risk = loss.dead_fraction > 0 or loss.direction_error >= INT8_RISKY_ERROR
    return Judgement("at risk" if at_risk else "stable", "observed", figures)


def certify_site(case: SiteCase, fold: Fold, traced: SiteLayers, evidence: SiteEvidence) -> SiteCertificate:
    """Combine everything that was measured and proven of a site; `case` holds its ranges as folded."""
    observed, site = case.observed, case.site
    verdicts = {"fp16": judge(case, FP16), "bf16": judge(case, BF16), "int8": judge_int8(evidence.int8)}
    quantities = {quantity.name: quantity for quantity in _quantities(case)}
    in_fp16 = [q.fp16 for q in quantities.values()]
    left = [bits.headroom if bits.certified_headroom is None else bits.certified_headroom for bits in in_fp16]
    argument, total = quantities["argument"], quantities["sum"]
    eps = min(site.eps, key=lambda e: e.on_norm, default=None)
    return SiteCertificate(
        name=site.name,
        operand=site.operand,
        axis=site.axis,
        heads=len(observed.zero),
        dim=case.dim,
        tokens=traced.tokens,
        vectors=observed.vectors * len(observed.zero),
        zero_vectors=int(observed.zero.sum()),
        eps=None if eps is None else eps.on_norm,
        eps_kind="none" if eps is None else eps.kind,
        max_abs=argument.observed_max,
        sum_sq_max=total.observed_max,
        sum_sq_min=total.observed_min,
        bound_max_abs=argument.certified_max,
        bound_sum_sq=total.certified_max,
        output_bound=case.output_bound,
        fp16_headroom_bits=min(bits for bits in left if bits is not None),
        fp16_floor_bits=total.fp16.floor,
        quantities=tuple(quantities.values()),
        by_head=HeadRanges(
            max_abs=tuple(observed.argument_max.tolist()),
            sum_sq_min=tuple(map(_finite, observed.sum_min.tolist())),
            sum_sq_max=tuple(observed.sum_max.tolist()),
            bound_sum_sq=tuple(case.certified.sum_max.tolist() if case.certified else [None] * len(observed.zero)),
        ),
        fold_exponent=max(fold.exponents.sum(axis=0).tolist(), key=abs, default=0),
        fold={
            layer.weight: tuple(row.tolist()) for layer, row in zip(traced.layers, fold.exponents, strict=False) if row.any()
        },
        island=case.island,
        verdicts=verdicts,
        verdict=worst([j.verdict for j in verdicts.values()]),
        errors=evidence.errors,
        int8_dead_fraction=evidence.int8.dead_fraction,
        int8_direction_error=evidence.int8.direction_error,
        int8_clipped_fraction=evidence.int8.clipped_fraction,
        int8_in_front=evidence.int8_in_front,
    )


def network_verdict(sites: tuple[SiteCertificate, ...], precisions: tuple[str, ...]) -> Stability:
    """The worst verdict of any site in any of these precisions."""
    return worst([site.verdicts[name].verdict for site in sites for name in precisions])


def _quantities(case: SiteCase) -> tuple[Quantity, ...]:
    low, tops = float(case.observed.argument_min.min()), case.observed.of_all_heads()
    bounds = {} if case.certified is None else case.certified.of_all_heads()
    minima = {"argument": low, "square": low**2, "sum": float(case.observed.sum_min.min())}
    if case.site.operand == "kv":
        minima |= {"partial": low, "k": np.inf, "v": np.inf}
    quantities = []
    for name, low in minima.items():
        top, bound = tops[name], bounds.get(name)
        fp16, bf16 = (_bits(top, low, bound, fmt) for fmt in (FP16, BF16))
        quantities.append(Quantity(name, top, _finite(low), bound, fp16, bf16))
    return tuple(quantities)


def _bits(top: float, bottom: float, bound: float | None, fmt: FloatFormat) -> Bits:
    return Bits(
        headroom=_finite(fmt.headroom_bits(top)),
        certified_headroom=None if bound is None else _finite(fmt.headroom_bits(bound)),
        floor=_finite(fmt.floor_bits(bottom)),
        subnormal_floor=_finite(fmt.floor_bits(bottom, subnormal=True)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
