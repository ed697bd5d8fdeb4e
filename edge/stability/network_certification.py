"""From a network and images to its certificate, and to the graph that 16 bits can compute.

find sites -> bound, observe -> judge -> repair -> check to the last bit -> find, bound, observe and judge again -> emulate FP16

XNorms are judged and repaired first, head by head (`edge.stability.certify`). The emulated FP16 network has the last word: one
that loses its outputs is not stable, and where every site is, that is a fault of this toolkit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx

from calib.errors import InputError, VerdictError
from calib.files import sha256_bytes
from calib.qdq_writer import serialize
from edge.stability.certificate import Checks, IslandCost, SiteCertificate, XNormCertificate
from edge.stability.certify import Certification, CertifyConfig, certify_graph, check_weights
from edge.stability.finders.xnorm import find_norms, find_sites
from edge.stability.float_formats import Float32
from edge.stability.fp16_network import Sample, emulated_agreement, first_departure
from edge.stability.instrumented_graph import Tensors
from edge.stability.islands import fp32_nodes
from edge.stability.network_cases import (
    Interval,
    NetworkFacts,
    SiteKey,
    cost_of_islands,
    coverage_of,
    gather_again,
    gather_facts,
    site_record,
    tensor_records,
)
from edge.stability.network_certificate import Emulated, EmulatedNetworks, NetworkCertificate, Repair, SiteRecord
from edge.stability.repair import compare_outputs_bitwise
from edge.stability.repairs.fp32_islands import plan_islands
from edge.stability.repairs.norm_scaling import check_scaled_ranges, scale_norms
from edge.stability.target_precisions import target_precisions
from edge.stability.verdict import Stability, worst

STABLE_DB, LOST_DB = 30.0, 20.0
"""SQNR of the emulated outputs from which they are FP32's, and below which they are lost: FP16 itself leaves 50 to 60 dB."""
SQNR_CAP_DB = 200.0

Batches = Callable[[], Iterable[Float32]]


@dataclass(frozen=True)
class NetworkCertification:
    """What `certify_network` leaves.

    Attributes:
        certificate: of the network.
        xnorms: of its XNorms, as `xnorm.json`; None without any.
        model: the graph, repaired where that was asked for.
    """

    certificate: NetworkCertificate
    xnorms: XNormCertificate | None
    model: onnx.ModelProto


@dataclass(frozen=True)
class _State:
    """A network before or after its repair.

    Attributes:
        facts: its sites.
        xnorms: name -> its certificate.
        repairs: (kind, name) of a site -> what was done.
        islands: nodes of FP32 islands, without those of XNorms.
        kept: all nodes that a build computes in FP32.
    """

    facts: NetworkFacts
    xnorms: Mapping[str, SiteCertificate]
    repairs: Mapping[SiteKey, Repair]
    islands: frozenset[str]
    kept: frozenset[str]

    @cached_property
    def records(self) -> tuple[SiteRecord, ...]:
        """Every site but constants that are stable."""
        records = []
        for site in self.facts.sites:
            xnorm = self.xnorms.get(site.name) if site.kind == "xnorm" else None
            case = self.facts.case(site, self.kept)
            record = site_record(site, case, xnorm, self.repairs.get((site.kind, site.name), Repair(site.name)))
            if site.kind != "constant" or record.verdicts["fp16"].verdict != "stable":
                records.append(record)
        return tuple(records)


def certify_network(
    model: onnx.ModelProto,
    batches: Batches,
    *,
    interval: Interval,
    data_sha256: str,
    onnx_sha256: str = "",
    config: CertifyConfig | None = None,
    progress: Callable[[int], None] = lambda _images: None,
) -> NetworkCertification:
    """Certify every site of an FP32 graph, and repair what FP16 could not compute.

    Args:
        model: FP32 ONNX graph with one input; left as it is.
        batches: gives the images as the graph takes them, each time it is called.
        interval: smallest and largest value of the input, see `edge.images.preprocess.Preprocess.interval`.
        data_sha256, onnx_sha256, progress: as for `edge.stability.certify.certify_graph`.
        config: what for, and how; with `emulated_images` = 0 nothing is emulated.

    Raises InputError for NaN or infinity in weights or tensors, and XNorms other than expected; VerdictError where a repair
    changes FP32 outputs, and where the emulation contradicts the verdict: errors of this toolkit.
    """
    config = config or CertifyConfig()
    check_weights(model)
    digest = onnx_sha256 or sha256_bytes(serialize(model))
    done = None
    if config.expected_sites is not None or find_norms(model)[0]:
        done = certify_graph(model, batches(), data_sha256=data_sha256, onnx_sha256=digest, config=config)
    sample = Sample(model, max(config.emulated_images, 1))
    facts = gather_facts(model, batches(), interval, target_precisions(config.backend), progress, sample)
    xnorms = done.certificate if done else None
    before = _State(facts, _by_name(xnorms.before or xnorms.sites) if xnorms else {}, {}, frozenset(), frozenset())
    after = _repair(before, done, batches, interval, config) if config.repair else before
    checks = _check(before, after, xnorms, sample.images) if config.repair else None
    emulation = _Emulation(before, after, sample if config.emulated_images else None)
    certificate = NetworkCertificate(
        onnx_sha256=digest,
        repaired_onnx_sha256=sha256_bytes(serialize(after.facts.model)) if config.repair else None,
        data_sha256=data_sha256,
        images=facts.images,
        backend=config.backend,
        precisions_source=facts.precisions.source,
        precisions=config.precisions,
        sites=after.records,
        before=_changed(before.records, after.records),
        tensors=tensor_records(after.facts),
        unjudged=after.facts.unjudged,
        emulated=emulation.networks,
        verdict=emulation.verdict(after, config.precisions),
        verdict_before=emulation.verdict_before(config.precisions),
        coverage=coverage_of(after.facts),
        fp32_nodes=tuple(name for name in after.facts.index.names if name in after.islands),
        islands=_cost(after, xnorms),
        checks=checks,
        xnorms=xnorms.sites if xnorms else (),
    )
    return NetworkCertification(certificate, xnorms, after.facts.model)


def _by_name(sites: Iterable[SiteCertificate]) -> dict[str, SiteCertificate]:
    return {site.name: site for site in sites}


def _repair(before: _State, done: Certification | None, batches: Batches, interval: Interval, config: CertifyConfig) -> _State:
    """The network after all repairs, observed and judged again."""
    facts, xnorms = before.facts, done.certificate if done else None
    pairs = zip(xnorms.before, xnorms.sites, strict=True) if xnorms else ()
    repairs: dict[SiteKey, Repair] = {("xnorm", site.name): _xnorm_repair(old, site) for old, site in pairs}
    if any(repair.kind != "none" for repair in repairs.values()):
        facts = gather_again(facts, done.model if done else facts.model, repairs, batches(), interval)
    elif done is not None:
        facts = replace(facts, model=done.model)  # the same, without constants that nothing reads
    if "fp16" in config.precisions:
        scaled, scalings = scale_norms(facts)
        repairs |= scalings
        if scalings:
            unscaled, facts = facts, gather_again(facts, scaled, scalings, batches(), interval)
            check_scaled_ranges(unscaled, facts, scalings)
    model = facts.model
    kept = frozenset[str]()
    if xnorms:
        kept = fp32_nodes(model, find_sites(model), xnorms.island_names, with_norms=False)
    islands = plan_islands(facts, kept, config.islands) if "fp16" in config.precisions else frozenset[str]()
    for site in facts.sites if islands else ():
        key: SiteKey = (site.kind, site.name)
        if key not in repairs and islands & set(site.nodes) and facts.case(site, kept) != facts.case(site, kept | islands):
            repairs[key] = Repair(site.name, "fp32 island", 0, tuple(name for name in site.nodes if name in islands))
    return _State(facts, _by_name(xnorms.sites) if xnorms else {}, repairs, islands, kept | islands)


def _xnorm_repair(before: SiteCertificate, site: SiteCertificate) -> Repair:
    if site.island:
        return Repair(site.name, "fp32 island", site.fold_exponent)
    if site.fold:
        return Repair(site.name, "scaled in the weights", site.fold_exponent, tuple(site.fold))
    same = (before.eps, before.eps_kind) == (site.eps, site.eps_kind)
    return Repair(site.name) if same else Repair(site.name, "another eps", exact=False)


def _changed(before: Sequence[SiteRecord], after: Sequence[SiteRecord]) -> tuple[SiteRecord, ...]:
    now = {(record.kind, record.name): record for record in after}
    return tuple(record for record in before if now.get((record.kind, record.name)) != record)


def _check(before: _State, after: _State, xnorms: XNormCertificate | None, images: Float32) -> Checks:
    """That FP32 outputs are the same to the last bit; of XNorms this was checked already."""
    scaled = any(repair.kind.startswith("scaled") for (kind, _), repair in after.repairs.items() if kind != "xnorm")
    if xnorms is not None and xnorms.checks is not None and not scaled:
        return xnorms.checks
    if after.facts.model is not before.facts.model:
        compare_outputs_bitwise(before.facts.model, after.facts.model, images)
    return Checks(len(images), logits_bit_identical=True, ranges_as_scaled=True)


def _cost(state: _State, xnorms: XNormCertificate | None) -> IslandCost:
    """Cost of the islands, those of XNorms included."""
    cost = xnorms.islands if xnorms else IslandCost(0, 0, 0)
    if not state.islands:
        return cost
    sites = sum(repair.kind == "fp32 island" for (kind, _), repair in state.repairs.items() if kind != "xnorm")
    more = cost_of_islands(state.facts, sites, state.islands)
    return IslandCost(*(getattr(cost, name) + getattr(more, name) for name in ("sites", "casts", "values_per_image")))


class _Emulation:
    """The FP16 network before and after the repair, run on a sample of images; without one nothing is emulated."""

    def __init__(self, before: _State, after: _State, sample: Sample | None) -> None:
        self._before = before
        self.networks = EmulatedNetworks(None, None)
        if sample is None:
            return
        self._images, expected = sample.images, sample.outputs()
        self.networks = EmulatedNetworks(self._run(expected, before), None)
        if after is not before:
            alike = after.facts.model is before.facts.model and after.kept == before.kept
            again = self.networks.before if alike else self._run(expected, after)
            self.networks = EmulatedNetworks(self.networks.before, again)

    def _run(self, expected: Sequence[Tensors], state: _State) -> Emulated:
        precisions, model = state.facts.precisions, state.facts.model
        try:
            seen = emulated_agreement(expected, model, self._images, keep_fp32=state.kept, precisions=precisions)
        except InputError as error:
            return Emulated(len(self._images), None, 0, None, " ".join(str(error).split()))
        ratio = min(seen.sqnr_db, SQNR_CAP_DB) if seen.not_finite < seen.images else None
        return Emulated(seen.images, seen.agreement, seen.not_finite, ratio)

    def verdict_before(self, precisions: tuple[str, ...]) -> Stability:
        """The verdict before the repair."""
        return worst([_verdict_of_sites(self._before, precisions), _verdict_of_emulation(self.networks.before, precisions)])

    def verdict(self, state: _State, precisions: tuple[str, ...]) -> Stability:
        """The verdict after the repair, if there was one. Raises VerdictError where the emulation contradicts the sites."""
        emulated = self.networks.after or self.networks.before
        sites, run = _verdict_of_sites(state, precisions), _verdict_of_emulation(emulated, precisions)
        if sites == "stable" and run == "unstable" and not state.facts.unjudged:
            facts = state.facts
            departed = first_departure(facts.model, self._images, keep_fp32=state.kept, precisions=facts.precisions)
            where = f"tensor {departed.tensor}" if departed else None
            raise VerdictError(
                "every site is stable, but the emulated FP16 network loses its outputs",
                where=where,
                found=f"{emulated}" + (f"; tensor {departed.lost} at {departed.sqnr_db:.1f} dB" if departed else ""),
                allowed=f"SQNR of at least {LOST_DB:g} dB",
                next_command="report it with the graph; build with precision fp32 meanwhile",
            )
        return worst([sites, run])


def _verdict_of_emulation(emulated: Emulated | None, precisions: tuple[str, ...]) -> Stability:
    if emulated is None or emulated.refusal or "fp16" not in precisions:
        return "stable"
    if emulated.not_finite or emulated.sqnr_db is None or emulated.sqnr_db < LOST_DB:
        return "unstable"
    return "stable" if emulated.sqnr_db >= STABLE_DB else "at risk"


def _verdict_of_sites(state: _State, precisions: tuple[str, ...]) -> Stability:
    return worst([record.verdicts[name].verdict for record in state.records for name in precisions if name in record.verdicts])
