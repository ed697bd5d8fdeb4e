"""Remove nodes that return their input.

whatever the shapes          Identity, Dropout outside training, Cast and CastLike to the same type
where the shape is kept      Expand, Add of zeros, Where with the same choice everywhere
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import TensorType, attribute, infer_types, to_array
from edge.onnx_import.graph_edit import is_operator, prune, replace_readers
from edge.onnx_import.imported import Change

Constants = Mapping[str, NDArray[np.generic]]
_MOST_ROUNDS = 4
"""Removing one node may show the next: Cast, then Add of zeros, then Where."""


def remove_no_ops(model: onnx.ModelProto) -> list[Change]:
    """Remove them from the main graph, in place; graph outputs keep their names."""
    changes: list[Change] = []
    for _ in range(_MOST_ROUNDS):
        removed = _remove(model)
        if not removed:
            break
        changes += removed
        prune(model)
    return changes


def _remove(model: onnx.ModelProto) -> list[Change]:
    graph, changes = model.graph, []
    wanted = {name for node in graph.node if is_operator(node, "Add", "Where", "Dropout") for name in node.input}
    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer if tensor.name in wanted}
    broadcasting = {node.output[0]: source for node in graph.node if (source := _broadcast_source(node, constants))}
    types, larger = infer_types(model, 1), infer_types(model, 2) if broadcasting else {}
    for node in graph.node:
        source = _source(node, types, constants)
        wider = broadcasting.get(node.output[0])
        if (
            source is None
            and wider is not None
            and wider in node.input
            and all(_same(known, wider, node.output[0]) for known in (types, larger))
        ):
            source = wider
        if source is not None and _bypass(graph, node, source):
            changes.append(Change("removed", node.name, f"{node.op_type} that returns its input"))
    return changes


def _same(types: Mapping[str, TensorType], first: str, second: str) -> bool:
    """Whether two tensors have the same known shape."""
    shapes = [types[name].shape if name in types else None for name in (first, second)]
    return shapes[0] is not None and None not in shapes[0] and shapes[0] == shapes[1]


def _source(node: onnx.NodeProto, types: Mapping[str, TensorType], constants: Constants) -> str | None:
    """The tensor that a node returns whatever its shape; None for a node that computes."""
    source = str(node.input[0]) if node.input else ""
    if is_operator(node, "Identity"):
        return source
    if is_operator(node, "Dropout"):
        switch = node.input[2] if len(node.input) > 2 else ""
        trains = bool(switch) and (switch not in constants or bool(constants[switch].any()))
        return None if trains or any(node.output[1:]) else source
    if is_operator(node, "Cast", "CastLike") and source in types:
        like = types.get(node.input[1]) if node.op_type == "CastLike" else None
        to = attribute(node, "to", 0) if like is None else like.dtype
        return source if types[source].dtype == to else None
    return None


def _broadcast_source(node: onnx.NodeProto, constants: Constants) -> str | None:
    """The tensor that a node returns if it has the shape of the result."""
    if is_operator(node, "Expand"):
        return str(node.input[0])
    if is_operator(node, "Add"):
        for zeros, other in (node.input, reversed(node.input)):
            if zeros in constants and not constants[zeros].any():
                return str(other)
    if is_operator(node, "Where") and node.input[0] in constants:
        condition = constants[node.input[0]]
        return str(node.input[1]) if condition.all() else None if condition.any() else str(node.input[2])
    return None


def _bypass(graph: onnx.GraphProto, node: onnx.NodeProto, source: str) -> bool:
    """Let the readers of a node read its source; False where the graph's output needs the node."""
    target = node.output[0]
    results = {value.name for value in graph.output}
    if target in results:
        maker = next((other for other in graph.node if source in other.output), None)
        if maker is None or source in results:
            return False
        maker.output[:] = [target if name == source else name for name in maker.output]
        node.output[0] = ""
        replace_readers(graph, {source: target})
        return True
    node.output[0] = ""
    replace_readers(graph, {target: source})
    return True
