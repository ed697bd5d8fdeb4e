"""Split an ONNX graph into segments, and run it with one group of layers replaced from the last cut before the group on.

    image -> [segment 0] -> cut 1 -> [segment 1] -> cut 2 -> ... -> [segment n] -> output

A cut is a tensor through which every path from the input to the output passes, such as the residual stream between two
blocks. What depends on shapes alone (Shape, Size and everything computed from them and from constants) does not count as a
path: it is passed on beside the cut, as is a tensor of which only the shape is still to be read. A graph without cuts is one
segment.

`SegmentRuns` replaces one segment at a time by another graph with the same inputs and outputs, in which a group is quantized or
taken from another graph; the segments after it are unchanged, and their sessions are opened once. For every image only the
tensors at one cut are kept in memory.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calib.errors import GraphError
from calib.graph import GraphIndex, TensorType, index_graph, infer_types, node_names, tensors_read
from calib.ort_session import GraphSession

SHAPE_OPS = ("Shape", "Size")

State = Mapping[str, NDArray[Any]]
"""Tensors passed from one segment to the next: the cut, and what shapes need."""
States = list[dict[str, NDArray[Any]]]
"""The state of every batch."""
Group = tuple[str, ...]
"""Names of its nodes, in graph order."""
Exchange = Callable[[Group, onnx.ModelProto], onnx.ModelProto]
"""A group, and the graph of its segment -> a graph with the same inputs and outputs that runs in its place."""


@dataclass(frozen=True)
class Segment:
    """The nodes between two cuts, as a graph of its own.

    Attributes:
        model: the graph; its inputs come from a state, its outputs go into the next one.
        nodes: unique names of its nodes in the whole graph, in graph order.
        passed: tensors of the state that are passed on unchanged.
        cut: the tensor through which every path to an output that is still to be computed passes after it; "" without one.
    """

    model: onnx.ModelProto
    nodes: tuple[str, ...]
    passed: tuple[str, ...]
    cut: str

    def advance(self, state: State, graph: GraphSession) -> dict[str, NDArray[Any]]:
        """The state after the segment; `graph` runs its model, or another one with the same inputs and outputs."""
        return {**{name: state[name] for name in self.passed}, **graph(state)}


def split(model: onnx.ModelProto, outputs: Sequence[str], groups: Sequence[Sequence[str]]) -> tuple[Segment, ...]:
    """Cut a graph into segments, so that each group of nodes begins as early in its segment as the cuts allow.

    Args:
        model: a graph with one input.
        outputs: tensors that the last segment or an earlier one computes; nodes that none of them needs are left out.
        groups: names of nodes. A group whose nodes share tensors other than constants never spans a cut.

    Raises GraphError for several inputs and for nodes that no output depends on.
    """
    graph = _Lifetimes(prefix(_with_unique_names(model), outputs), outputs)
    position = {name: i for i, name in enumerate(graph.index.names)}
    unused = [name for group in groups for name in group if name not in position]
    if unused:
        what = "no output of the graph depends on these nodes"
        raise GraphError(what, where=f"outputs {', '.join(outputs)}", found=", ".join(unused[:4]))
    cuts = graph.cuts()
    starts = {max((c for c in cuts if c < min(position[n] for n in group)), default=-1) for group in groups}
    bounds = [*sorted({-1, *starts}), len(graph.names) - 1]
    return tuple(graph.segment(first, last) for first, last in pairwise(bounds))


def split_at(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, Segment]:
    """Cut a graph right after each of these tensors, whatever else is alive there: tensor -> the segment that ends in it.

    Args:
        model: a graph with one input; nodes after the last tensor are left out.
        tensors: of the graph, each read by some node; the segment of the graph's input is empty.

    The result is in the order in which the graph computes the tensors. Raises GraphError for several inputs.
    """
    graph = _Lifetimes(_with_unique_names(model), tensors[-1:])
    ordered = sorted(tensors, key=lambda name: graph.born[name])
    bounds = [-1, *(graph.born[name] for name in ordered)]
    return {name: graph.segment(first, last) for name, (first, last) in zip(ordered, pairwise(bounds), strict=True)}


def needed_nodes(index: GraphIndex, ends: Iterable[str], stops: Collection[str] = ()) -> list[int]:
    """Numbers, ascending, of all nodes needed to compute `ends` from `stops`, those of shapes and constants included."""
    pending = [*ends]
    needed: set[int] = set()
    while pending:
        producer = index.producers.get(pending.pop())
        if producer is not None and producer not in needed:
            needed.add(producer)
            pending += [name for name in index.reads[producer] if name not in stops]
    return sorted(needed)


def prefix(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph that ends in these tensors, without nodes and initializers that none of them needs."""
    index = index_graph(model)
    nodes = [model.graph.node[i] for i in needed_nodes(index, tensors)]
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
    graph = onnx.GraphProto(
        name=model.graph.name,
        node=[*constants, *nodes],
        input=inputs,
        output=[onnx.ValueInfoProto(name=name) for name in outputs],
        initializer=[t for t in model.graph.initializer if t.name in read],
    )
    version = max(model.ir_version, 4)
    return onnx.ModelProto(ir_version=version, opset_import=model.opset_import, functions=model.functions, graph=graph)


@dataclass(frozen=True)
class ExchangedRun:
    """The states after segment `stop - 1`, which is at or after that of a group, with that group alone exchanged."""

    group: Group
    stop: int
    states: States


class SegmentRuns:
    """A float graph with one input in ONNX Runtime, segment by segment.

    `groups` and `outputs` see `split`, by default the first output; `batches` are arrays (B, ...) as the graph takes them.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        groups: Sequence[Group],
        batches: Iterable[NDArray[Any]],
        threads: int,
        outputs: Sequence[str] = (),
    ) -> None:
        self._model, self._threads = model, threads
        self.outputs = tuple(outputs) or (model.graph.output[0].name,)
        self.segments = split(model, self.outputs, groups)
        segment_of = {name: at for at, segment in enumerate(self.segments) for name in segment.nodes}
        self._spans = {group: sorted({segment_of[name] for name in group}) for group in groups}
        self._sessions: dict[int, GraphSession] = {}
        (source,) = (value.name for value in self.segments[0].model.graph.input)
        self._start: States = [{source: batch} for batch in batches]
        self._unchanged = 0, self._start

    def stops(self, count: int) -> tuple[int, ...]:
        """At most `count` numbers of segments after which about equally many groups have begun, the end not among them."""
        begins = sorted(span[0] for span in self._spans.values())
        every = len(begins) / (count + 1)
        ends = {begins[int(every * part)] for part in range(1, count + 1)} if begins else set()
        return tuple(sorted(stop for stop in ends if stop > 0 and self.segments[stop - 1].cut))

    def output(self) -> NDArray[Any]:
        """The first output of the unchanged graph, (n, ...) of all batches."""
        return self._joined(self.unchanged())

    def exchanged(self, exchange: Exchange) -> Iterator[tuple[Group, NDArray[Any]]]:
        """Each group, in the order of their first segments, and the first output with it exchanged."""
        for run in self.runs(exchange):
            yield run.group, self._joined(run.states)

    def runs(self, exchange: Exchange, stops: Collection[int] = ()) -> Iterator[ExchangedRun]:
        """Each group, in the order of their first segments, with it alone exchanged, up to the next stop or the end."""
        at, states = 0, self._start
        for group, span in sorted(self._spans.items(), key=lambda item: item[1][0]):
            at, states = span[0], self.advance(at, states, span[0])
            inside_one = len(span) == 1  # else another group needs a cut inside this one: run all that follows
            segment = self.segments[at] if inside_one else split(self._model, self.outputs, [group])[-1]
            session = self._open(exchange(group, segment.model), at)
            after = [segment.advance(state, session) for state in states]
            following = at + 1 if inside_one else len(self.segments)
            stop = min((stop for stop in stops if stop >= following), default=len(self.segments))
            yield ExchangedRun(group, stop, self.advance(following, after, stop))

    def advance(self, at: int, states: States, stop: int | None = None) -> States:
        """The states before segment `stop`, by default those with all outputs, from those before segment `at`."""
        for following in range(at, len(self.segments) if stop is None else stop):
            states = self._step(following, states)
        return states

    def unchanged(self, stop: int | None = None) -> States:
        """The states of the unchanged graph before segment `stop`, by default those with all outputs; best asked in order."""
        stop = len(self.segments) if stop is None else stop
        at, states = self._unchanged if self._unchanged[0] <= stop else (0, self._start)
        self._unchanged = stop, self.advance(at, states, stop)
        return self._unchanged[1]

    def _joined(self, states: States) -> NDArray[Any]:
        return np.concatenate([state[self.outputs[0]] for state in states])

    def _step(self, at: int, states: States) -> States:
        """The states after segment `at`, unchanged."""
        segment = self.segments[at]
        if at not in self._sessions:
            self._sessions[at] = self._open(segment.model, at)
        return [segment.advance(state, self._sessions[at]) for state in states]

    def _open(self, model: onnx.ModelProto, at: int) -> GraphSession:
        return GraphSession(model, threads=self._threads, where=f"segment {at}")


class _Lifetimes:
    """First and last node of each tensor's life; node numbers are positions in the graph, -1 is the graph's input."""

    def __init__(self, model: onnx.ModelProto, outputs: Sequence[str]) -> None:
        self.model, self.index = model, index_graph(model)
        self.names = self.index.names
        initializers = {t.name for t in model.graph.initializer}
        inputs = [name for name in self.index.inputs if name not in initializers]
        if len(inputs) != 1:
            raise GraphError("the graph must have one input", found=", ".join(inputs))
        self.born = {inputs[0]: -1, **self.index.producers}
        for name in (*self.index.constants, *initializers):
            self.born.pop(name, None)
        self.dies = {name: i for i, read in enumerate(self.index.reads) for name in read if name in self.born}
        self.dies |= dict.fromkeys(outputs, len(self.names))
        self.source, self.types = inputs[0], infer_types(model)
        self.of_shapes: set[str] = set()  # tensors computed from shapes and constants alone
        for node, read in zip(model.graph.node, self.index.reads, strict=True):
            if node.op_type in SHAPE_OPS or all(name in self.of_shapes or name not in self.born for name in read):
                self.of_shapes.update(name for name in node.output if name in self.born)
        self.last_read = {  # of the values: finished outputs, and what only the shape is still to be read of, are not a path
            name: i
            for i, (node, read) in enumerate(zip(model.graph.node, self.index.reads, strict=True))
            if node.op_type not in SHAPE_OPS
            for name in read
            if name in self.born and name not in self.of_shapes
        }

    def cuts(self) -> tuple[int, ...]:
        """The nodes after which a single tensor is alive, other than the graph's input and what is kept for shapes alone."""
        change = [0] * (len(self.names) + 2)
        for name, last in self.last_read.items():
            change[self.born[name] + 1] += 1
            change[last + 1] -= 1
        alive = list(accumulate(change))  # alive[i + 1]: after node i
        return tuple(i for i in range(self.last_read.get(self.source, 0), len(self.names) - 1) if alive[i + 1] == 1)

    def segment(self, first: int, last: int) -> Segment:
        """The nodes after `first` up to `last`."""
        inside = [i for i in range(first + 1, last + 1) if self.model.graph.node[i].op_type != "Constant"]
        read = frozenset().union(*(self.index.reads[i] for i in inside))
        known = [name for name, born in self.born.items() if born <= first and self.dies.get(name, -1) > first]
        kept = [name for name, born in self.born.items() if born <= last < self.dies.get(name, -1)]
        model = part(
            self.model,
            (self.model.graph.node[i] for i in inside),
            [name for name in kept if self.born[name] > first],
            [self._declared(name) for name in known if name in read],
        )
        passed = tuple(name for name in kept if self.born[name] <= first)
        alive = [name for name in kept if self.last_read.get(name, -1) > last]
        return Segment(model, tuple(self.names[i] for i in inside), passed, alive[0] if len(alive) == 1 else "")

    def _declared(self, name: str) -> onnx.ValueInfoProto:
        """A graph input of the inferred type; float32 of any shape where none was inferred."""
        known = self.types.get(name, TensorType(onnx.TensorProto.FLOAT, None))
        return helper.make_tensor_value_info(name, known.dtype or onnx.TensorProto.FLOAT, known.shape)


def _with_unique_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has its unique name, which a part of the graph then keeps."""
    named = deepcopy(model)
    for name, node in zip(node_names(model.graph.node), named.graph.node, strict=True):
        node.name = name
    return named
