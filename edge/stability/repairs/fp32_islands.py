"""FP32 islands: the fewest nodes that compute in FP32 so that 16 bits hold everything that is left.

    a norm that fails                 all its nodes
    a stored tensor that fails        the node that computes it, and all that read it
    what exists inside an operator    that node

What crosses the edge of an island is stored in 16 bits: where it fails, the island grows. In the end what makes islands cheaper
or more accurate joins them (`widen_islands`).
"""

from dataclasses import replace

from edge.stability.float_formats import FP16
from edge.stability.network_cases import NetworkFacts
from edge.stability.repairs.norm_scaling import SCALABLE
from edge.stability.repairs.widen_islands import widen_islands
from edge.stability.site import Site
from edge.stability.site_verdict import NetworkCase, judge_site
from edge.stability.verdict import STABILITIES, Stability

_NORMS = (*SCALABLE, "variance", "reciprocal")


def plan_islands(facts: NetworkFacts, kept: frozenset[str], failing: Stability = "unstable") -> frozenset[str]:
    """Names of the nodes that compute in FP32 in addition to `kept`, for sites other than XNorms no better than `failing`."""
    nodes = set(kept)
    sites = [site for site in facts.sites if site.kind != "xnorm"]
    while True:
        cases = [(site, case) for site in sites if _fails(case := facts.case(site, nodes), failing)]
        more = {name for site, case in cases for name in _island_of(facts, site, case, failing)} - nodes
        if not more:
            return (widen_islands(facts, nodes, kept) if nodes > kept else frozenset[str]()) - kept
        nodes |= more


def _fails(case: NetworkCase, failing: Stability) -> bool:
    return STABILITIES.index(judge_site(case, FP16).verdict) >= STABILITIES.index(failing)


def _island_of(facts: NetworkFacts, site: Site, case: NetworkCase, failing: Stability) -> set[str]:
    """The nodes that a failing site needs in FP32."""
    nodes = set(site.nodes) if site.kind in _NORMS or site.kind == "constant" else set[str]()
    lost = [p for p in case.held if _fails(replace(case, site=replace(case.site, probes=(p,))), failing)]
    for probe in lost:
        if not probe.stored:
            nodes.add(site.name)
            continue
        tensor, index = probe.tensors[0], facts.index
        nodes.update(index.names[at] for at in index.consumers.get(tensor, ()))
        if tensor in index.producers:
            nodes.add(index.names[index.producers[tensor]])
    return nodes or set(site.nodes)
