"""Find the two products of every softmax attention, softmax(Q K^T) V, and the layers that read it, to keep its kernel whole.

TensorRT-RTX computes both products in one kernel, but only in one type, and in INT8 only where the result is quantized, too:
the products leave INT8 together, and a layer that reads the result (the projection) only after them. Else each attention takes
five steps more (vit_tiny, RTX 1.7.1).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from calib.graph import GraphIndex, index_graph
from calib.metrics import SQNR_CAP_DB
from calib.sensitivity import GroupNoise

_BETWEEN = frozenset(
    ("Add", "Cast", "Div", "Dropout", "Identity", "Mul", "Reshape", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where")
)
"""Operators between a product and its softmax: scale, mask, bias, layout."""


def attention_products(model: onnx.ModelProto) -> tuple[tuple[str, str], ...]:
    """Names of the MatMuls before and after each Softmax, with nothing but elementwise operators and layouts between."""
    index = index_graph(model)
    return tuple(
        (first, second)
        for name, node in index.nodes.items()
        if node.op_type == "Softmax"
        for first in _nearest(index, name, back=True)
        for second in _nearest(index, name, back=False)
    )


def join_attention(noises: Sequence[GroupNoise], model: onnx.ModelProto) -> list[GroupNoise]:
    """The groups, those of the two products of an attention as one, in the order of their first nodes; noise adds up."""
    joined = list(range(len(noises)))
    group_of = {node: at for at, group in enumerate(noises) for node in group.nodes}
    for products in attention_products(model):
        at = [joined[group_of[node]] for node in products if node in group_of]
        joined = [min(at) if root in at else root for root in joined]
    parts = [[noise for noise, root in zip(noises, joined, strict=True) if root == at] for at in dict.fromkeys(joined)]
    return [_joined(groups) if len(groups) > 1 else groups[0] for groups in parts]


def readers_of_attention(noises: Sequence[GroupNoise], model: onnx.ModelProto) -> dict[int, frozenset[int]]:
    """Number of a group that reads attentions, of those that `join_attention` returns -> numbers of their groups."""
    index = index_graph(model)
    group_of = {node: at for at, group in enumerate(noises) for node in group.nodes}
    after: dict[int, frozenset[int]] = {}
    for _, second in attention_products(model):
        for reader in _nearest(index, second, back=False):
            pair = (group_of.get(reader), group_of.get(second))
            if pair[0] is not None and pair[1] is not None and pair[0] != pair[1]:
                after[pair[0]] = after.get(pair[0], frozenset()) | {pair[1]}
    return after


def _joined(groups: Sequence[GroupNoise]) -> GroupNoise:
    noise = sum(10 ** (-group.isolated_db / 10) for group in groups)
    decibels = float(np.clip(-10 * np.log10(noise), -SQNR_CAP_DB, SQNR_CAP_DB))
    return GroupNoise(tuple(node for group in groups for node in group.nodes), sum(group.macs for group in groups), decibels)


def _nearest(index: GraphIndex, start: str, *, back: bool) -> Iterator[str]:
    """The MatMuls from a node towards the inputs of the graph, or its outputs."""
    pending, seen = [index.names.index(start)], set[int]()
    while pending:
        at = pending.pop()
        node = index.nodes[index.names[at]]
        if back:
            steps = [
                index.producers[tensor]
                for tensor in node.input
                if tensor in index.producers and tensor not in index.constant_like
            ]
        else:
            steps = [reader for tensor in node.output for reader in index.consumers.get(tensor, ())]
        for step in (step for step in steps if step not in seen):
            seen.add(step)
            if index.nodes[index.names[step]].op_type == "MatMul":
                yield index.names[step]
            elif index.nodes[index.names[step]].op_type in _BETWEEN:
                pending.append(step)
