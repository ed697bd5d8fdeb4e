"""From a graph and images to a certificate, and to a repaired graph.

find sites -> trace, bound -> measure -> judge -> fold, or keep in FP32 -> check to the last bit -> measure and judge again
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from calib.errors import InputError, VerdictError
from calib.files import sha256_bytes
from calib.graph import index_graph, infer_types, to_array
from calib.macs import count_macs
from calib.ort_session import TappedGraph
from calib.qdq_writer import serialize
from edge.stability.bound_propagation import prove
from edge.stability.certificate import Checks, IslandCost, SiteCertificate, XNormCertificate
from edge.stability.finders.xnorm import XNormSite, find_sites
from edge.stability.float_formats import FP16
from edge.stability.measure_ranges import Float32, SiteLayers, certified_bounds, measure, observe, taps, trace_layers
from edge.stability.observed_ranges import Certified, Observed
from edge.stability.power_of_two_folding import Fold, folded_graph, plan_fit, plan_fold
from edge.stability.site_certificate import SiteEvidence, certify_site, network_verdict
from edge.stability.site_evidence import gather_evidence
from edge.stability.trace_layers import Tracer
from edge.stability.verdict import STABILITIES, SiteCase, judge

CHECK_BYTES = 1 << 28
"""Memory that the tensors of the checked images may take: a whole batch of ufovit_t up to 224 px, one of ufovit_b at 896 px."""


MIN_IMAGES = 2
MAC_BUDGET = 5e11
"""Multiply-accumulates spent on measuring. More images would find rarer minima; the maxima are certified without any."""


@dataclass(frozen=True)
class CertifyConfig:
    """How to certify.

    Attributes:
        precisions: what the network's verdict is over: "fp16", "bf16", "int8".
        repair: whether to fold; otherwise the graph is only judged.
        expected_sites, kv_axis: what the network must have, see `edge.stability.finders.xnorm.find_sites`;
            None for whatever is found.
    """

    precisions: tuple[str, ...] = ("fp16", "bf16", "int8")
    repair: bool = True
    expected_sites: int | None = None
    kv_axis: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.precisions) - {"fp16", "bf16", "int8"})
        if unknown or not self.precisions:
            raise InputError("unknown precision to certify", found=", ".join(unknown) or "none", allowed="fp16, bf16, int8")


@dataclass(frozen=True)
class Certification:
    """What `certify` leaves: the certificate, and the graph it is for, repaired where that was asked for."""

    certificate: XNormCertificate
    model: onnx.ModelProto


def certify(
    model: onnx.ModelProto,
    batches: Iterable[Float32],
    *,
    data_sha256: str,
    onnx_sha256: str = "",
    config: CertifyConfig | None = None,
    progress: Callable[[int], None] = lambda _images: None,
) -> Certification:
    """Certify every XNorm of an FP32 graph, and repair what FP16 could not compute.

    Args:
        model: FP32 ONNX graph with one input and one output; left as it is.
        batches: images as the graph takes them; on the first batch (as much of it as CHECK_BYTES allow) the errors are emulated
            and the repair is checked.
        data_sha256: digest of the images and their preprocessing, for the certificate.
        onnx_sha256: digest of the graph's file; empty for that of its canonical bytes.
        config: precisions, whether to repair, what the network must have.
        progress: told the number of images done so far.

    Raises:
        InputError: no XNorm in the graph, another number of them than expected, weights or tensors that hold NaN or infinity.
        VerdictError: the repaired graph is not bit-identical, which would be an error of this toolkit.
    """
    config = config or CertifyConfig()
    _check_weights(model)
    sites = find_sites(model, config.expected_sites, config.kv_axis)
    if not sites:
        raise InputError(
            "no XNorm in the graph", allowed="a network that divides by an L2 norm", next_command="ufovit inspect FILE"
        )
    network = _Network(model, sites)
    measured = network.measure(batches, progress)
    before = [
        SiteCase(site, int(measured.first[site.argument].shape[site.axis]), seen, sure, output_bound=bound)
        for site, seen, sure, bound in zip(sites, measured.observed, network.certified, network.output_bounds, strict=True)
    ]
    facts = {
        "onnx_sha256": onnx_sha256 or sha256_bytes(serialize(model)),
        "data_sha256": data_sha256,
        "images": measured.images,
        "precisions": config.precisions,
    }
    if config.repair:
        return _repair(network, before, measured, facts)
    return _judge_only(network, before, measured, facts)


def _judge_only(network: _Network, before: list[SiteCase], measured: _Measured, facts: dict[str, Any]) -> Certification:
    """The certificate of the graph as it is."""
    evidence = [gather_evidence(site, measured.first) for site in network.sites]
    sites = network.certificates(before, [_nothing(case) for case in before], evidence)
    verdict = network_verdict(sites, facts["precisions"])
    found = XNormCertificate(
        **facts,
        folded_onnx_sha256=None,
        sites=sites,
        before=(),
        verdict=verdict,
        verdict_before=verdict,
        islands=IslandCost(0, 0, 0),
    )
    return Certification(found, network.model)


def _repair(network: _Network, before: list[SiteCase], measured: _Measured, facts: dict[str, Any]) -> Certification:
    """Fold, check, judge again: the certificate of the graph as it was and as it is to be built."""
    mended = [_mend(case, traced) for case, traced in zip(before, network.traced, strict=True)]
    cases, folds = [case for case, _ in mended], [fold for _, fold in mended]
    repaired = folded_graph(network.model, tuple(folds), tuple(traced.layers for traced in network.traced))
    tensors, checks = _check_repair(network, repaired, measured, folds)
    as_built = [gather_evidence(case.site, tensors) for case in cases]
    as_found = [
        gather_evidence(case.site, measured.first, ("fp16",)) if fold.changes else evidence
        for case, fold, evidence in zip(before, folds, as_built, strict=True)
    ]
    sites = network.certificates(cases, folds, as_built)
    originals = network.certificates(before, [_nothing(case) for case in before], as_found)
    found = XNormCertificate(
        **facts,
        folded_onnx_sha256=sha256_bytes(serialize(repaired)),
        sites=sites,
        before=originals,
        verdict=network_verdict(sites, facts["precisions"]),
        verdict_before=network_verdict(originals, facts["precisions"]),
        islands=_island_cost(cases, tensors),
        checks=checks,
    )
    return Certification(found, repaired)


def image_budget(model: onnx.ModelProto, available: int) -> int:
    """How many images certify a graph in about half a minute on two cores: by its multiply-accumulates, at least MIN_IMAGES."""
    macs = sum(count_macs(model).values())
    return min(available, max(MIN_IMAGES, int(MAC_BUDGET / max(macs, 1))))


@dataclass(frozen=True)
class _Measured:
    """Ranges over all images, how many they were, and the tensors, the graph's input among them, of the checked ones."""

    observed: tuple[Observed, ...]
    images: int
    first: dict[str, Float32]


class _Network:
    """A graph with its sites traced and bounded."""

    def __init__(self, model: onnx.ModelProto, sites: tuple[XNormSite, ...]) -> None:
        self.model, self.sites = model, sites
        tracer = Tracer(model, index_graph(model), infer_types(model))
        self.traced: list[SiteLayers] = [trace_layers(tracer, site) for site in sites]
        self.certified: list[Certified | None] = [certified_bounds(s, t) for s, t in zip(sites, self.traced, strict=True)]
        proofs = prove(model, sites).values()
        self.output_bounds = [max(proof.largest for proof in proofs if site.name in proof.sites) for site in sites]
        self.output = model.graph.output[0].name

    def measure(self, batches: Iterable[Float32], progress: Callable[[int], None]) -> _Measured:
        first: dict[str, Float32] = {}

        def keep_first(tensors: dict[str, Float32]) -> None:
            if not first:
                count = _affordable(tensors)
                first.update((name, values[:count].copy()) for name, values in tensors.items())

        observed, images = measure(self.model, self.sites, batches, progress, watch=keep_first)
        return _Measured(observed, images, first)

    def certificates(
        self, cases: list[SiteCase], folds: list[Fold], evidence: list[SiteEvidence]
    ) -> tuple[SiteCertificate, ...]:
        made = []
        for case, fold, traced, shown in zip(cases, folds, self.traced, evidence, strict=True):
            exponents = {
                layer.weight: tuple(int(p) for p in row)
                for layer, row in zip(traced.layers, fold.exponents, strict=False)
                if row.any()
            }
            total = tuple(int(p) for p in fold.exponents.sum(axis=0))
            made.append(certify_site(case, traced.tokens, exponents, total, shown))
        return tuple(made)


def _mend(case: SiteCase, traced: SiteLayers) -> tuple[SiteCase, Fold]:
    """What makes a site stable in FP16, or else least unstable: nothing, a folding, an FP32 island, in this order."""
    nothing, folds = _nothing(case), tuple(plan_fold(case, traced.scalable))
    ways = [(nothing, False), *((fold, False) for fold in folds)]
    ways += [(fold, True) for fold in (nothing, *plan_fit(case, traced.scalable), *folds)]
    cases = [(replace(_apply(case, fold), island=island), fold) for fold, island in ways]
    return min(cases, key=lambda way: STABILITIES.index(judge(way[0], FP16).verdict))  # the first of the best


def _nothing(case: SiteCase) -> Fold:
    return Fold(case.site, np.zeros((max(1, len(case.site.factors)), len(case.observed.zero)), np.int64))


def _apply(case: SiteCase, fold: Fold) -> SiteCase:
    """The case after a folding."""
    changed = {change.eps: change for change in fold.eps}
    eps = tuple(
        replace(e, value=changed[e].value, kind="clamp" if changed[e].clamp else e.kind) if e in changed else e
        for e in case.site.eps
    )
    sure = None if case.certified is None else case.certified.scaled(fold.exponents)
    return replace(case, site=replace(case.site, eps=eps), observed=case.observed.scaled(fold.exponents), certified=sure)


def _check_repair(
    network: _Network, repaired: onnx.ModelProto, measured: _Measured, folds: list[Fold]
) -> tuple[dict[str, Float32], Checks]:
    """Run both graphs on the checked images: logits to the last bit, ranges as powers of two have it. Raises VerdictError."""
    (source,) = index_graph(network.model).inputs
    images = measured.first[source]
    logits = [TappedGraph(graph, (network.output,), threads=0)(images)[network.output] for graph in (network.model, repaired)]
    if not np.array_equal(logits[0].view(np.uint32), logits[1].view(np.uint32)):
        raise VerdictError(
            "folding powers of two changed the FP32 logits",
            found=f"largest difference {np.abs(logits[0] - logits[1]).max():.3g} on {len(images)} images",
            allowed="the same to the last bit",
            next_command="report it with the graph; build with precision fp32 meanwhile",
        )
    tensors = TappedGraph(repaired, taps(network.sites), threads=0)(images)
    for site, fold in zip(network.sites, folds, strict=True):
        found, expected = observe(site, tensors), observe(site, measured.first).scaled(fold.exponents)
        same = all(
            np.array_equal(getattr(found, name), getattr(expected, name)) for name in ("sum_min", "sum_max", "argument_max")
        )
        if not same:
            raise VerdictError(
                "an XNorm does not move as its folding says",
                where=site.name,
                found=f"sum a^2 up to {found.sum_max.max():.6g}",
                allowed=f"{expected.sum_max.max():.6g}",
                next_command="report it with the graph; build with precision fp32 meanwhile",
            )
    return tensors, Checks(len(images), logits_bit_identical=True, ranges_as_scaled=True)


def _check_weights(model: onnx.ModelProto) -> None:
    """Refuse constants that hold NaN or infinity: a norm of them is no norm."""
    for name, tensor in index_graph(model).constants.items():
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            values = to_array(tensor)
            if values.size > 1 and not np.isfinite(values).all():
                raise InputError(
                    "weights hold NaN or infinity",
                    where=name,
                    found=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} numbers",
                    next_command="repair the checkpoint, then export again",
                )


def _affordable(tensors: dict[str, Float32]) -> int:
    """How many of a batch's images are worth the memory and the time."""
    images = len(next(iter(tensors.values())))
    each = sum(values.nbytes for values in tensors.values()) / images
    return int(max(1, min(images, CHECK_BYTES // max(each, 1))))


def _island_cost(cases: list[SiteCase], tensors: dict[str, Float32]) -> IslandCost:
    """Edges of the islands: what goes in (the argument, or the factors of K^T V) and the normalised tensor that comes out."""
    kept = [case.site for case in cases if case.island]
    edges = [name for site in kept for name in (site.factors or (site.argument,))]
    values = sum(tensors[name][0].size for name in edges) + sum(tensors[site.argument][0].size for site in kept)
    return IslandCost(len(kept), len(edges) + len(kept), values)
