"""Norms that are one operator: its statistics exist inside it only, in the type in which the target computes them.

    LayerNormalization      over the axes from `axis` on     eps on the mean of squares
    RMSNormalization        the same, not centred
    InstanceNormalization   over all axes after the channels; of a reshaped tensor it is a group normalization
    GroupNormalization      the same, over the channels of a group too: bounded here over all axes but the batch
    LpNormalization, p = 2  over `axis`, no eps

A mean is summed before it is divided; so are the squares.
"""

from collections.abc import Iterator

import onnx

from calib.graph import attribute
from edge.onnx_import.graph_edit import is_operator
from edge.stability.finders.draft import Draft
from edge.stability.finders.site_graph import SiteGraph
from edge.stability.site import Eps, Probe, SiteKind

NORM_OPERATORS: dict[str, SiteKind] = {
    "LayerNormalization": "layer_norm",
    "RMSNormalization": "rms_norm",
    "InstanceNormalization": "instance_norm",
    "GroupNormalization": "group_norm",
    "LpNormalization": "l2_norm",
}


def find_norm_operators(graph: SiteGraph) -> Iterator[Draft]:
    """Every norm that is one node, with the axes that are known."""
    for node in graph.forward():
        if not is_operator(node, *NORM_OPERATORS) or (node.op_type == "LpNormalization" and int(attribute(node, "p", 2)) != 2):
            continue
        axes = norm_axes(graph, node)
        if axes is None:
            continue
        kind, x = NORM_OPERATORS[node.op_type], str(node.input[0])
        if node.op_type == "InstanceNormalization" and graph.producer(x, "Reshape") is not None:
            kind = "group_norm"
        centred = node.op_type not in ("RMSNormalization", "LpNormalization")
        eps = () if node.op_type == "LpNormalization" else (_eps(graph, node),)
        yield Draft(kind, node, node.output[0], (node,), x, axes, eps, statistics(x, axes, centred=centred))


def statistics(x: str, axes: tuple[int, ...], *, centred: bool) -> tuple[Probe, ...]:
    """What an operator computes inside, of a tensor over axes."""
    if not centred:
        return (
            Probe("square", (x,), stored=False),
            Probe("sum of squares", (x,), axes, stored=False, divides=True),
        )
    return (
        Probe("sum", (x,), axes, stored=False),
        Probe("squared deviation", (x,), axes, stored=False),
        Probe("sum of squared deviations", (x,), axes, stored=False, divides=True),
    )


def _eps(graph: SiteGraph, node: onnx.NodeProto) -> Eps:
    return Eps("added", "mean", float(attribute(node, "epsilon", 1e-5)), graph.name(node), "")


def norm_axes(graph: SiteGraph, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """The negative axes over which a norm takes its statistics; None where they are not known."""
    shape = graph.shape(node.input[0])
    rank = None if shape is None else len(shape)
    if node.op_type == "LpNormalization":
        axis = int(attribute(node, "axis", -1))
        return (axis,) if axis < 0 else None if rank is None else (axis - rank,)
    if node.op_type in ("InstanceNormalization", "GroupNormalization"):
        first = 2 if node.op_type == "InstanceNormalization" else 1
        return None if rank is None else tuple(range(first - rank, 0))
    axis = int(attribute(node, "axis", -1))
    if axis >= 0 and rank is None:
        return None
    return tuple(range(axis if axis < 0 or rank is None else axis - rank, 0))
