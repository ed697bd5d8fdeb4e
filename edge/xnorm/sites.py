"""Find every XNorm in an ONNX graph: ReduceL2 -> Clip (the eps) -> Div by the same tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import numpy_helper

from calib.errors import InputError


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
    """
    producer = {name: node for node in model.graph.node for name in node.output}
    constants = {i.name: i for i in model.graph.initializer}
    sites = []
    for node in model.graph.node:
        if node.op_type != "Div" or node.input[1] not in producer:
            continue
        clip = producer[node.input[1]]
        norm = producer.get(clip.input[0]) if clip.op_type in ("Clip", "Max") else None
        if norm is None or norm.op_type != "ReduceL2" or norm.input[0] != node.input[0]:
            continue
        source = producer.get(node.input[0])
        axes = numpy_helper.to_array(constants[norm.input[1]]).tolist()
        nodes = (norm.name, clip.name, node.name)
        if source is not None and source.op_type == "MatMul":  # Q comes through a Reshape and a Transpose
            sites.append(XNormSite(norm.name, "kv", int(axes[0]), (source.name, *nodes)))
        else:
            sites.append(XNormSite(norm.name, "q", int(axes[0]), nodes))
    if expected is not None and len(sites) != expected:
        raise InputError(
            "the graph does not hold the XNorms that the network has",
            found=f"{len(sites)} of {expected}: {', '.join(s.name for s in sites[:6])} ...",
            next_command="ufovit build with --force, or report the exporter's version",
        )
    return tuple(sites)


def island(sites: tuple[XNormSite, ...]) -> frozenset[str]:
    """Names of the nodes that stay in FP32 when the rest of the graph is FP16: every norm, and the K^T V that feeds it."""
    return frozenset(name for site in sites for name in site.nodes)
