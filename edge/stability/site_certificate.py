"""Ranges, evidence and verdicts put on record: one SiteCertificate per XNorm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge.stability.certificate import Bits, HeadRanges, Int8Loss, Quantity, SiteCertificate
from edge.stability.float_formats import BF16, FP16, FloatFormat
from edge.stability.verdict import Judgement, SiteCase, Stability, judge, worst


@dataclass(frozen=True)
class SiteEvidence:
    """What the checked images showed of a site beyond its ranges: see the fields of these names in SiteCertificate."""

    errors: dict[str, float | None]
    int8: Int8Loss
    int8_in_front: Int8Loss


INT8_RISKY_ERROR, INT8_BROKEN_ERROR = 0.1, 0.5
"""Direction error behind the norm from which INT8 is at risk, and unstable; the networks measured have about 0.01, and 1 is a
vector that is gone."""
INT8_DEAD_SHARE = 1e-3


def judge_int8(loss: Int8Loss) -> Judgement:
    """INT8 behind the norm."""
    figures = f"{loss.dead_fraction:.2%} dead vectors, direction error {loss.direction_error:.3f}"
    if loss.dead_fraction >= INT8_DEAD_SHARE or loss.direction_error >= INT8_BROKEN_ERROR:
        return Judgement("unstable", "observed", f"INT8 behind the norm: {figures}")
    at_risk = loss.dead_fraction > 0 or loss.direction_error >= INT8_RISKY_ERROR
    return Judgement("at risk" if at_risk else "stable", "observed", figures)


def certify_site(
    case: SiteCase, tokens: int, fold: dict[str, tuple[int, ...]], total: tuple[int, ...], evidence: SiteEvidence
) -> SiteCertificate:
    """Put together what is known of a site.

    Args:
        case: its ranges, as folded.
        tokens: N of K^T V, 0 for "q".
        fold: weight -> exponents by head.
        total: p by head.
        evidence: from the checked images.
    """
    seen, sure, site = case.observed, case.certified, case.site
    verdicts = {"fp16": judge(case, FP16), "bf16": judge(case, BF16), "int8": judge_int8(evidence.int8)}
    quantities = _quantities(case)
    top = [q.fp16.headroom if q.fp16.certified_headroom is None else q.fp16.certified_headroom for q in quantities]
    sum_min = float(seen.sum_min.min())
    eps = min(site.eps, key=lambda e: e.on_norm) if site.eps else None
    bounds = [None] * len(seen.sum_max) if sure is None else [float(v) for v in sure.sum]
    return SiteCertificate(
        name=site.name,
        operand=site.operand,
        axis=site.axis,
        heads=len(seen.zero),
        dim=case.dim,
        tokens=tokens,
        vectors=seen.vectors * len(seen.zero),
        zero_vectors=int(seen.zero.sum()),
        eps=None if eps is None else eps.on_norm,
        eps_kind="none" if eps is None else eps.kind,
        max_abs=float(seen.argument_max.max()),
        sum_sq_max=float(seen.sum_max.max()),
        sum_sq_min=_finite(sum_min),
        bound_max_abs=None if sure is None else float(sure.argument.max()),
        bound_sum_sq=None if sure is None else float(sure.sum.max()),
        output_bound=case.output_bound,
        fp16_headroom_bits=min(t for t in top if t is not None),
        fp16_floor_bits=_finite(FP16.floor_bits(sum_min)),
        quantities=quantities,
        by_head=HeadRanges(
            max_abs=tuple(float(v) for v in seen.argument_max),
            sum_sq_min=tuple(_finite(float(v)) for v in seen.sum_min),
            sum_sq_max=tuple(float(v) for v in seen.sum_max),
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
    seen, sure = case.observed, case.certified
    low = float(seen.argument_min.min())
    a = float(seen.argument_max.max()), low, None if sure is None else float(sure.argument.max())
    rows: dict[str, tuple[float, float, float | None]] = {
        "argument": a,
        "square": (a[0] ** 2, low**2, None if a[2] is None else a[2] ** 2),
        "sum": (float(seen.sum_max.max()), float(seen.sum_min.min()), None if sure is None else float(sure.sum.max())),
    }
    if case.site.operand == "kv":
        rows["partial"] = (float(seen.partial_max.max()), low, None if sure is None else float(sure.partial.max()))
        for i, name in enumerate("kv"):
            rows[name] = (float(seen.factor_max[i].max()), np.inf, None if sure is None else float(sure.factors[i].max()))
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
