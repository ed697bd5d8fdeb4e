"""Find every XNorm in an ONNX graph: ReduceL2 -> Clip (the eps) -> Div by the same tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from calib.errors import InputError
from calib.graph import GraphIndex, attribute, index_graph, to_array


@dataclass(frozen=True)
class XNormSite:
    """One XNorm, by the names of its nodes.

    Attributes:
        name: the ReduceL2 node.
        operand: "q" when a linear layer feeds it, "kv" when a product of two activations (K^T V) does.
        axis: the normalised axis, negative.
        nodes: the norm's own nodes in graph order: ReduceL2, Clip, Div; for "kv" preceded by the MatMul that feeds them.
    """

    name: str
    operand: Literal["q", "kv"]
    axis: int
    nodes: tuple[str, ...]


def find_sites(model: onnx.ModelProto, expected: int | None = None) -> tuple[XNormSite, ...]:
    """Every XNorm of a graph in graph order.

    Args:
        model: a graph of this toolkit, with or without Q/DQ.
        expected: the number that the network must have; another one raises InputError, because a missed site would be a
            norm that nobody looks after.

    Raises InputError also for a norm over no constant axis, or over more than one.
    """
    producer = {name: node for node in model.graph.node for name in node.output}
    index = index_graph(model)
    sites = []
    for node in model.graph.node:
        if node.op_type != "Div" or node.input[1] not in producer:
            continue
        clip = producer[node.input[1]]
        norm = producer.get(clip.input[0]) if clip.op_type in ("Clip", "Max") else None
        if norm is None or norm.op_type != "ReduceL2" or norm.input[0] != node.input[0]:
            continue
        source = producer.get(node.input[0])
        axis = _axis(norm, index)
        nodes = (norm.name, clip.name, node.name)
        if source is not None and source.op_type == "MatMul":  # Q comes through a Reshape and a Transpose
            sites.append(XNormSite(norm.name, "kv", axis, (source.name, *nodes)))
        else:
            sites.append(XNormSite(norm.name, "q", axis, nodes))
    if expected is not None and len(sites) != expected:
        raise InputError(
            "the graph does not hold the XNorms that the network has",
            found=f"{len(sites)} of {expected}: {', '.join(s.name for s in sites[:6])} ...",
            next_command="ufovit build with --force, or report the exporter's version",
        )
    return tuple(sites)


def _axis(norm: onnx.NodeProto, index: GraphIndex) -> int:
    """The one axis of a ReduceL2: an attribute before opset 18, a constant input since."""
    axes = attribute(norm, "axes", [])
    if len(norm.input) > 1 and norm.input[1] in index.constants:
        axes = to_array(index.constants[norm.input[1]]).tolist()
    if len(axes) != 1:
        raise InputError("XNorm without one constant axis", where=norm.name, found=axes)
    return int(axes[0])


def island(sites: tuple[XNormSite, ...]) -> frozenset[str]:
    """Names of the nodes that stay in FP32 when the rest of the graph is FP16: every norm, and the K^T V that feeds it."""
    return frozenset(name for site in sites for name in site.nodes)
