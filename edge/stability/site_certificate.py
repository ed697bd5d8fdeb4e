"""Ranges, evidence and verdicts of one XNorm as a SiteCertificate."""

from __future__ import annotations

import math

import numpy as np

from edge.stability.certificate import Bits, HeadRanges, Int8Loss, Quantity, SiteCertificate
from edge.stability.float_formats import BF16, FP16, FloatFormat
from edge.stability.site_evidence import SiteEvidence
from edge.stability.verdict import Judgement, SiteCase, Stability, judge, worst

INT8_RISKY_ERROR, INT8_BROKEN_ERROR = 0.1, 0.5
"""Direction error after the norm from which INT8 is at risk, and unstable; measured networks have about 0.01, and 1 is a vector
that became zero."""
INT8_DEAD_SHARE = 1e-3


def judge_int8(loss: Int8Loss) -> Judgement:
    """The verdict on INT8 after the norm."""
    figures = f"{loss.dead_fraction:.2%} dead vectors, direction error {loss.direction_error:.3f}"
    if loss.dead_fraction >= INT8_DEAD_SHARE or loss.direction_error >= INT8_BROKEN_ERROR:
        return Judgement("unstable", "observed", f"INT8 after the norm: {figures}")
    at_risk = loss.dead_fraction > 0 or loss.direction_error >= INT8_RISKY_ERROR
    return Judgement("at risk" if at_risk else "stable", "observed", figures)


def certify_site(
    case: SiteCase, tokens: int, fold: dict[str, tuple[int, ...]], total: tuple[int, ...], evidence: SiteEvidence
) -> SiteCertificate:
    """Combine everything that was measured and proven of a site.

    Args:
        case: its ranges, as folded.
        tokens: N of K^T V, 0 for "q".
        fold: weight -> exponents by head.
        total: p by head.
        evidence: from the checked images.
    """
    observed, certified, site = case.observed, case.certified, case.site
    verdicts = {"fp16": judge(case, FP16), "bf16": judge(case, BF16), "int8": judge_int8(evidence.int8)}
    quantities = _quantities(case)
    top = [q.fp16.headroom if q.fp16.certified_headroom is None else q.fp16.certified_headroom for q in quantities]
    sum_min = float(observed.sum_min.min())
    eps = min(site.eps, key=lambda e: e.on_norm) if site.eps else None
    bounds = [None] * len(observed.sum_max) if certified is None else [float(v) for v in certified.sum]
    return SiteCertificate(
        name=site.name,
        operand=site.operand,
        axis=site.axis,
        heads=len(observed.zero),
        dim=case.dim,
        tokens=tokens,
        vectors=observed.vectors * len(observed.zero),
        zero_vectors=int(observed.zero.sum()),
        eps=None if eps is None else eps.on_norm,
        eps_kind="none" if eps is None else eps.kind,
        max_abs=float(observed.argument_max.max()),
        sum_sq_max=float(observed.sum_max.max()),
        sum_sq_min=_finite(sum_min),
        bound_max_abs=case.certified_max("argument"),
        bound_sum_sq=case.certified_max("sum"),
        output_bound=case.output_bound,
        fp16_headroom_bits=min(t for t in top if t is not None),
        fp16_floor_bits=_finite(FP16.floor_bits(sum_min)),
        quantities=quantities,
        by_head=HeadRanges(
            max_abs=tuple(float(v) for v in observed.argument_max),
            sum_sq_min=tuple(_finite(float(v)) for v in observed.sum_min),
            sum_sq_max=tuple(float(v) for v in observed.sum_max),
            bound_sum_sq=tuple(bounds),
        ),
        fold_exponent=max(total, key=abs, default=0),
        fold=fold,
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
    observed, low = case.observed, float(case.observed.argument_min.min())
    top, bound = float(observed.argument_max.max()), case.certified_max("argument")
    rows: dict[str, tuple[float, float, float | None]] = {
        "argument": (top, low, bound),
        "square": (top**2, low**2, None if bound is None else bound**2),
        "sum": (float(observed.sum_max.max()), float(observed.sum_min.min()), case.certified_max("sum")),
    }
    if case.site.operand == "kv":
        rows["partial"] = (float(observed.partial_max.max()), low, case.certified_max("partial"))
        for i, name in enumerate("kv"):
            factor = None if case.certified is None else float(case.certified.factors[i].max())
            rows[name] = (float(observed.factor_max[i].max()), np.inf, factor)
    return tuple(
        Quantity(name, top, _finite(bottom), bound, _bits(top, bottom, bound, FP16), _bits(top, bottom, bound, BF16))
        for name, (top, bottom, bound) in rows.items()
    )


def _bits(top: float, bottom: float, bound: float | None, fmt: FloatFormat) -> Bits:
    return Bits(
        headroom=_finite(fmt.headroom_bits(top)),
        certified_headroom=None if bound is None else _finite(fmt.headroom_bits(bound)),
        floor=_finite(fmt.floor_bits(bottom)),
        subnormal_floor=_finite(fmt.floor_bits(bottom, subnormal=True)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
