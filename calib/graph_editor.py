"""Changes to a copy of a graph that leave every other reader of what is changed alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calib.graph import attribute, index_graph, tensors_read, tensors_read_by_subgraphs, to_array


class GraphEditor:
    """Edits a copy of a graph: constants per reader, nodes put between others. Tensors keep their names.

    Args:
        model: the graph; it is copied.
        separator: stands between a name that is taken and the number that tells the new one from it.

    Attributes:
        model: the copy.
        index: of the graph as it came; its nodes are those of the copy.
        seen: tensors that are read elsewhere than in the nodes of the main graph: its outputs, and what subgraphs read.
    """

    def __init__(self, model: onnx.ModelProto, separator: str = "") -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.index = index_graph(self.model)
        graph = self.model.graph
        self.seen = {value.name for value in graph.output}.union(*map(tensors_read_by_subgraphs, graph.node))
        self._separator = separator
        self._taken = {*self.index.names, *self.index.producers, *self.index.consumers}
        self._taken.update(value.name for value in (*graph.input, *graph.initializer, *graph.node))
        self._changed: dict[str, NDArray[Any]] = {}
        self._origins: dict[str, str] = {}
        self._positions = {name: at for at, name in enumerate(self.index.names)}
        self._before: dict[int, list[onnx.NodeProto]] = {}

    def node(self, name: str) -> onnx.NodeProto:
        """The node of a unique name, see `calib.graph.node_names`."""
        return self.index.nodes[name]

    def constant(self, node: str, at: int) -> NDArray[Any]:
        """Present value of a constant input of a node."""
        name = self.node(node).input[at]
        return self._changed[name] if name in self._changed else to_array(self.index.constants[name])

    def is_constant(self, node: str, at: int) -> bool:
        """Whether a node has such an input and it is a constant."""
        inputs = self.node(node).input
        return at < len(inputs) and (inputs[at] in self._changed or inputs[at] in self.index.constants)

    def position(self, node: str, constant: str) -> int:
        """Which input of a node is, or was before it was changed, a constant of the graph as it came."""
        return next(i for i, name in enumerate(self.node(node).input) if self._origins.get(name, name) == constant)

    def set_constant(self, node: str, at: int, values: NDArray[Any], suffix: str) -> None:
        """Let a node, and no other, read these values; an input that is not there yet is appended."""
        inputs = self.node(node).input
        origin = self._origins.get(inputs[at], inputs[at]) if at < len(inputs) else f"{node}/bias"
        name = self.add_constant(f"{origin}/{suffix}", values)
        self._changed[name], self._origins[name] = values, origin
        if at < len(inputs):
            inputs[at] = name
        else:
            inputs.append(name)

    def add_constant(self, wish: str, values: NDArray[Any]) -> str:
        """A new initializer; its name."""
        name = self.new_name(wish)
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def new_name(self, wish: str) -> str:
        """A name that nothing bears yet."""
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}{self._separator}{count}"
        self._taken.add(name)
        return name

    def insert_after(self, tensor: str, *nodes: onnx.NodeProto) -> None:
        """Put nodes right behind the one that makes a tensor, after what was put there before; at the start for an input."""
        self._before.setdefault(self.index.producers.get(tensor, -1) + 1, []).extend(nodes)

    def insert_before_readers(self, tensor: str, node: onnx.NodeProto) -> None:
        """Put a node right before the first one that reads a tensor."""
        self._before.setdefault(self.index.consumers[tensor][0], []).append(node)

    def put_behind(self, tensor: str, operators: list[tuple[str, NDArray[Any]]], suffix: str) -> str:
        """A chain of binary operators with constants behind a tensor, which keeps its readers; the name of the chain's end."""
        end = tensor
        for op_type, values in operators:
            made = self.new_name(f"{tensor}/{suffix}")
            constant = self.add_constant(f"{made}/constant", values)
            self.insert_after(tensor, helper.make_node(op_type, [end, constant], [made], name=self.new_name(made)))
            end = made
        return end

    def add_to_output(self, node: str, values: NDArray[Any]) -> None:
        """Add a constant, which broadcasts against it, to the first output of a node; its readers get the sum."""
        target = self.node(node)
        output = target.output[0]
        raw = self.new_name(f"{output}/unshifted")
        target.output[0] = raw
        target.name = node  # an unnamed node goes by its output, which is another one now
        constant = self.add_constant(f"{output}/shift", values)
        adder = helper.make_node("Add", [raw, constant], [output], name=self.new_name(f"{node}/shift"))
        self._before.setdefault(self._positions[node] + 1, []).insert(0, adder)

    def finish(self, removable: Collection[str] | None = None) -> onnx.ModelProto:
        """The changed graph, without constants that nothing reads any more; of `removable` ones alone, where that is given."""
        graph = self.model.graph
        nodes: list[onnx.NodeProto] = []
        for at, node in enumerate(graph.node):
            nodes += [*self._before.get(at, ()), node]
        nodes += self._before.get(len(graph.node), ())
        read = tensors_read(nodes, graph.output)
        constants = {t.name for t in graph.initializer} | {n.output[0] for n in nodes if n.op_type == "Constant"}
        gone = (constants if removable is None else set(removable)) - read
        nodes = [n for n in nodes if n.op_type != "Constant" or n.output[0] not in gone]
        initializers = [t for t in graph.initializer if t.name not in gone]
        inputs = [v for v in graph.input if v.name not in gone]  # IR version 3 lists initializers there
        del graph.node[:], graph.initializer[:], graph.input[:]
        graph.node.extend(nodes)
        graph.initializer.extend(initializers)
        graph.input.extend(inputs)
        return self.model


def add_channels(editor: GraphEditor, node: str, vector: NDArray[Any], suffix: str) -> None:
    """Add one number per output channel to a Conv, Gemm or MatMul: into its bias where it has one, else as a new one.

    Args:
        editor: of the graph.
        node: name of the node.
        vector: (channels,), float32.
        suffix: of the names of new constants.
    """
    found = editor.node(node)
    if found.op_type == "Conv" or (found.op_type == "Gemm" and _plain(found)):
        old = editor.constant(node, 2) if editor.is_constant(node, 2) else None
        if old is not None or len(found.input) < 3:
            editor.set_constant(node, 2, vector if old is None else (old + vector).astype(old.dtype), suffix)
            return
    adder = _bias_of(editor, found, vector.size) if found.op_type == "MatMul" else None
    if adder is not None:
        name, at = adder
        old = editor.constant(name, at)
        editor.set_constant(name, at, (old + vector.reshape([1] * (old.ndim - 1) + [-1])).astype(old.dtype), suffix)
        return
    channels = vector.reshape(-1, 1, 1) if found.op_type == "Conv" else vector
    editor.add_to_output(node, channels)


def _plain(gemm: onnx.NodeProto) -> bool:
    return float(attribute(gemm, "alpha", 1.0)) == float(attribute(gemm, "beta", 1.0)) == 1.0


def _bias_of(editor: GraphEditor, matmul: onnx.NodeProto, channels: int) -> tuple[str, int] | None:
    """The addition of a bias behind a MatMul that nothing else reads: node and position of the constant."""
    output = matmul.output[0]
    readers = editor.index.consumers.get(output, ())
    if len(readers) != 1 or output in editor.seen:
        return None
    name = editor.index.names[readers[0]]
    adder = editor.node(name)
    if adder.op_type != "Add" or output not in adder.input:
        return None
    at = 1 - list(adder.input).index(output)
    if not editor.is_constant(name, at):
        return None
    shape = editor.constant(name, at).shape
    return (name, at) if shape and shape[-1] == channels and all(d == 1 for d in shape[:-1]) else None
