"""Replace groups of nodes in a graph by others that compute the same.

A group is replaced at its root, the node whose output it computes: new nodes take over that output under its name, and what
nothing reads any more is removed. Tensors of the group that other nodes, subgraphs or the graph's outputs read stay, with the
nodes that compute them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calib.graph import TensorType, attribute, index_graph, infer_types, tensors_read, to_array
from edge.onnx_import.graph_edit import DEFAULT_DOMAINS, is_operator

Array = NDArray[Any]


class GraphRewriting:
    """Looks at a graph as it was, collects replacements, and carries them out in `finish`.

    Attributes:
        index: of the graph before any replacement.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.index = model, index_graph(model)
        graph = model.graph
        self._reads = Counter(value.name for value in graph.output)
        for node in graph.node:
            self._reads.update(_read_by(node))
        self._dead: set[str] = set()
        self._new: dict[int, Sequence[onnx.NodeProto]] = {}
        self._constants: dict[str, Array] = {}
        self._taken = {*self.index.names, *self.index.producers, *self.index.consumers}
        self._taken.update(value.name for value in (*graph.input, *graph.initializer, *graph.node))

    @cached_property
    def _types(self) -> dict[str, TensorType]:
        return infer_types(self.model)

    def forward(self) -> Iterator[onnx.NodeProto]:
        """The nodes of the ONNX standard that are still needed, first to last."""
        return self._needed(self.index.names)

    def backward(self) -> Iterator[onnx.NodeProto]:
        """The nodes that are still needed, last to first: of groups that contain each other, the largest comes first."""
        return self._needed(self.index.names[::-1])

    def _needed(self, names: Sequence[str]) -> Iterator[onnx.NodeProto]:
        for name in names:
            node = self.index.nodes[name]
            if (
                node.domain in DEFAULT_DOMAINS
                and name not in self._dead
                and self.index.producers.get(node.output[0]) not in self._new
            ):
                yield node

    def name(self, node: onnx.NodeProto) -> str:
        """The unique name of a node."""
        return self.index.names[self.index.producers[node.output[0]]]

    def producer(self, tensor: str, *operators: str) -> onnx.NodeProto | None:
        """The node that computes a tensor, if it is of one of these operators (of any, where none is given)."""
        node = self.index.producer(tensor)
        return node if node is not None and (not operators or is_operator(node, *operators)) else None

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is a constant."""
        return tensor in self.index.constants

    def array(self, tensor: str) -> Array | None:
        """The values of a constant; None for anything else."""
        return to_array(self.index.constants[tensor]) if tensor in self.index.constants else None

    def scalar(self, tensor: str) -> float | None:
        """The value of a constant of one element and at most one axis; None for anything else."""
        constant = self.index.constants.get(tensor)
        return float(to_array(constant).reshape(-1)[0]) if constant is not None and list(constant.dims) in ([], [1]) else None

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """The inferred shape of a tensor; None for an unknown rank."""
        return self._types[tensor].shape if tensor in self._types else None

    def is_read_once(self, tensor: str) -> bool:
        """Whether one node of the main graph reads a tensor, and nothing else does."""
        return self._reads[tensor] == 1 and tensor in self.index.consumers

    def reader(self, tensor: str) -> onnx.NodeProto | None:
        """The one reader of a tensor; None for several or none."""
        readers = self.index.consumers.get(tensor, ())
        return self.index.nodes[self.index.names[readers[0]]] if len(readers) == 1 and self.is_read_once(tensor) else None

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes of the main graph that read a tensor; none where a subgraph or an output of the graph reads it, too."""
        nodes = [self.index.nodes[self.index.names[at]] for at in self.index.consumers.get(tensor, ())]
        return nodes if self._reads[tensor] == sum(list(node.input).count(tensor) for node in nodes) else []

    def add_constant(self, values: Array, near: onnx.NodeProto, role: str) -> str:
        """A new initializer named after a node and its role there; float64 becomes float32."""
        name = self._unique(f"{_scope(self.name(near))}{role}")
        self._constants[name] = values.astype(np.float32) if values.dtype == np.float64 else values
        return name

    def make_node(self, op_type: str, inputs: Sequence[str], near: onnx.NodeProto, **attributes: Any) -> onnx.NodeProto:
        """A new node, named by its operator in the scope of the node `near`, with one new output."""
        name = self._unique(f"{_scope(self.name(near))}{op_type}")
        return helper.make_node(op_type, inputs, [self._unique(f"{name}_output")], name=name, **attributes)

    def copy_node(self, node: onnx.NodeProto, inputs: Sequence[str], role: str = "") -> onnx.NodeProto:
        """A node with other inputs and new outputs, in place of one that nothing reads any more: under the same name, or, as
        one of several in its place, followed by a role.
        """
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = self._unique(f"{self.name(node)}/{role}") if role else self.name(node)
        copy.input[:] = inputs
        copy.output[:] = [self._unique(name) for name in node.output]
        return copy

    def replace(self, root: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> str:
        """Let `nodes`, in order, compute the output of `root`: the last one's output gets its name. Its name is returned."""
        nodes[-1].output[0] = root.output[0]
        for node in nodes:
            self._reads.update(_read_by(node))
        self._new[self.index.producers[root.output[0]]] = nodes
        self._forget(_read_by(root))
        return str(nodes[-1].name)

    def _forget(self, tensors: Sequence[str]) -> None:
        """Take back reads; a node whose outputs nothing reads is dead, and what it reads is read once less."""
        pending = list(tensors)
        while pending:
            tensor = pending.pop()
            self._reads[tensor] -= 1
            position = self.index.producers.get(tensor)
            if position is None or position in self._new or self.index.names[position] in self._dead:
                continue
            node = self.index.nodes[self.index.names[position]]
            if not any(self._reads[output] for output in node.output if output):
                self._dead.add(self.index.names[position])
                pending += _read_by(node)

    def finish(self) -> None:
        """Carry out the replacements in the model itself. Initializers and value infos that became unread are removed."""
        graph = self.model.graph
        if not self._new:
            return
        nodes: list[onnx.NodeProto] = []
        for at, name in enumerate(self.index.names):
            if at in self._new:
                nodes += self._new[at]
            elif name not in self._dead:
                nodes.append(self.index.nodes[name])
        before, read = tensors_read(graph.node, graph.output), tensors_read(nodes, graph.output)
        unread = before - read
        tensors = read | {output for node in nodes for output in node.output}
        initializers = [t for t in graph.initializer if t.name not in unread]
        initializers += [numpy_helper.from_array(values, name) for name, values in self._constants.items() if name in read]
        inputs = [v for v in graph.input if v.name not in unread or not any(t.name == v.name for t in graph.initializer)]
        infos = [v for v in graph.value_info if v.name in tensors]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:], graph.initializer[:], graph.input[:], graph.value_info[:]
        graph.node.extend(kept)
        graph.initializer.extend(initializers)
        graph.input.extend(inputs)
        graph.value_info.extend(infos)

    def _unique(self, preferred: str) -> str:
        name, count = preferred, 0
        while name in self._taken:
            count += 1
            name = f"{preferred}_{count}"
        self._taken.add(name)
        return name


def _read_by(node: onnx.NodeProto) -> list[str]:
    return [name for name in node.input if name] + sorted(tensors_read([node]) - set(node.input))


def _scope(name: str) -> str:
    """`blocks.0/norm/Div_1` -> `blocks.0/norm/`, `scores` -> `scores/`."""
    return f"{name.rpartition('/')[0]}/" if name.rpartition("/")[0] else f"{name.strip('/')}/"


def int_constants(graph: GraphRewriting, node: onnx.NodeProto, name: str, position: int) -> list[int] | None:
    """Integers that newer opsets take as an input and older ones as an attribute, such as axes; None if not constant."""
    if position < len(node.input) and node.input[position]:
        values = graph.array(node.input[position])
        return None if values is None else [int(value) for value in values.reshape(-1)]
    return [int(value) for value in attribute(node, name, [])]
