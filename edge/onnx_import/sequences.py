"""Sequences of tensors, as TorchScript writes chunk, split and stack, become operators on tensors.

SplitToSequence of known sizes              -> Split, and Squeeze where it drops the axis
SequenceAt of a constant position           -> the element
ConcatFromSequence                          -> Concat, of Unsqueeze where it makes a new axis
SequenceLength                              -> a constant
SequenceConstruct, -Empty, -Insert, -Erase  -> nothing: who reads the elements reads the tensors
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calib.errors import GraphError
from calib.graph import TensorType, attribute, infer_types, to_array
from edge.onnx_import.graph_edit import is_operator, prune, replace_items
from edge.onnx_import.imported import Change

_EDITING = ("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "Identity")
_READING = ("SequenceAt", "ConcatFromSequence", "SequenceLength")
_SEQUENCES = ("SplitToSequence", "SequenceMap", *_EDITING[:-1], *_READING)


def unpack_sequences(model: onnx.ModelProto) -> list[Change]:
    """Replace sequences of the main graph whose elements are known, in place; opset 13 and later. Others stay."""
    graph = model.graph
    if not any(is_operator(node, *_SEQUENCES) for node in graph.node):
        return []
    unpacking = _Unpacking(infer_types(model), {t.name: t for t in graph.initializer})
    nodes = [new for node in graph.node for new in unpacking.rewritten(node)]
    replace_items(graph.node, nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in unpacking.added.items())
    prune(model)
    return unpacking.changes


def refuse_sequences(model: onnx.ModelProto, path: Path) -> None:
    """Raise GraphError, naming the node, for a sequence that is left: no engine takes one."""
    for node in model.graph.node:
        if is_operator(node, *_SEQUENCES):
            raise GraphError(
                "the number, the sizes or the choice of the tensors in a sequence depend on the image",
                where=f"{path}, node {node.name} ({node.op_type})",
                next_command="export with chunk and split of constant sizes, or end the graph before it: --outputs NAME",
            )


class _Unpacking:
    """One walk over the nodes of a graph in order.

    Attributes:
        added: initializers for the new nodes.
        changes: what was replaced.
    """

    def __init__(self, types: Mapping[str, TensorType], constants: Mapping[str, onnx.TensorProto]) -> None:
        self._types, self._constants = types, constants
        self._elements: dict[str, list[str]] = {}  # sequence -> its tensors
        self.added: dict[str, np.ndarray] = {}
        self.changes: list[Change] = []

    def rewritten(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes in the place of one; itself where its sequence is not known."""
        if is_operator(node, "SplitToSequence"):
            new = self._split(node)
        elif is_operator(node, *_READING) and node.input[0] in self._elements:
            new = self._read(node)
        else:
            if is_operator(node, *_EDITING):
                self._edit(node)
            return [node]  # one that makes a sequence which nothing reads any more is pruned
        if new is None:
            return [node]
        self.changes.append(Change("sequence", node.name or node.output[0], f"{node.op_type} into operators on tensors"))
        return new

    def _edit(self, node: onnx.NodeProto) -> None:
        known = self._elements.get(node.input[0]) if node.input else None
        if node.op_type == "SequenceConstruct":
            self._elements[node.output[0]] = list(node.input)
        elif node.op_type == "SequenceEmpty":
            self._elements[node.output[0]] = []
        elif node.op_type == "Identity" and known is not None:
            self._elements[node.output[0]] = known
        elif node.op_type in ("SequenceInsert", "SequenceErase") and known is not None:
            inserts = node.op_type == "SequenceInsert"
            at = self._position(node, 2 if inserts else 1, len(known), default=len(known) if inserts else len(known) - 1)
            if at is not None:
                rest = known[at:] if inserts else known[at + 1 :]
                self._elements[node.output[0]] = [*known[:at], *([node.input[1]] if inserts else []), *rest]

    def _split(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        known = self._types.get(node.input[0])
        shape = None if known is None else known.shape
        axis = int(attribute(node, "axis", 0))
        if shape is None or not -len(shape) <= axis < len(shape) or (size := shape[axis]) is None:
            return None
        sizes = self._sizes(node, size)
        if sizes is None:
            return None
        name, parts = node.name or node.output[0], [f"{node.output[0]}/{i}" for i in range(len(sizes))]
        self.added[f"{name}/sizes"] = np.asarray(sizes, np.int64)
        new = [helper.make_node("Split", [node.input[0], f"{name}/sizes"], parts, name=name, axis=axis)]
        if len(node.input) < 2 and not attribute(node, "keepdims", 1):
            self.added[f"{name}/axes"] = np.asarray([axis], np.int64)
            squeezed = [f"{part}/squeezed" for part in parts]
            new += [
                helper.make_node("Squeeze", [part, f"{name}/axes"], [out], name=out)
                for part, out in zip(parts, squeezed, strict=True)
            ]
            parts = squeezed
        self._elements[node.output[0]] = parts
        return new

    def _sizes(self, node: onnx.NodeProto, size: int) -> list[int] | None:
        """The sizes of the parts along the axis; None where they are not constants that fill it."""
        if len(node.input) < 2 or not node.input[1]:
            return [1] * size
        if node.input[1] not in self._constants:
            return None
        stated = to_array(self._constants[node.input[1]])
        if stated.ndim == 0:
            step = int(stated)
            return [min(step, size - start) for start in range(0, size, step)] if step > 0 else None
        return [int(part) for part in stated] if int(stated.sum()) == size else None

    def _read(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        elements, name, output = self._elements[node.input[0]], node.name or node.output[0], node.output[0]
        if node.op_type == "SequenceLength":
            self.added[output] = np.asarray(len(elements), np.int64)
            return []
        if node.op_type == "SequenceAt":
            at = self._position(node, 1, len(elements) - 1)
            return None if at is None else [helper.make_node("Identity", [elements[at]], [output], name=name)]
        axis = int(attribute(node, "axis", 0))
        new = list(self._unsqueezed(node, elements, axis)) if attribute(node, "new_axis", 0) else []
        parts = [part.output[0] for part in new] or elements
        return [*new, helper.make_node("Concat", parts, [output], name=name, axis=axis)] if parts else None

    def _unsqueezed(self, node: onnx.NodeProto, elements: list[str], axis: int) -> Iterator[onnx.NodeProto]:
        axes = f"{node.output[0]}/axes"
        self.added[axes] = np.asarray([axis], np.int64)
        for i, element in enumerate(elements):
            out = f"{node.output[0]}/{i}"
            yield helper.make_node("Unsqueeze", [element, axes], [out], name=out)

    def _position(self, node: onnx.NodeProto, at: int, last: int, default: int | None = None) -> int | None:
        """A position of 0 to `last`, counted from the end where it is negative; None for one that is computed or outside."""
        if at >= len(node.input) or not node.input[at]:
            return default
        if node.input[at] not in self._constants:
            return None
        position = int(to_array(self._constants[node.input[at]]).reshape(()))
        position += last + 1 if position < 0 else 0
        return position if 0 <= position <= last else None
