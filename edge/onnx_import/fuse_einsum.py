"""Einsum of two tensors -> MatMul, with Transpose and Unsqueeze where the letters are in another order.

Letters of an equation such as bhid,bhjd->bhij are of four kinds:

    batch         in both tensors and in the result         b, h
    row           in the first and in the result            i
    column        in the second and in the result           j
    contracted    in both tensors, not in the result        d: exactly one

    (outer ..., row, contracted) x (outer ..., contracted, column)  ->  (outer ..., row, column)

The last row and the last column of the result are those of the matrices; all other letters of the result are outer axes, in
its order, and an operand that lacks one has size 1 there. Quantization and TensorRT know MatMul; TensorRT reads neither an
ellipsis nor broadcasting in Einsum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_letters

import numpy as np
import onnx

from calib.graph import attribute
from edge.onnx_import.graph_rewriting import GraphRewriting
from edge.onnx_import.rewritten import Rewritten

KIND = "einsum"


@dataclass(frozen=True)
class _Letters:
    """The letters of the two tensors and of the result, and by kind; `reason` names what keeps them from being a MatMul."""

    first: str
    second: str
    result: str
    reason: str = ""

    @property
    def rows(self) -> list[str]:
        return [letter for letter in self.result if letter in self.first and letter not in self.second]

    @property
    def columns(self) -> list[str]:
        return [letter for letter in self.result if letter in self.second and letter not in self.first]

    @property
    def batch(self) -> list[str]:
        return [letter for letter in self.result if letter in self.first and letter in self.second]

    @property
    def contracted(self) -> list[str]:
        return [letter for letter in self.first if letter in self.second and letter not in self.result]


def fuse_einsums(model: onnx.ModelProto) -> list[Rewritten]:
    """Replace every Einsum that is a matrix product, in place."""
    graph, places = GraphRewriting(model), list[Rewritten]()
    for node in graph.forward():
        if node.op_type == "Einsum":
            letters = _letters(graph, node)
            into = "" if letters.reason else graph.replace(node, _matmul(graph, node, letters))
            places.append(Rewritten(KIND, graph.name(node), into, letters.reason))
    graph.finish()
    return places


def _letters(graph: GraphRewriting, node: onnx.NodeProto) -> _Letters:
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    if len(terms) != 2 or len(node.input) != 2:
        return _Letters("", "", "", f"{equation}: {len(terms)} tensors, and a MatMul takes two")
    if not arrow:  # the letters that occur once, sorted, after an ellipsis
        once = sorted(letter for letter in set(operands) - set(",.") if operands.count(letter) == 1)
        result = "".join(["..." if "..." in operands else "", *once])
    shapes = [graph.shape(name) for name in node.input]
    lengths = [
        0 if shape is None else len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True)
    ]
    if any("..." in term and shape is None for term, shape in zip(terms, shapes, strict=True)):
        return _Letters("", "", "", f"{equation}: the rank of a tensor is not known")
    spare = "".join(letter for letter in ascii_letters if letter not in equation)[: max(lengths)]
    # the axes of an ellipsis are aligned at its end, as in broadcasting
    first, second = (term.replace("...", spare[len(spare) - n :]) for term, n in zip(terms, lengths, strict=True))
    letters = _Letters(first, second, result.replace("...", spare))
    return replace(letters, reason=f"{equation}: {reason}") if (reason := _obstacle(letters)) else letters


def _obstacle(letters: _Letters) -> str:
    first, second, result = letters.first, letters.second, letters.result
    if any(len(set(term)) != len(term) for term in (first, second, result)):
        return "a letter occurs twice in one tensor"
    if set(result) != set(letters.batch + letters.rows + letters.columns):
        return "a letter of the result is in neither tensor"
    if any(letter not in second and letter not in result for letter in first) or any(
        letter not in first and letter not in result for letter in second
    ):
        return "a letter of one tensor alone is summed"
    if len(letters.contracted) != 1:
        return f"{len(letters.contracted)} letters are contracted, and a MatMul contracts one"
    return "" if letters.rows and letters.columns else "it is a product with a vector"


def _matmul(graph: GraphRewriting, node: onnx.NodeProto, letters: _Letters) -> list[onnx.NodeProto]:
    """The nodes of a product, the last of which gives the result."""
    (contracted,), row, column = letters.contracted, letters.rows[-1], letters.columns[-1]
    outer = [letter for letter in letters.result if letter not in (row, column)]
    nodes: list[onnx.NodeProto] = []
    first = _arranged(graph, node, 0, letters.first, [*outer, row, contracted], nodes)
    second = _arranged(graph, node, 1, letters.second, [*outer, contracted, column], nodes)
    nodes.append(graph.make_node("MatMul", [first, second], node))
    made = "".join([*outer, row, column])
    if made != letters.result:
        order = [made.index(letter) for letter in letters.result]
        nodes.append(graph.make_node("Transpose", [nodes[-1].output[0]], node, perm=order))
    return nodes


def _arranged(
    graph: GraphRewriting, node: onnx.NodeProto, at: int, term: str, order: Sequence[str], nodes: list[onnx.NodeProto]
) -> str:
    """An operand with its axes in `order`, of size 1 where it lacks a letter, but for leading ones."""
    own = [letter for letter in order if letter in term]
    perm = [term.index(letter) for letter in own]
    start = order.index(own[0])
    missing = [i for i, letter in enumerate(order[start:]) if letter not in term]
    tensor, values = str(node.input[at]), graph.array(node.input[at])
    if values is not None:
        if perm == sorted(perm) and not missing:
            return tensor
        return graph.add_constant(np.expand_dims(values.transpose(perm), missing), node, f"operand_{at}")
    if perm != sorted(perm):
        nodes.append(graph.make_node("Transpose", [tensor], node, perm=perm))
        tensor = nodes[-1].output[0]
    if missing:
        axes = graph.add_constant(np.array(missing, np.int64), node, f"axes_{at}")
        nodes.append(graph.make_node("Unsqueeze", [tensor, axes], node))
        tensor = nodes[-1].output[0]
    return tensor
