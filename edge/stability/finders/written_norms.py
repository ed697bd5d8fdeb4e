"""Norms that are written out: XNorm, L2, RMS, layer and instance norms, and sums of squares that divide nothing.

    quotient          x / ||x||                              xnorm, or l2_norm where its axes are several or unknown
                      x / sqrt(mean x^2 + eps)               rms_norm
                      (x - mean) / sqrt(mean (x - mean)^2)   layer_norm; over all axes after the channels: instance_norm
    ||x||             ReduceL2, no quotient                  response_norm, with g / (mean g + eps) where it follows (GRN)
    sum or mean x^2   no quotient                            variance

Their stored tensors hold most of their quantities; only what a reduction adds up on the way is inside an operator.
"""

from collections.abc import Iterator

import onnx

from edge.stability.finders.draft import Draft
from edge.stability.finders.quotients import Quotient, find_quotients, guards, sum_of_squares
from edge.stability.finders.site_graph import SiteGraph
from edge.stability.finders.xnorm import XNormSite
from edge.stability.site import Eps, Probe, SiteKind


def xnorm_draft(graph: SiteGraph, site: XNormSite) -> Draft:
    """An XNorm as one of the sites."""
    nodes = tuple(graph.index.nodes[name] for name in site.nodes)
    reducer = graph.index.nodes[site.name]
    inner = _inner(reducer, site.argument, (site.axis,))
    divides = _divisors(graph, reducer, site.eps)
    return Draft("xnorm", reducer, site.output, nodes, site.argument, (site.axis,), site.eps, inner, divides)


def find_written_norms(graph: SiteGraph) -> Iterator[Draft]:
    """Every quotient of a tensor and a root of a sum or mean of its squares."""
    for quotient in find_quotients(graph):
        root, axes = quotient.root, graph.reduced_axes(quotient.root.reducer)
        if axes is None:
            continue
        kind: SiteKind = "rms_norm" if root.mean else "l2_norm"
        x, nodes, inner = quotient.numerator, quotient.nodes, _inner(root.reducer, root.argument, axes)
        centring = _centring(graph, quotient, axes)
        if centring is not None:
            x = str(centring[1].input[0])
            kind, nodes = _centred_kind(graph, axes, x), (*centring, *nodes)
            inner = (Probe("sum", (x,), axes, stored=False), *inner)
        divides = _divisors(graph, root.reducer, root.eps)
        yield Draft(kind, root.reducer, quotient.node.output[0], nodes, x, axes, root.eps, inner, divides)


def find_response_norms(graph: SiteGraph) -> Iterator[Draft]:
    """Every L2 norm, with the division by its mean where that follows."""
    for node in graph.forward():
        axes = graph.reduced_axes(node) if node.op_type == "ReduceL2" and graph.is_activation(node.input[0]) else None
        if axes is None:
            continue
        norm, x = str(node.output[0]), str(node.input[0])
        more, eps, output = _ratio_to_mean(graph, norm)
        nodes = (node, *more)
        divides = frozenset(n.output[0] for n in nodes if n.op_type in ("ReduceMean", "Add", "Max", "Clip"))
        yield Draft("response_norm", node, output, nodes, x, axes, eps, _inner(node, x, axes, divides=False), divides)


def find_variances(graph: SiteGraph) -> Iterator[Draft]:
    """Every other sum or mean of squares."""
    for node in graph.forward():
        known = sum_of_squares(graph, node.output[0])
        if known is None or known.reducer is not node:
            continue
        axes = graph.reduced_axes(node)
        if axes is not None:
            inner = _inner(node, known.argument, axes, divides=False)
            yield Draft("variance", node, node.output[0], known.nodes, known.argument, axes, (), inner)


def _centred_kind(graph: SiteGraph, axes: tuple[int, ...], x: str) -> SiteKind:
    shape = graph.shape(x)
    spatial = shape is not None and len(shape) > 3 and axes == tuple(range(2 - len(shape), 0))
    return "instance_norm" if spatial else "layer_norm"


def _inner(reducer: onnx.NodeProto, argument: str, axes: tuple[int, ...], *, divides: bool = True) -> tuple[Probe, ...]:
    """What the reduction of squares computes inside: nothing where a tensor holds its squares and its sum."""
    sums = Probe("sum of squares", (argument,), axes, stored=False, divides=divides)
    if reducer.op_type in ("ReduceL2", "ReduceSumSquare", "LpNormalization"):
        squares = Probe("square", (argument,), stored=False)
        return (squares,) if reducer.op_type == "ReduceSumSquare" else (squares, sums)
    return () if reducer.op_type == "ReduceSum" else (sums,)


def _divisors(graph: SiteGraph, reducer: onnx.NodeProto, eps: tuple[Eps, ...]) -> frozenset[str]:
    """The sum of squares, and what an eps was applied to; of one that was padded to a norm, the norm of both."""
    nodes = [reducer]
    for node in (graph.index.nodes[item.node] for item in eps):
        nodes += graph.nodes_reading(node.output[0]) if node.op_type == "Pad" else (node,)
    return frozenset(node.output[0] for node in nodes if node.op_type != "LpNormalization")


def _centring(graph: SiteGraph, quotient: Quotient, axes: tuple[int, ...]) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The mean and the subtraction where the numerator is x - mean(x) over the same axes."""
    subtraction = graph.computed_by(quotient.numerator, "Sub")
    mean = graph.computed_by(subtraction.input[1], "ReduceMean", "GlobalAveragePool") if subtraction is not None else None
    if subtraction is None or mean is None or mean.input[0] != subtraction.input[0]:
        return None
    return (mean, subtraction) if graph.reduced_axes(mean) == axes else None


def _ratio_to_mean(graph: SiteGraph, norm: str) -> tuple[tuple[onnx.NodeProto, ...], tuple[Eps, ...], str]:
    """The nodes, the eps and the result of norm / (mean(norm) + eps); no nodes, and the norm itself, where none follows."""
    for reader in graph.nodes_reading(norm):
        if reader.op_type != "Div" or reader.input[0] != norm:
            continue
        inner, nodes, eps = guards(graph, reader.input[1], "norm")
        mean = graph.computed_by(inner, "ReduceMean")
        if mean is not None and mean.input[0] == norm:
            return (mean, *nodes, reader), tuple(eps), str(reader.output[0])
    return (), (), norm
