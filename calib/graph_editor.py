"""Changes to a copy of a graph that leave every other reader of what is changed alone."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calib.graph import attribute, index_graph, to_array


class GraphEditor:
    """Edits a copy of a graph: constants per reader, nodes put behind others. Tensors keep their names.

    Args:
        model: the graph; it is copied.

    Attributes:
        model: the copy.
        index: of the graph as it came.
        seen: tensors that are read elsewhere than in the nodes of the main graph: its outputs, and what subgraphs read.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.index = index_graph(self.model)
        self.seen = _seen_elsewhere(self.model.graph)
        self._nodes = dict(zip(self.index.names, self.model.graph.node, strict=True))
        self._taken = {t.name for t in self.model.graph.initializer} | {*self.index.producers, *self.index.inputs}
        self._taken.update(self.index.names)
        self._changed: dict[str, NDArray[Any]] = {}
        self._origins: dict[str, str] = {}
        self._behind: dict[str, list[onnx.NodeProto]] = {}

    def node(self, name: str) -> onnx.NodeProto:
        """The node of a unique name, see `calib.graph.node_names`."""
        found: onnx.NodeProto = self._nodes[name]
        return found

    def constant(self, node: str, at: int) -> NDArray[Any]:
        """Present value of a constant input of a node."""
        name = self._nodes[node].input[at]
        return self._changed[name] if name in self._changed else to_array(self.index.constants[name])

    def is_constant(self, node: str, at: int) -> bool:
        """Whether a node has such an input and it is a constant."""
        inputs = self._nodes[node].input
        return at < len(inputs) and (inputs[at] in self._changed or inputs[at] in self.index.constants)

    def position(self, node: str, constant: str) -> int:
        """Which input of a node is, or was before it was changed, a constant of the graph as it came."""
        return next(i for i, name in enumerate(self._nodes[node].input) if self._origins.get(name, name) == constant)

    def set_constant(self, node: str, at: int, values: NDArray[Any], suffix: str) -> None:
        """Let a node, and no other, read these values; an input that is not there yet is appended."""
        inputs = self._nodes[node].input
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
            name = f"{wish}{count}"
        self._taken.add(name)
        return name

    def put_behind(self, tensor: str, operators: list[tuple[str, NDArray[Any]]], suffix: str) -> str:
        """A chain of binary operators with constants behind a tensor, which keeps its readers; the name of the chain's end."""
        producer = self.index.producers.get(tensor)
        key = self.index.names[producer] if producer is not None else ""
        end = tensor
        for op_type, values in operators:
            made = self.new_name(f"{tensor}/{suffix}")
            constant = self.add_constant(f"{made}/constant", values)
            self._behind.setdefault(key, []).append(
                helper.make_node(op_type, [end, constant], [made], name=self.new_name(made))
            )
            end = made
        return end

    def add_to_output(self, node: str, values: NDArray[Any]) -> None:
        """Add a constant, which broadcasts against it, to the first output of a node; its readers get the sum."""
        target = self._nodes[node]
        output = target.output[0]
        raw = self.new_name(f"{output}/unshifted")
        target.output[0] = raw
        target.name = node  # an unnamed node goes by its output, which is another one now
        constant = self.add_constant(f"{output}/shift", values)
        self._behind.setdefault(node, []).insert(
            0, helper.make_node("Add", [raw, constant], [output], name=self.new_name(f"{node}/shift"))
        )

    def finish(self) -> onnx.ModelProto:
        """The changed graph, without constants that nothing reads any more."""
        graph = self.model.graph
        nodes = list(self._behind.get("", []))
        for name, node in zip(self.index.names, graph.node, strict=True):
            nodes += [node, *self._behind.get(name, [])]
        read = tensors_read(onnx.GraphProto(node=nodes, output=graph.output))
        gone = {t.name for t in graph.initializer} - read
        nodes = [n for n in nodes if n.op_type != "Constant" or n.output[0] in read]
        initializers = [t for t in graph.initializer if t.name not in gone]
        inputs = [v for v in graph.input if v.name not in gone]  # IR version 3 lists initializers there
        del graph.node[:], graph.initializer[:], graph.input[:]
        graph.node.extend(nodes)
        graph.initializer.extend(initializers)
        graph.input.extend(inputs)
        return self.model


def tensors_read(graph: onnx.GraphProto) -> set[str]:
    """Names of all tensors that a graph, its subgraphs included, reads or returns."""
    found = {v.name for v in graph.output}
    for node in graph.node:
        found.update(node.input)
        for held in node.attribute:
            for inner in (*held.graphs, *([held.g] if held.HasField("g") else [])):
                found |= tensors_read(inner)
    return found


def _seen_elsewhere(graph: onnx.GraphProto) -> set[str]:
    """Tensors that the graph returns or that subgraphs read."""
    lone = [onnx.NodeProto(attribute=node.attribute) for node in graph.node]
    return tensors_read(onnx.GraphProto(node=lone, output=graph.output))


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


def prefix(model: onnx.ModelProto, tensors: tuple[str, ...]) -> onnx.ModelProto:
    """A copy of the graph that ends in these tensors: nodes and initializers that none of them needs are gone."""
    index = index_graph(model)
    wanted = [*tensors]
    nodes: set[int] = set()
    while wanted:
        producer = index.producers.get(wanted.pop())
        if producer is not None and producer not in nodes:
            nodes.add(producer)
            wanted += tensors_read(onnx.GraphProto(node=[model.graph.node[producer]]))
    cut = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    cut.graph.name = model.graph.name
    cut.graph.node.extend(node for i, node in enumerate(model.graph.node) if i in nodes)
    cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name in index.producers)
    read = tensors_read(cut.graph)
    gone = {t.name for t in model.graph.initializer} - read
    cut.graph.input.extend(v for v in model.graph.input if v.name not in gone)
    cut.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    return cut
