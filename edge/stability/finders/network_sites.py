"""Every site of a network, each stored tensor in exactly one of them.

Finders run from the most specific kind to the least; a tensor belongs to the first site that one of its nodes computes. What
passes it on, whole or in part (Reshape, Slice, Relu ...), belongs to the site that computes it: it overflows where that does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import onnx

from calib.graph import to_array
from edge.onnx_import.graph_edit import DEFAULT_DOMAINS, is_operator, subgraphs
from edge.stability.finders.draft import Draft, Finder
from edge.stability.finders.norm_operators import NORM_OPERATORS, find_norm_operators, norm_axes
from edge.stability.finders.operators import (
    find_exponentials,
    find_others,
    find_products,
    find_reciprocals,
    find_residuals,
    find_sums,
)
from edge.stability.finders.site_graph import VIEWS, SiteGraph
from edge.stability.finders.softmax import find_softmaxes
from edge.stability.finders.written_norms import find_response_norms, find_variances, find_written_norms, xnorm_draft
from edge.stability.finders.xnorm import find_norms
from edge.stability.site import Probe, Site
from edge.stability.unjudged_norm import UnjudgedNorm
from engines.typed_graph import is_retyped

Saturates = dict[str, Literal["below", "both"]]

_FINDERS: tuple[Finder, ...] = (
    find_written_norms,
    find_norm_operators,
    find_response_norms,
    find_variances,
    find_softmaxes,
    find_reciprocals,
    find_exponentials,
    find_sums,
    find_products,
    find_residuals,
    find_others,
)
"""After XNorms, which come first."""
_PASSING = (*VIEWS, "Slice", "Split", "Gather", "Expand", "MaxPool", "Relu", "Neg", "Abs")
"""Operators whose output holds numbers of their first input, up to sign, and zero."""
_OPAQUE = ("Attention", "LSTM", "GRU", "RNN")
_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool")
_MASK = -1e4
"""A constant below it that Where selects stands for minus infinity."""


@dataclass(frozen=True)
class FoundSites:
    """The sites of a network, those of inputs and constants first, then in graph order; and the places that no site covers."""

    sites: tuple[Site, ...]
    unjudged: tuple[UnjudgedNorm, ...]


def find_network_sites(model: onnx.ModelProto) -> FoundSites:
    """Every place of an imported FP32 graph where 16 bits can fail; bodies of If and Loop are not entered."""
    graph = SiteGraph(model)
    drafts = [*(xnorm_draft(graph, site) for site in find_norms(model)[0])]
    drafts += [draft for finder in _FINDERS for draft in finder(graph)]
    saturates: Saturates = {}
    divides: set[str] = set()
    owners: dict[str, Draft] = {}
    accumulations: list[Site] = []
    for draft in drafts:
        own = graph.name(draft.node) if draft.output else ""
        if not own:
            continue
        if own in owners:
            if draft.kind == "product" and draft.inner:  # its result is another site's, the sums on the way to it are not
                accumulations.append(_site(graph, draft, (own,), draft.inner))
            continue
        saturates |= draft.saturates
        divides |= draft.divides
        for node in draft.nodes:
            owners.setdefault(graph.name(node), draft)
    computed = [*_computed_sites(graph, owners, saturates, divides), *accumulations]
    position = {name: at for at, name in enumerate(graph.index.names)}
    computed.sort(key=lambda site: (position[site.name], site.probes[0].stored))
    eps = {item.tensor for site in computed for item in site.eps}
    constants = (site for site in _constants(graph, saturates) if site.reads not in eps)
    return FoundSites((*_inputs(graph, saturates), *constants, *computed), tuple(_unjudged(graph)))


def _computed_sites(graph: SiteGraph, owners: dict[str, Draft], saturates: Saturates, divides: set[str]) -> list[Site]:
    """One site per draft, with a probe of each stored tensor that its nodes compute."""
    nodes: dict[int, list[str]] = {}
    for name, node in graph.index.nodes.items():
        draft = owners.get(name)
        if draft is None:
            continue
        if draft.kind == "other" and is_operator(node, *_PASSING):
            source = graph.producer(node.input[0])
            draft = owners.get(graph.name(source), draft) if source is not None else draft
            owners[name] = draft
        nodes.setdefault(id(draft), []).append(name)
    outputs = {value.name for value in graph.model.graph.output}
    sites, eps = list[Site](), set[str]()
    for draft in {id(draft): draft for draft in owners.values()}.values():
        own = [graph.index.nodes[name] for name in nodes[id(draft)]]
        tensors = [str(name) for node in own for name in node.output if name and graph.is_float(name)]
        tensors += [item.tensor for item in draft.eps if graph.is_constant(item.tensor) and item.tensor not in eps]
        eps.update(tensors)
        probes = tuple(
            Probe("value", (name,), divides=name in divides, saturates=saturates.get(name, "no")) for name in tensors
        )
        kind = draft.kind
        if kind in ("product", "residual", "other") and outputs & {*tensors, draft.output}:
            kind = "output"
        if probes or draft.inner:
            names = graph.in_order((*draft.nodes, *own))
            sites.append(_site(graph, replace(draft, kind=kind), names, (*probes, *draft.inner)))
    return sites


def _site(graph: SiteGraph, draft: Draft, nodes: tuple[str, ...], probes: tuple[Probe, ...]) -> Site:
    name = graph.name(draft.node)
    return Site(draft.kind, name, draft.node.op_type, nodes, draft.reads, draft.output, draft.axes, draft.eps, probes)


def _inputs(graph: SiteGraph, saturates: Saturates) -> Iterator[Site]:
    for name in graph.index.inputs:
        if graph.is_float(name):
            probe = Probe("value", (name,), saturates=saturates.get(name, "no"))
            yield Site("other", name, "Input", (), name, name, probes=(probe,))


def _constants(graph: SiteGraph, saturates: Saturates) -> Iterator[Site]:
    """Every FP32 constant that some node reads in its own type: `Resize`, for example, reads its scales as FP32 always."""
    for name, tensor in graph.index.constants.items():
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        readers = [
            node
            for node in graph.nodes_reading(name)
            if any(n == name and is_retyped(node, at) for at, n in enumerate(node.input))
        ]
        if readers:
            kept: Literal["no", "below", "both"] = saturates.get(name, "no")
            if all(is_operator(node, "Clip") for node in readers):
                kept = "both"
            elif all(is_operator(node, "Where") for node in readers) and to_array(tensor).min(initial=0) < _MASK:
                kept = "below"
            probe = Probe("value", (name,), saturates=kept)
            yield Site("constant", name, readers[0].op_type, graph.in_order(readers), name, name, probes=(probe,))


def _unjudged(graph: SiteGraph) -> Iterator[UnjudgedNorm]:
    """Nodes whose insides, or whose results, no site covers."""
    for name, node in graph.index.nodes.items():
        if subgraphs(node):
            yield UnjudgedNorm(name, f"the body of {node.op_type} is not entered")
        elif node.domain not in DEFAULT_DOMAINS:
            yield UnjudgedNorm(name, f"{node.domain}.{node.op_type} is not an operator of the ONNX standard")
        elif node.op_type in _OPAQUE:
            yield UnjudgedNorm(name, f"what {node.op_type} computes inside is not observed")
        elif any(tensor and graph.type_of(tensor) is None for tensor in node.output):
            yield UnjudgedNorm(name, "the type of its result is not known")
        elif not graph.is_activation(node.output[0]) or not graph.is_float(node.output[0]):
            continue
        elif node.op_type in NORM_OPERATORS and norm_axes(graph, node) is None:
            yield UnjudgedNorm(name, "the axes that it normalises are not known")
        elif node.op_type in _REDUCTIONS and graph.reduced_axes(node) is None:
            yield UnjudgedNorm(name, "the axes that it sums over are not known")
