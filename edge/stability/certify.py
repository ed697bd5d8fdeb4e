"""From a graph and images to a certificate, and to a repaired graph.

find sites -> trace, bound -> measure -> judge -> fold, or keep in FP32 -> check to the last bit -> measure and judge again
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx

from calib.errors import GraphError, UsageError
from calib.files import sha256_bytes
from calib.graph import index_graph, infer_types, to_array
from calib.macs import count_macs
from calib.qdq_writer import serialize
from edge.stability.bound_propagation import propagate_bounds
from edge.stability.certificate import Checks, IslandCost, SiteCertificate, XNormCertificate
from edge.stability.finders.xnorm import XNormSite, find_sites
from edge.stability.input_bounds import bound_site
from edge.stability.measure_ranges import Float32, measure
from edge.stability.observed_ranges import ObservedRanges
from edge.stability.power_of_two_folding import Fold, folded_graph
from edge.stability.repair import check_repair, choose_repair, island_cost, no_fold
from edge.stability.site_certificate import certify_site, network_verdict
from edge.stability.site_evidence import SiteEvidence, gather_evidence
from edge.stability.trace_layers import SiteLayers, Tracer, trace_site
from edge.stability.verdict import SiteCase

CHECK_BYTES = 1 << 28
"""Memory that the tensors of the checked images may take: a whole batch of ufovit_t up to 224 px, one of ufovit_b at 896 px."""
MIN_IMAGES = 2
MAC_BUDGET = 5e11
"""Multiply-accumulates spent on measuring. More images would find rarer minima; the maxima are certified without images."""


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
            raise UsageError("unknown precision to certify", found=", ".join(unknown) or "none", allowed="fp16, bf16, int8")


@dataclass(frozen=True)
class Certification:
    """What `certify_graph` leaves: the certificate, and the graph it is for, repaired where that was asked for."""

    certificate: XNormCertificate
    model: onnx.ModelProto


def certify_graph(
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
        progress: called with the number of images done so far.

    Raises:
        InputError: no XNorm in the graph, another number of them than expected, weights or tensors that hold NaN or infinity.
        VerdictError: the repaired graph is not bit-identical, which would be an error of this toolkit.
    """
    config = config or CertifyConfig()
    _check_weights(model)
    sites = find_sites(model, config.expected_sites, config.kv_axis)
    if not sites:
        raise GraphError(
            "no XNorm in the graph", allowed="a network that divides by an L2 norm", next_command="ufovit inspect FILE"
        )
    network = _Network(model, sites)
    ranges = network.measure(batches, progress)
    before = network.cases(ranges)
    judged = _repair(network, before, ranges) if config.repair else _judge_only(network, before, ranges)
    certificate = XNormCertificate(
        onnx_sha256=onnx_sha256 or sha256_bytes(serialize(model)),
        folded_onnx_sha256=None if judged.checks is None else sha256_bytes(serialize(judged.model)),
        data_sha256=data_sha256,
        images=ranges.images,
        precisions=config.precisions,
        sites=judged.sites,
        before=judged.before,
        verdict=network_verdict(judged.sites, config.precisions),
        verdict_before=network_verdict(judged.before or judged.sites, config.precisions),
        islands=judged.islands,
        checks=judged.checks,
    )
    return Certification(certificate, judged.model)


def _judge_only(network: _Network, before: list[SiteCase], ranges: _Ranges) -> _Judged:
    """The graph as it is."""
    evidence = [gather_evidence(site, ranges.checked) for site in network.sites]
    return _Judged(network.model, network.certificates(before, [no_fold(case) for case in before], evidence))


def _repair(network: _Network, before: list[SiteCase], ranges: _Ranges) -> _Judged:
    """Fold, check, judge again: the graph as it was and as it is to be built."""
    repairs = [choose_repair(case, traced) for case, traced in zip(before, network.traced, strict=True)]
    cases, folds = [case for case, _ in repairs], [fold for _, fold in repairs]
    repaired = folded_graph(network.model, tuple(folds), tuple(traced.layers for traced in network.traced))
    tensors, checks = check_repair(network.model, repaired, network.sites, folds, ranges.checked)
    evidence = [gather_evidence(case.site, tensors) for case in cases]
    evidence_before = [
        gather_evidence(case.site, ranges.checked, ("fp16",)) if fold.changes else unchanged
        for case, fold, unchanged in zip(before, folds, evidence, strict=True)
    ]
    return _Judged(
        repaired,
        network.certificates(cases, folds, evidence),
        network.certificates(before, [no_fold(case) for case in before], evidence_before),
        island_cost(cases, tensors),
        checks,
    )


def image_budget(model: onnx.ModelProto, available: int) -> int:
    """How many images certify a graph in about half a minute on two cores: by its multiply-accumulates, at least MIN_IMAGES."""
    macs = sum(count_macs(model).values())
    return min(available, max(MIN_IMAGES, int(MAC_BUDGET / max(macs, 1))))


@dataclass(frozen=True)
class _Ranges:
    """Ranges over all images, how many they were, and the tensors, the graph's input among them, of the checked ones."""

    observed: tuple[ObservedRanges, ...]
    images: int
    checked: dict[str, Float32]


@dataclass(frozen=True)
class _Judged:
    """A graph with its certified sites; with a repair also those before it, its cost and its checks."""

    model: onnx.ModelProto
    sites: tuple[SiteCertificate, ...]
    before: tuple[SiteCertificate, ...] = ()
    islands: IslandCost = field(default_factory=lambda: IslandCost(0, 0, 0))
    checks: Checks | None = None


class _Network:
    """A graph with its sites traced and bounded."""

    def __init__(self, model: onnx.ModelProto, sites: tuple[XNormSite, ...]) -> None:
        self.model, self.sites = model, sites
        tracer = Tracer(model, index_graph(model), infer_types(model))
        self.traced: list[SiteLayers] = [trace_site(tracer, site) for site in sites]
        self.certified = [bound_site(site, traced) for site, traced in zip(sites, self.traced, strict=True)]
        bounds = propagate_bounds(model, sites).values()
        self.output_bounds = [max(bound.largest for bound in bounds if site.name in bound.sites) for site in sites]

    def measure(self, batches: Iterable[Float32], progress: Callable[[int], None]) -> _Ranges:
        checked: dict[str, Float32] = {}

        def keep_first(tensors: dict[str, Float32]) -> None:
            if not checked:
                count = _affordable(tensors)
                checked.update((name, values[:count].copy()) for name, values in tensors.items())

        observed, images = measure(self.model, self.sites, batches, progress, watch=keep_first)
        return _Ranges(observed, images, checked)

    def cases(self, ranges: _Ranges) -> list[SiteCase]:
        """The sites of the graph as it is."""
        rows = zip(self.sites, ranges.observed, self.certified, self.output_bounds, strict=True)
        return [
            SiteCase(site, int(ranges.checked[site.argument].shape[site.axis]), observed, certified, output_bound=bound)
            for site, observed, certified, bound in rows
        ]

    def certificates(
        self, cases: list[SiteCase], folds: list[Fold], evidence: list[SiteEvidence]
    ) -> tuple[SiteCertificate, ...]:
        certificates = []
        for case, fold, traced, errors in zip(cases, folds, self.traced, evidence, strict=True):
            exponents = {
                layer.weight: tuple(int(p) for p in row)
                for layer, row in zip(traced.layers, fold.exponents, strict=False)
                if row.any()
            }
            total = tuple(int(p) for p in fold.exponents.sum(axis=0))
            certificates.append(certify_site(case, traced.tokens, exponents, total, errors))
        return tuple(certificates)


def _check_weights(model: onnx.ModelProto) -> None:
    """Raise InputError for constants that hold NaN or infinity."""
    for name, tensor in index_graph(model).constants.items():
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            values = to_array(tensor)
            if values.size > 1 and not np.isfinite(values).all():
                raise GraphError(
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
