"""From a graph and images to a certificate, and to a repaired graph.

find sites -> trace, bound -> measure -> judge -> fold, or keep in FP32 -> check to the last bit -> measure and judge again
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import onnx

from calib.errors import GraphError, UsageError
from calib.files import sha256_bytes
from calib.graph import index_graph, to_array
from calib.macs import count_macs
from calib.ort_session import first_batches
from calib.qdq_writer import serialize
from edge.stability.bound_propagation import propagate_bounds
from edge.stability.certificate import SiteCertificate, XNormCertificate
from edge.stability.finders.xnorm import XNormSite, find_norms, find_sites
from edge.stability.float_formats import Float32
from edge.stability.input_bounds import bound_site
from edge.stability.measure_ranges import measure
from edge.stability.power_of_two_folding import folded_graph
from edge.stability.repair import check_repair, choose_repair, island_cost, no_fold
from edge.stability.site_certificate import certify_site, gather_evidence, network_verdict
from edge.stability.trace_layers import SiteLayers, trace_sites
from edge.stability.unjudged_norm import UnjudgedNorm
from edge.stability.verdict import SiteCase, Stability

MIN_IMAGES = 2
LISTED_NORMS = 8
MAC_BUDGET = 5e11
"""Multiply-accumulates spent on measuring. More images would find rarer minima; the maxima are certified without images."""
PROVEN_IMAGES = 256
"""Images measured where the maxima of every XNorm are certified and a repair follows: they show the minima, which centre the
exponents. Of the shipped network 128 would give another exponent than 256 and 512 do."""


@dataclass(frozen=True)
class CertifyConfig:
    """How to certify.

    Attributes:
        precisions: what the network's verdict is over.
        repair: whether to fold; otherwise the graph is only judged.
        expected_sites, kv_axis: what the network must have, see `edge.stability.finders.xnorm.find_sites`;
            None for whatever is found.
        where: named in errors, usually the file.
        backend: whose table tells what it computes in FP32, see `edge.stability.target_precisions`; None for no target.
        emulated_images: most images that the FP16 network is emulated on.
        islands: the verdict from which a site that no scale makes stable computes in FP32: "unstable", or "at risk" too.
    """

    precisions: tuple[str, ...] = ("fp16", "bf16", "int8")
    repair: bool = True
    expected_sites: int | None = None
    kv_axis: int | None = None
    where: object = None
    backend: str | None = None
    emulated_images: int = 16
    islands: Stability = "unstable"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.precisions) - {"fp16", "bf16", "int8"})
        if unknown or not self.precisions:
            found = ", ".join(unknown) or "none"
            raise UsageError("unknown precision to certify", where="--precision", found=found, allowed="fp16, bf16, int8")


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
        model: FP32 ONNX graph with one input; left as it is.
        batches: images as the graph takes them, see PROVEN_IMAGES for how many are used; on the first batch (as much of it as
            one run takes) the errors are emulated and the repair is checked.
        data_sha256: digest of the images and their preprocessing, for the certificate.
        onnx_sha256: digest of the graph's file; empty for that of its canonical bytes.
        progress: called with the number of images done so far.

    Raises InputError for a graph without XNorms, or with others than expected, and for NaN or infinity in its weights or
    tensors; VerdictError for a repaired graph that is not bit-identical, which would be an error of this toolkit.
    """
    config = config or CertifyConfig()
    check_weights(model)
    sites, unjudged = find_sites(model, config.expected_sites, config.kv_axis), find_norms(model)[1]
    if not sites:
        _refuse_without_sites(unjudged, config.where)
    traced = trace_sites(model, sites)
    cases, images, checked = _measure_cases(model, sites, traced, batches, progress, config.repair)
    repaired, folded, tensors, checks = cases, model, checked, None
    folds = [no_fold(case) for case in cases]
    if config.repair:
        repaired, folds = map(list, zip(*map(choose_repair, cases, traced), strict=True))
        folded = folded_graph(model, tuple(folds), tuple(layers.layers for layers in traced))
        tensors, checks = check_repair(model, folded, folds, checked)
    evidence = [gather_evidence(case.site, tensors) for case in repaired]
    after = tuple(map(certify_site, repaired, folds, traced, evidence))
    before: tuple[SiteCertificate, ...] = ()
    if config.repair:
        as_it_was = [  # where nothing was folded, what holds after the repair held before
            gather_evidence(case.site, checked, ("fp16",)) if fold.changes else unchanged
            for case, fold, unchanged in zip(cases, folds, evidence, strict=True)
        ]
        before = tuple(map(certify_site, cases, map(no_fold, cases), traced, as_it_was))
    certificate = XNormCertificate(
        onnx_sha256=onnx_sha256 or sha256_bytes(serialize(model)),
        folded_onnx_sha256=sha256_bytes(serialize(folded)) if config.repair else None,
        data_sha256=data_sha256,
        images=images,
        precisions=config.precisions,
        sites=after,
        before=before,
        verdict=network_verdict(after, config.precisions),
        verdict_before=network_verdict(before or after, config.precisions),
        islands=island_cost(repaired, tensors),
        checks=checks,
        unjudged=unjudged,
    )
    return Certification(certificate, folded)


def _refuse_without_sites(unjudged: tuple[UnjudgedNorm, ...], where: object) -> NoReturn:
    found = "; ".join(f"{norm.name}: {norm.reason}" for norm in unjudged[:LISTED_NORMS]) or None
    what = "no L2 norm of the graph can be judged" if unjudged else "no XNorm in the graph"
    command = f"ufovit inspect {where or 'FILE'}"
    raise GraphError(what, where=where, found=found, allowed="a network that divides by an L2 norm", next_command=command)


def _measure_cases(
    model: onnx.ModelProto,
    sites: tuple[XNormSite, ...],
    traced: list[SiteLayers],
    batches: Iterable[Float32],
    progress: Callable[[int], None],
    repair: bool,
) -> tuple[list[SiteCase], int, dict[str, Float32]]:
    """The sites bounded and measured, the number of images, and the tensors of the checked ones, the graph's input included."""
    bounds = propagate_bounds(model, sites).values()
    certified = list(map(bound_site, sites, traced))
    proven = repair and all(maxima is not None for maxima in certified)
    ranges, images, checked = measure(model, sites, first_batches(batches, PROVEN_IMAGES) if proven else batches, progress)
    cases = [
        SiteCase(
            site=site,
            dim=int(checked[site.argument].shape[site.axis]),
            observed=observed,
            certified=maxima,
            output_bound=max(bound.largest for bound in bounds if site.name in bound.sites),
        )
        for site, maxima, observed in zip(sites, certified, ranges, strict=True)
    ]
    return cases, images, checked


def image_budget(model: onnx.ModelProto, available: int) -> int:
    """How many images certify a graph in about half a minute on two cores: by its multiply-accumulates, at least MIN_IMAGES."""
    macs = count_macs(model, measure=True).total
    return min(available, max(MIN_IMAGES, int(MAC_BUDGET / max(macs, 1))))


def check_weights(model: onnx.ModelProto) -> None:
    """Raise GraphError for NaN or infinity in weights."""
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
