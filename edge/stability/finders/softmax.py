"""Softmax and its logits, from the product that computes them.

    Softmax( mask + scale * Q K^T )      the product, what scales it and what masks it belong to the site

Softmax subtracts the maximum first, so that only its logits can overflow. A mask of -3.4e38 or -infinity does not: from where
it is applied, minus infinity is what it means.
"""

from collections.abc import Iterator
from typing import Literal

import onnx

from edge.onnx_import.graph_edit import is_operator
from edge.stability.finders.draft import Draft
from edge.stability.finders.site_graph import VIEWS, SiteGraph

_DEEPEST = 12
"""Nodes between a product and its softmax: a scale, one or two masks, and their views."""


def find_softmaxes(graph: SiteGraph) -> Iterator[Draft]:
    """Every Softmax and LogSoftmax."""
    for node in graph.forward():
        if not is_operator(node, "Softmax", "LogSoftmax") or not graph.is_activation(node.input[0]):
            continue
        chain, saturates = _logits(graph, node)
        yield Draft("softmax", node, node.output[0], (*chain, node), node.input[0], saturates=saturates)


def _logits(graph: SiteGraph, softmax: onnx.NodeProto) -> tuple[list[onnx.NodeProto], dict[str, Literal["below", "both"]]]:
    """The nodes from the softmax back to the product of two activations, and the tensors that hold a mask."""
    chain: list[onnx.NodeProto] = []
    saturates: dict[str, Literal["below", "both"]] = {}
    tensor, masked = str(softmax.input[0]), []
    while len(chain) < _DEEPEST and (node := graph.computed_by(tensor)) is not None:
        if node.op_type == "MatMul":
            if all(map(graph.is_activation, node.input)):
                chain.append(node)
            break
        if is_operator(node, "Add", "Where"):
            operands = [str(name) for name in node.input[-2:]]
            logits = max(operands, key=lambda name: (_has_product(graph, name), graph.is_activation(name)))
            if _has_product(graph, operands[0]) and _has_product(graph, operands[1]):
                break  # a sum of two products is neither masked
            masked += [str(softmax.input[0]), *(n.output[0] for n in chain), node.output[0]]
            (mask,) = [name for name in operands if name != logits] or [logits]
            masked += _upstream(graph, mask)
        elif is_operator(node, *VIEWS, "Mul", "Div", "Cast"):
            logits = next((str(name) for name in node.input[:2] if graph.is_activation(name)), "")
        else:
            break
        chain.append(node)
        tensor = logits
    if not chain or chain[-1].op_type != "MatMul":
        chain = []
    saturates.update((name, "below") for name in masked)
    return chain, saturates


def _has_product(graph: SiteGraph, tensor: str) -> bool:
    """Whether a product of activations leads to a tensor through scales, masks and views."""
    pending = [(tensor, 0)]
    while pending:
        name, depth = pending.pop()
        node = graph.computed_by(name) if depth < _DEEPEST else None
        if node is not None and node.op_type in ("MatMul", "Conv", "Gemm"):
            return True
        if node is not None and is_operator(node, *VIEWS, "Add", "Mul", "Div", "Where"):
            pending += [(str(name), depth + 1) for name in node.input if name]
    return False


def _upstream(graph: SiteGraph, mask: str) -> list[str]:
    """A mask, and what computes it from other tensors one by one, as far as nothing else reads it."""
    tensors, pending = [], [mask]
    while pending:
        tensor = pending.pop()
        tensors.append(tensor)
        node = graph.producer(tensor)
        if node is not None and is_operator(node, *VIEWS, "Mul", "Sub", "Where", "Expand", "Cast", "Slice", "Add"):
            pending += [str(n) for n in node.input if n and len(graph.index.consumers.get(n, ())) <= 1]
    return tensors
