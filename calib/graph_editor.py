"""Edit a copy of an ONNX graph: change constants for one reader only, insert nodes, add to biases and outputs."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calib.graph import attribute, index_graph, tensors_read, tensors_read_by_subgraphs, to_array

_IR_WITHOUT_LISTED_CONSTANTS = 4


class GraphEditor:
    """Edits a copy of a graph: constants per reader, nodes between others. Tensors keep their names.

    `separator` stands between a name that is taken and the number that makes the new one unique.

    Attributes:
        index: of the unchanged graph; its nodes are those of the copy.
        read_elsewhere: tensors that others than nodes of the main graph read: graph outputs, and what subgraphs read.
    """

    def __init__(self, model: onnx.ModelProto, separator: str = "") -> None:
        self.model = deepcopy(model)
        self.index = index_graph(self.model)
        graph = self.model.graph
        self.read_elsewhere = {value.name for value in graph.output}.union(*map(tensors_read_by_subgraphs, graph.node))
        self._separator = separator
        self._taken = {*self.index.names, *self.index.producers, *self.index.consumers}
        self._taken.update(value.name for value in (*graph.input, *graph.initializer, *graph.node))
        self._changed: dict[str, NDArray[Any]] = {}
        self._origins: dict[str, str] = {}
        self._before: dict[int, list[onnx.NodeProto]] = {}

    def node(self, name: str) -> onnx.NodeProto:
        """The node with a unique name, see `calib.graph.node_names`."""
        return self.index.nodes[name]

    def constant(self, node: str, at: int) -> NDArray[Any]:
        """Current value of a constant input of a node."""
        name = self.node(node).input[at]
        return self._changed[name] if name in self._changed else to_array(self.index.constants[name])

    def is_constant(self, node: str, at: int) -> bool:
        """Whether a node has an input at this position and it is a constant."""
        inputs = self.node(node).input
        return at < len(inputs) and (inputs[at] in self._changed or inputs[at] in self.index.constants)

    def position(self, node: str, constant: str) -> int:
        """Which input of a node is, or was before it was changed, a constant of the unchanged graph."""
        return next(i for i, name in enumerate(self.node(node).input) if self._origins.get(name, name) == constant)

    def set_constant(self, node: str, at: int, values: NDArray[Any], suffix: str) -> None:
        """Let a node, and no other, read these values; a missing input is appended."""
        inputs = self.node(node).input
        origin = self._origins.get(inputs[at], inputs[at]) if at < len(inputs) else f"{node}/bias"
        name = self.add_constant(f"{origin}/{suffix}", values)
        self._changed[name], self._origins[name] = values, origin
        if at < len(inputs):
            inputs[at] = name
        else:
            inputs.append(name)

    def add_constant(self, preferred: str, values: NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        name = self.new_name(preferred)
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def new_name(self, preferred: str) -> str:
        """An unused name, numbered if the preferred one is taken."""
        name, count = preferred, 1
        while name in self._taken:
            count += 1
            name = f"{preferred}{self._separator}{count}"
        self._taken.add(name)
        return name

    def insert_after(self, tensor: str, *nodes: onnx.NodeProto) -> None:
        """Insert nodes after the producer of a tensor and earlier insertions there; at the start for a graph input."""
        self._before.setdefault(self.index.producers.get(tensor, -1) + 1, []).extend(nodes)

    def insert_before_readers(self, tensor: str, node: onnx.NodeProto) -> None:
        """Insert a node before the first one that reads a tensor."""
        self._before.setdefault(self.index.consumers[tensor][0], []).append(node)

    def append_operators(self, tensor: str, operators: list[tuple[str, NDArray[Any]]], suffix: str) -> str:
        """Append a chain of binary operators with constants to a tensor, which keeps its readers; return the last output."""
        last = tensor
        for op_type, values in operators:
            output = self.new_name(f"{tensor}/{suffix}")
            constant = self.add_constant(f"{output}/constant", values)
            self.insert_after(tensor, helper.make_node(op_type, [last, constant], [output], name=self.new_name(output)))
            last = output
        return last

    def add_to_output(self, node: str, values: NDArray[Any]) -> None:
        """Add a constant that broadcasts to it to the first output of a node; its readers get the sum."""
        target = self.node(node)
        output = target.output[0]
        raw = self.new_name(f"{output}/unshifted")
        target.output[0] = raw
        target.name = node  # an unnamed node is identified by its output, which has just changed
        constant = self.add_constant(f"{output}/shift", values)
        adder = helper.make_node("Add", [raw, constant], [output], name=self.new_name(f"{node}/shift"))
        self._before.setdefault(self.index.names.index(node) + 1, []).insert(0, adder)

    def finish(self, removable: Collection[str] | None = None) -> onnx.ModelProto:
        """The edited graph without unread constants; where `removable` is given, only those of them are removed."""
        graph = self.model.graph
        nodes: list[onnx.NodeProto] = []
        for at, node in enumerate(graph.node):
            nodes += [*self._before.get(at, ()), node]
        nodes += self._before.get(len(graph.node), ())
        read = tensors_read(nodes, graph.output)
        constants = {t.name for t in graph.initializer} | {n.output[0] for n in nodes if n.op_type == "Constant"}
        unread = (constants if removable is None else set(removable)) - read
        nodes = [n for n in nodes if n.op_type != "Constant" or n.output[0] not in unread]
        initializers = [t for t in graph.initializer if t.name not in unread]
        inputs = [v for v in graph.input if v.name not in unread]
        if self.model.ir_version < _IR_WITHOUT_LISTED_CONSTANTS:  # it lists constants among the inputs, new ones too
            self.model.ir_version = _IR_WITHOUT_LISTED_CONSTANTS
            inputs = [v for v in inputs if v.name not in constants]
        del graph.node[:], graph.initializer[:], graph.input[:]
        graph.node.extend(nodes)
        graph.initializer.extend(initializers)
        graph.input.extend(inputs)
        return self.model


def order_readers(nodes: Sequence[onnx.NodeProto], readers: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes that read inner tensors of a graph, in groups: those of the latest tensors first, those of the earliest last.

    `readers` come after what they depend on, in the result only within a group: enough for ONNX Runtime, which finishes the
    branches that end last in the graph first. Appended in another order, it would run all of `nodes` before the readers, and
    hold every tensor that they read until then.
    """
    position = {name: at for at, node in enumerate(nodes) for name in node.output}
    groups: dict[int, list[onnx.NodeProto]] = defaultdict(list)
    for node in readers:
        last = max((position.get(name, -1) for name in node.input), default=-1)
        position.update(dict.fromkeys(node.output, last))
        groups[last].append(node)
    return [node for last in sorted(groups, reverse=True) for node in groups[last]]


def add_channels(editor: GraphEditor, node: str, vector: NDArray[Any], suffix: str) -> None:
    """Add a vector (channels,) float32 to the output channels of a Conv, Gemm or MatMul: into its bias, or as a new one.

    `suffix` goes into the names of new constants.
    """
    layer = editor.node(node)
    unscaled = float(attribute(layer, "alpha", 1.0)) == float(attribute(layer, "beta", 1.0)) == 1.0
    if layer.op_type == "Conv" or (layer.op_type == "Gemm" and unscaled):
        old = editor.constant(node, 2) if editor.is_constant(node, 2) else None
        if old is not None or len(layer.input) < 3:
            editor.set_constant(node, 2, vector if old is None else (old + vector).astype(old.dtype), suffix)
            return
    bias = _bias_of_matmul(editor, layer, vector.size) if layer.op_type == "MatMul" else None
    if bias is not None:
        old = editor.constant(*bias)
        editor.set_constant(*bias, (old + vector.reshape([1] * (old.ndim - 1) + [-1])).astype(old.dtype), suffix)
        return
    editor.add_to_output(node, vector.reshape(-1, 1, 1) if layer.op_type == "Conv" else vector)


def _bias_of_matmul(editor: GraphEditor, matmul: onnx.NodeProto, channels: int) -> tuple[str, int] | None:
    """The Add after a MatMul that nothing else reads: its name and the position of its constant."""
    output = matmul.output[0]
    readers = editor.index.consumers.get(output, ())
    if len(readers) != 1 or output in editor.read_elsewhere:
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
