"""A graph in pieces: where one tensor alone carries everything on, the graph can be cut, and each piece run by itself.

    image -> [segment 0] -> cut 1 -> [segment 1] -> cut 2 -> ... -> [segment n] -> output

A cut is a tensor through which every path from the input to the output passes, such as the residual stream between two
blocks. What depends on shapes alone (Shape, Size and all that follows from them and from constants) does not count as a
path: it is handed on beside the cut, as is a tensor whose shape alone is still to be read. A graph without cuts is one
segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from calib.errors import InputError
from calib.graph import TensorType, index_graph, infer_types, tensors_read
from calib.ort_session import GraphSession

SHAPE_OPS = ("Shape", "Size")

State = Mapping[str, NDArray[Any]]
"""Tensors handed from one segment to the next: the cut, and what shapes need."""


@dataclass(frozen=True)
class Segment:
    """The nodes between two cuts, as a graph of its own.

    Attributes:
        model: the graph; its inputs come from a state, its outputs go into the next one.
        nodes: unique names of its nodes, in graph order; they are those of the whole graph.
        passed: tensors of the state that go on as they are.
    """

    model: onnx.ModelProto
    nodes: tuple[str, ...]
    passed: tuple[str, ...]

    def advance(self, state: State, graph: GraphSession) -> dict[str, NDArray[Any]]:
        """The state behind the segment; `graph` runs its model, or another one with the same inputs and outputs."""
        return {**{name: state[name] for name in self.passed}, **graph(state)}


def split(model: onnx.ModelProto, output: str, groups: Sequence[Sequence[str]]) -> tuple[Segment, ...]:
    """Cut a graph into segments, so that each group of nodes begins as early in its segment as the cuts allow.

    Args:
        model: a graph with one input.
        output: the tensor in which the last segment ends; nodes that it does not need are left out.
        groups: names of nodes. A group whose nodes share tensors beyond constants never spans a cut.

    Raises InputError for several inputs and for nodes that the output does not depend on.
    """
    graph = _Lifetimes(prefix(_named(model), (output,)), output)
    position = {name: i for i, name in enumerate(graph.index.names)}
    lost = [name for group in groups for name in group if name not in position]
    if lost:
        raise InputError(
            "the graph's output does not depend on these nodes", where=f"output {output}", found=", ".join(lost[:4])
        )
    cuts = graph.cuts()
    starts = {max((c for c in cuts if c < min(position[n] for n in group)), default=-1) for group in groups}
    bounds = [*sorted({-1, *starts}), len(graph.names) - 1]
    types = infer_types(graph.model)
    return tuple(graph.segment(first, last, types) for first, last in pairwise(bounds))


def split_at(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, Segment]:
    """Cut a graph right behind each of these tensors, whatever else is alive there: tensor -> the segment that ends in it.

    Args:
        model: a graph with one input; what is behind the last tensor is left out.
        tensors: of the graph, each read by some node; the input is behind an empty segment.

    The result is in the order in which the graph makes the tensors. Raises InputError for several inputs.
    """
    graph = _Lifetimes(_named(model), tensors[-1])
    types = infer_types(graph.model)
    ordered = sorted(tensors, key=lambda name: graph.born[name])
    bounds = [-1, *(graph.born[name] for name in ordered)]
    return {name: graph.segment(first, last, types) for name, (first, last) in zip(ordered, pairwise(bounds), strict=True)}


def prefix(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph that ends in these tensors: nodes and initializers that none of them needs are gone."""
    index = index_graph(model)
    wanted = [*tensors]
    needed: set[int] = set()
    while wanted:
        producer = index.producers.get(wanted.pop())
        if producer is not None and producer not in needed:
            needed.add(producer)
            wanted += index.reads[producer]
    nodes = [node for i, node in enumerate(model.graph.node) if i in needed]
    unread = {t.name for t in model.graph.initializer} - tensors_read(nodes)
    inputs = [value for value in model.graph.input if value.name not in unread]
    cut = part(model, nodes, [name for name in tensors if name in index.producers], inputs)
    cut.ir_version = model.ir_version  # before version 4 the constants are among the inputs
    return cut


def part(
    model: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    outputs: Sequence[str],
    inputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A graph of some nodes of `model`, with the constants that they read."""
    nodes = list(nodes)
    read = tensors_read(nodes) - {name for node in nodes for name in node.output}
    constants = [n for n in model.graph.node if n.op_type == "Constant" and n.output[0] in read]
    piece = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions)
    piece.graph.name = model.graph.name
    piece.graph.node.extend([*constants, *nodes])
    piece.graph.input.extend(inputs)
    piece.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    piece.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    return piece


def declare(name: str, types: Mapping[str, TensorType]) -> onnx.ValueInfoProto:
    """A graph input of the type that shape inference found; float32 of any shape where it found none."""
    known = types.get(name, TensorType(onnx.TensorProto.FLOAT, None))
    kind = known.dtype or onnx.TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, None if known.shape is None else list(known.shape))


class _Lifetimes:
    """From which node to which each tensor is alive; node numbers are positions in the graph, -1 is the graph's input."""

    def __init__(self, model: onnx.ModelProto, output: str) -> None:
        self.model, self.index, self.output = model, index_graph(model), output
        self.names = self.index.names
        initializers = {t.name for t in model.graph.initializer}
        inputs = [name for name in self.index.inputs if name not in initializers]
        if len(inputs) != 1:
            raise InputError("the graph must have one input", found=", ".join(inputs))
        self.born = {inputs[0]: -1, **self.index.producers}
        for name in (*self.index.constants, *initializers):
            self.born.pop(name, None)
        self.dies = {name: i for i, read in enumerate(self.index.reads) for name in read if name in self.born}
        self.dies[output] = len(self.names)
        self.source = inputs[0]
        self.of_shapes = self._of_shapes()

    def _of_shapes(self) -> set[str]:
        """Tensors that follow from shapes and constants alone."""
        found: set[str] = set()
        for node, read in zip(self.model.graph.node, self.index.reads, strict=True):
            known = all(name in found or name not in self.born for name in read)
            if node.op_type in SHAPE_OPS or known:
                found.update(name for name in node.output if name in self.born)
        return found

    def cuts(self) -> tuple[int, ...]:
        """The nodes behind which one tensor alone is alive, neither the graph's input nor what is kept for shapes alone."""
        ends = {self.output: len(self.names)}
        for i, (node, read) in enumerate(zip(self.model.graph.node, self.index.reads, strict=True)):
            if node.op_type not in SHAPE_OPS:
                ends.update((name, max(i, ends.get(name, i))) for name in read)
        change = [0] * (len(self.names) + 2)
        for name, born in self.born.items():
            if name in ends and name not in self.of_shapes:
                change[born + 1] += 1
                change[ends[name] + 1] -= 1
        alive = list(accumulate(change))  # alive[i + 1]: behind node i
        return tuple(i for i in range(ends.get(self.source, 0), len(self.names) - 1) if alive[i + 1] == 1)

    def segment(self, first: int, last: int, types: Mapping[str, TensorType]) -> Segment:
        """The nodes behind `first` up to `last`."""
        inside = [i for i in range(first + 1, last + 1) if self.model.graph.node[i].op_type != "Constant"]
        read = frozenset().union(*(self.index.reads[i] for i in inside))
        known = [name for name, born in self.born.items() if born <= first and self.dies.get(name, -1) > first]
        kept = [name for name, born in self.born.items() if born <= last < self.dies.get(name, -1)]
        model = part(
            self.model,
            (self.model.graph.node[i] for i in inside),
            [name for name in kept if self.born[name] > first],
            [declare(name, types) for name in known if name in read],
        )
        passed = tuple(name for name in kept if self.born[name] <= first)
        return Segment(model, tuple(self.names[i] for i in inside), passed)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node bears its unique name, which a part of the graph then keeps."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name, node in zip(index_graph(model).names, copy.graph.node, strict=True):
        node.name = name
    return copy
