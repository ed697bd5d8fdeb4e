"""`xnorm.json`: the ranges of every XNorm of a network, and whether reduced precision can compute it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calib.artifact import json_artifact, read_artifact
from edge.stability.observed_ranges import Operand
from edge.stability.unjudged_norm import UnjudgedNorm
from edge.stability.verdict import Judgement, Stability
from engines.build_folder.file_names import XNORM

REMAKE = "ufovit certify"


@dataclass(frozen=True)
class Bits:
    """Headroom of a quantity in a format, in powers of two; negative on overflow, None where there is nothing to measure.

    Attributes:
        headroom: from the observed maximum to the largest number.
        certified_headroom: from the certified maximum.
        floor: from the observed minimum down to the smallest normal number.
        subnormal_floor: down to the smallest subnormal number.
    """

    headroom: float | None
    certified_headroom: float | None
    floor: float | None
    subnormal_floor: float | None


@dataclass(frozen=True)
class Quantity:
    """One kind of value inside a site, over all heads.

    Attributes:
        name: "argument" a, "square" a^2, "sum" sum a^2, "partial" sums on the way to K^T V, "k" and "v".
        observed_max, observed_min: over the images; of "argument" and what follows from it, the minimum is that of the largest
            element of a nonzero vector; None where none is recorded.
        certified_max: for every input, None where nothing is certified.
        fp16, bf16: headroom.
    """

    name: str
    observed_max: float
    observed_min: float | None
    certified_max: float | None
    fp16: Bits
    bf16: Bits


@dataclass(frozen=True)
class Int8Loss:
    """Errors of a tensor's vectors under one INT8 scale for all.

    Attributes:
        dead_fraction: share of nonzero vectors that become zero.
        direction_error: mean over vectors of |u' - u|, u and u' the unit vectors before and after; 1 for a dead one.
        clipped_fraction: share of elements beyond the range.
    """

    dead_fraction: float
    direction_error: float
    clipped_fraction: float


@dataclass(frozen=True)
class HeadRanges:
    """Per head: largest |a|; smallest nonzero and largest sum a^2; certified bound on it. None where there is none."""

    max_abs: tuple[float, ...]
    sum_sq_min: tuple[float | None, ...]
    sum_sq_max: tuple[float, ...]
    bound_sum_sq: tuple[float | None, ...]


@dataclass(frozen=True)
class SiteCertificate:
    """One XNorm.

    Attributes:
        name: the node that reduces.
        operand: "q" or "kv".
        axis: the normalised axis, negative.
        heads, dim: heads H and length d of a vector.
        tokens: products that an entry of K^T V sums; 0 for "q" and where the graph does not fix it.
        vectors, zero_vectors: how many, and how many were exactly zero, over all heads.
        eps: smallest guard against division by zero in units of the norm, None without one.
        eps_kind: "clamp", "added" or "none".
        max_abs, sum_sq_max, sum_sq_min: observed; the minimum over nonzero vectors, None without any.
        bound_max_abs, bound_sum_sq: certified for every input, None where nothing is.
        output_bound: proven bound on gamma a / ||a|| and on the attention's output.
        fp16_headroom_bits: smallest headroom of any quantity in FP16, certified where possible.
        fp16_floor_bits: distance of the smallest sum a^2 from FP16's smallest normal number, None without nonzero vectors.
        fold_exponent: p; the argument was multiplied by 2^-p. Where heads differ, that of the largest |p|.
        fold: weight of a linear layer -> its exponent by head.
        island: whether the site is to compute in FP32.
        verdicts: precision -> verdict, its basis and reason.
        verdict: the worst of them.
        errors: "fp16", "bf16" with sums in the format, "fp16/fp32", "bf16/fp32" with sums in FP32 -> relative error of the
            emulated XNorm against float64, over all vectors of the checked images; None where NaN or infinity came out.
            Before a repair FP16's alone.
        int8_dead_fraction, int8_direction_error, int8_clipped_fraction: quantized after the norm, as a build does.
        int8_in_front: the same with Q/DQ before the norm, as a build does not.
    """

    name: str
    operand: Operand
    axis: int
    heads: int
    dim: int
    tokens: int
    vectors: int
    zero_vectors: int
    eps: float | None
    eps_kind: str
    max_abs: float
    sum_sq_max: float
    sum_sq_min: float | None
    bound_max_abs: float | None
    bound_sum_sq: float | None
    output_bound: float
    fp16_headroom_bits: float
    fp16_floor_bits: float | None
    quantities: tuple[Quantity, ...]
    by_head: HeadRanges
    fold_exponent: int
    fold: dict[str, tuple[int, ...]]
    island: bool
    verdicts: dict[str, Judgement]
    verdict: Stability
    errors: dict[str, float | None]
    int8_dead_fraction: float
    int8_direction_error: float
    int8_clipped_fraction: float
    int8_in_front: Int8Loss


@dataclass(frozen=True)
class IslandCost:
    """What FP32 islands cost: how many sites, the Cast nodes on their edges, and the values that cross them per image."""

    sites: int
    casts: int
    values_per_image: int


@dataclass(frozen=True)
class Checks:
    """What was verified on the repaired graph.

    Attributes:
        logits_bit_identical: FP32 logits before and after are the same to the last bit.
        ranges_as_scaled: the ranges measured after are those before, times powers of two, to the last bit.
    """

    images: int
    logits_bit_identical: bool
    ranges_as_scaled: bool


@dataclass(frozen=True)
class XNormCertificate:
    """`xnorm.json`.

    Attributes:
        onnx_sha256: the FP32 graph that was certified.
        folded_onnx_sha256: the graph that the repair made of it, None when none was asked for.
        data_sha256: images and their preprocessing.
        precisions: what the verdict is over.
        sites: every XNorm in graph order: after the repair, where one was asked for.
        before: the same before it; empty when none was asked for.
        verdict: the worst of `sites`.
        verdict_before: the worst of `before`, or that of `sites`.
        islands: cost of the FP32 islands.
        checks: None without a repair.
        unjudged: L2 norms that the verdict does not cover; left out of the file where there are none.
    """

    onnx_sha256: str
    folded_onnx_sha256: str | None
    data_sha256: str
    images: int
    precisions: tuple[str, ...]
    sites: tuple[SiteCertificate, ...]
    before: tuple[SiteCertificate, ...]
    verdict: Stability
    verdict_before: Stability
    islands: IslandCost
    checks: Checks | None = None
    unjudged: tuple[UnjudgedNorm, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields of the file."""
        fields = asdict(self)
        return fields if self.unjudged else {name: value for name, value in fields.items() if name != "unjudged"}

    @property
    def island_names(self) -> frozenset[str]:
        """Names of the sites that are to compute in FP32."""
        return frozenset(site.name for site in self.sites if site.island)


def read_certificate(path: Path) -> XNormCertificate:
    """Read `xnorm.json`. Raises InputError."""
    return read_artifact(path, XNormCertificate, remake=REMAKE)


CERTIFICATE_ARTIFACT = json_artifact(XNORM, XNormCertificate, remake=REMAKE)
