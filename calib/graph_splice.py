"""Replace layers of one ONNX graph by the same layers of another graph, for example INT8 layers by their float originals.

Both graphs share tensors of the same names, the ends of their layers. A layer is all nodes between its end and the ends before
it; whatever either graph has in between, such as Q/DQ or Casts, belongs to it.
"""

from collections.abc import Callable, Collection
from copy import deepcopy

import onnx
from onnx import helper

from calib.graph import index_graph
from calib.graph_segments import SHAPE_OPS, needed_nodes, prefix


class Splicer:
    """Copies layers of an FP32 graph, whose `ends` are the tensors between its layers, into other graphs."""

    def __init__(self, source: onnx.ModelProto, ends: Collection[str]) -> None:
        self._source, self._index = source, index_graph(source)
        self._stops = {*ends, *self._index.inputs}
        self._constants = {tensor.name: tensor for tensor in source.graph.initializer}
        self._shapes = {name for node in source.graph.node if node.op_type in SHAPE_OPS for name in node.output}

    def into(
        self, target: onnx.ModelProto, ends: Collection[str], switch: Callable[[str], str] | None = None
    ) -> onnx.ModelProto:
        """A copy of `target` with some layers of the source, computed from the tensors of `target`.

        Args:
            target: an FP32 graph with the same ends, or a part of one.
            ends: of the layers to replace.
            switch: end -> name of a boolean scalar, a new input of the graph; True selects the source's layer, and both are
                computed. None replaces the layers unconditionally, and nodes that are no longer needed are dropped.
        """
        spliced = deepcopy(target)
        # a part of a graph gets as inputs what depends on shapes alone, and lacks the tensors whose shapes these are
        shapes = self._shapes & {name for node in target.graph.node for name in node.output}
        stops = self._stops | shapes | {value.name for value in target.graph.input}
        nodes: list[onnx.NodeProto] = []
        switches: dict[str, None] = {}
        for node in list(spliced.graph.node):
            nodes.append(node)
            for at, end in enumerate(node.output):
                if end not in ends:
                    continue
                node.output[at] = f"{end}/own"
                result = f"{end}/spliced" if switch else end
                nodes += self._layer(end, result, stops, spliced)
                if switch:
                    switches[switch(end)] = None
                    nodes.append(helper.make_node("Where", [switch(end), result, f"{end}/own"], [end], name=f"{end}/switch"))
        del spliced.graph.node[:]
        spliced.graph.node.extend(nodes)
        spliced.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []) for name in switches)
        return spliced if switch else prefix(spliced, tuple(value.name for value in spliced.graph.output))

    def _layer(self, end: str, result: str, stops: Collection[str], target: onnx.ModelProto) -> list[onnx.NodeProto]:
        """The source's nodes of one layer, under unique new names; their constants are added to `target`."""
        nodes, taken = [], {value.name for value in target.graph.initializer}

        def renamed(name: str) -> str:
            if name == end:
                return result
            return name if not name or name in stops else f"{end}:{name}"

        for at in needed_nodes(self._index, [end], stops):
            node = deepcopy(self._source.graph.node[at])
            for name in node.input:
                if name in self._constants and renamed(name) not in taken:
                    taken.add(renamed(name))
                    constant = deepcopy(self._constants[name])
                    constant.name = renamed(name)
                    target.graph.initializer.append(constant)
            node.name = f"{end}:{self._index.names[at]}"
            node.input[:] = [renamed(name) for name in node.input]
            node.output[:] = [renamed(name) for name in node.output]
            nodes.append(node)
        return nodes
