"""The sites of a network with what is known of them, as `site_verdict` judges them and as `certificate.json` records them.

FP32 islands are sets of nodes. A tensor whose producer and readers all compute in FP32 is not stored in 16 bits; nor is a graph
input, an output or a constant whose readers all do. What exists inside an operator only is FP32 with its node.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import GraphIndex, index_graph, infer_types
from calib.ort_session import first_batches
from edge.stability.bounds import bound_tensors
from edge.stability.certificate import IslandCost, SiteCertificate
from edge.stability.finders.network_sites import find_network_sites
from edge.stability.float_formats import FORMATS, FP16
from edge.stability.fp16_network import Sample
from edge.stability.network_certificate import Coverage, QuantityRecord, Repair, SiteRecord, TensorRecord
from edge.stability.observe_probes import observe_probes
from edge.stability.site import Observed, Probe, Site, SiteKind
from edge.stability.site_verdict import NetworkCase, describe, headroom_of, judge_site
from edge.stability.target_precisions import TargetPrecisions
from edge.stability.unjudged_norm import UnjudgedNorm
from edge.stability.verdict import MARGIN_BITS, Judgement

Array = NDArray[Any]
Interval = tuple[Array, Array]
PROVEN_IMAGES = 16
SiteKey = tuple[SiteKind, str]
"""Kind and name, unique together."""


@dataclass(frozen=True)
class NetworkFacts:
    """A network's sites, observed and bounded.

    Attributes:
        model: the graph.
        sites, unjudged: as found.
        observed: of every probe.
        certified: of every probe; None where nothing is proven.
        precisions: the target's table.
        images: over how many was observed.
    """

    model: onnx.ModelProto
    sites: tuple[Site, ...]
    unjudged: tuple[UnjudgedNorm, ...]
    observed: Mapping[Probe, Observed]
    certified: Mapping[Probe, float | None]
    precisions: TargetPrecisions
    images: int

    @cached_property
    def index(self) -> GraphIndex:
        """The graph's index."""
        return index_graph(self.model)

    def case(self, site: Site, fp32_nodes: Collection[str] = ()) -> NetworkCase:
        """A site when these nodes compute in FP32."""
        island = bool(fp32_nodes) and self._is_island(site, fp32_nodes)
        held = site
        if fp32_nodes:
            held = replace(site, probes=tuple(p for p in site.probes if self._is_held(site, p, fp32_nodes)))
        known = {probe: self.observed[probe] for probe in site.probes}
        bounds = {probe: self.certified.get(probe) for probe in site.probes}
        return NetworkCase(held, known, bounds, self.precisions.of(site.op_type), island)

    def _is_island(self, site: Site, fp32_nodes: Collection[str]) -> bool:
        return site.name in fp32_nodes if site.kind != "constant" else set(site.nodes) <= set(fp32_nodes)

    def _is_held(self, site: Site, probe: Probe, fp32_nodes: Collection[str]) -> bool:
        """Whether 16 bits hold what a probe is of, see the module's docstring."""
        if not probe.stored:
            return site.name not in fp32_nodes
        tensor = probe.tensors[0]
        producer, names = self.index.producers.get(tensor), self.index.names
        if producer is not None and names[producer] not in fp32_nodes:
            return True
        return not all(names[at] in fp32_nodes for at in self.index.consumers.get(tensor, ()))


def gather_facts(
    model: onnx.ModelProto,
    batches: Iterable[Array],
    interval: Interval,
    precisions: TargetPrecisions,
    progress: Callable[[int], None] = lambda _images: None,
    sample: Sample | None = None,
) -> NetworkFacts:
    """Find, bound and observe every site; `interval` is that of the graph's input. The first images go into `sample`.

    Where FP16 holds the bounds of all tensors, images can only show minima: PROVEN_IMAGES of them are enough.
    """
    found = find_network_sites(model)
    bounds = bound_tensors(model, *interval)
    probes = list(dict.fromkeys(probe for site in found.sites for probe in site.probes))
    certified = {probe: bounds.of(probe) for probe in probes}
    constants = index_graph(model).constant_like
    stored = [certified[p] for p in probes if p.stored and p.tensors[0] not in constants and p.saturates != "both"]
    proven = all(bound is not None and FP16.headroom_bits(bound) >= MARGIN_BITS for bound in stored)
    enough = max(PROVEN_IMAGES, sample.count if sample else 0)
    watch = {} if sample is None else {"watch": sample.add}
    observed, images = observe_probes(model, probes, first_batches(batches, enough) if proven else batches, progress, **watch)
    return NetworkFacts(model, found.sites, found.unjudged, observed, certified, precisions, images)


def gather_again(
    known: NetworkFacts, model: onnx.ModelProto, repaired: Collection[SiteKey], batches: Iterable[Array], interval: Interval
) -> NetworkFacts:
    """The facts of a graph in which sites were repaired exactly: only tensors before their outputs are observed again."""
    found = find_network_sites(model)
    bounds = bound_tensors(model, *interval)
    outputs = {site.output for site in known.sites if (site.kind, site.name) in repaired}
    changed = _changed_tensors(known.model, model, outputs)
    probes = list(dict.fromkeys(probe for site in found.sites for probe in site.probes))
    moved = [probe for probe in probes if probe not in known.observed or changed & set(probe.tensors)]
    observed, _ = observe_probes(model, moved, first_batches(batches, known.images))
    certified = {probe: bounds.of(probe) for probe in probes}
    return replace(
        known,
        model=model,
        sites=found.sites,
        unjudged=found.unjudged,
        observed={probe: observed[probe] if probe in observed else known.observed[probe] for probe in probes},
        certified=certified,
    )


def _changed_tensors(before: onnx.ModelProto, after: onnx.ModelProto, settled: Collection[str]) -> set[str]:
    """Tensors that another graph computes otherwise: from nodes that differ up to those in `settled`."""
    old = {node.SerializeToString() for node in before.graph.node}
    changed: set[str] = set()
    for node in after.graph.node:
        if node.SerializeToString() not in old or changed & set(node.input):
            changed.update(name for name in node.output if name not in settled)
    return changed


def judge_in_16_bits(case: NetworkCase) -> dict[str, Judgement]:
    """ "fp16" and "bf16" -> the verdict."""
    return {name: judge_site(case, fmt) for name, fmt in FORMATS.items()}


def site_record(site: Site, case: NetworkCase, xnorm: SiteCertificate | None, repair: Repair) -> SiteRecord:
    """A site as the certificate records it.

    The verdict on an XNorm is that of its heads, which reckons with sums in 16 bits; where that is "unstable" and the target
    computes the sums in FP32, what the norm stores decides.
    """
    held = set(case.held)
    quantities = tuple(_quantity(probe, case, in_16_bits=probe in held) for probe in site.probes)
    left = min((headroom_of(case, p, FP16)[0] for p in held if p.saturates != "both"), default=math.inf)
    verdicts = judge_in_16_bits(case)
    if xnorm is not None:
        widened = xnorm.verdicts["fp16"].verdict == "unstable" and case.precision == "fp32"
        verdicts = {**verdicts, "int8": xnorm.verdicts["int8"]} if widened else xnorm.verdicts
    return SiteRecord(site.kind, site.name, site.op_type, quantities, verdicts, _finite(left), repair)


def _quantity(probe: Probe, case: NetworkCase, *, in_16_bits: bool) -> QuantityRecord:
    seen = case.observed[probe]
    return QuantityRecord(
        name=describe(probe),
        tensor=probe.tensors[0] if probe.stored else "",
        observed_max=seen.maximum,
        observed_min=_finite(seen.minimum),
        certified_max=case.certified[probe],
        computed_in="fp16" if in_16_bits else "fp32",
        overflowing=seen.overflowing,
        vanishing=seen.vanishing,
    )


def tensor_records(facts: NetworkFacts) -> tuple[TensorRecord, ...]:
    """Every stored tensor that depends on the input, in graph order."""
    found = {probe.tensors[0]: probe for probe in _stored(facts)}
    order = [*facts.index.inputs, *(name for node in facts.model.graph.node for name in node.output)]
    records = []
    for name in order:
        if name in found:
            seen = facts.observed[found[name]]
            records.append(TensorRecord(name, _finite(seen.minimum), seen.maximum, facts.certified[found[name]]))
    return tuple(records)


def coverage_of(facts: NetworkFacts) -> Coverage:
    """How many stored tensors are judged, and certified."""
    types = infer_types(facts.model)
    judged = {probe.tensors[0]: facts.certified[probe] for probe in _stored(facts)}
    computed = {
        str(name)
        for node in facts.model.graph.node
        for name in node.output
        if name and name not in facts.index.constant_like
        and (name not in types or types[name].dtype == onnx.TensorProto.FLOAT)
    }  # fmt: skip
    constants = sum(site.kind == "constant" for site in facts.sites)
    certified = sum(bound is not None and bound <= FP16.largest for bound in judged.values())
    return Coverage(len(computed | judged.keys()), len(judged), certified, constants)


def cost_of_islands(facts: NetworkFacts, sites: int, fp32_nodes: Collection[str]) -> IslandCost:
    """The tensors that change their type on the edges of the islands."""
    types, names = infer_types(facts.model, batch=1), facts.index.names
    casts, values = 0, 0
    for tensor in {probe.tensors[0] for probe in _stored(facts)}:
        producer = facts.index.producers.get(tensor)
        inside = producer is None or names[producer] in fp32_nodes
        readers = [names[at] in fp32_nodes for at in facts.index.consumers.get(tensor, ())]
        if producer is not None and any(reads != inside for reads in readers):
            casts += 1
            values += math.prod(side or 1 for side in types[tensor].shape or ()) if tensor in types else 0
    return IslandCost(sites, casts, values)


def _stored(facts: NetworkFacts) -> Iterator[Probe]:
    for site in facts.sites:
        if site.kind != "constant":
            yield from (p for p in site.probes if p.stored and p.tensors[0] not in facts.index.constant_like)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
