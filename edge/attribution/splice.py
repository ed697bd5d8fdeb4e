"""A graph in which some units are computed as another graph computes them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx
from onnx import helper

from calib.graph import index_graph
from calib.graph_segments import SHAPE_OPS, prefix
from edge.attribution.graph_variants import copied
from edge.attribution.layer_spans import needed_nodes


class Splicer:
    """Takes units out of one graph and puts them into others.

    Args:
        source: an FP32 graph.
        ends: the tensors between its units.
    """

    def __init__(self, source: onnx.ModelProto, ends: Collection[str]) -> None:
        self._source, self._index = source, index_graph(source)
        self._stops = {*ends, *self._index.inputs}
        self._stored = {tensor.name: tensor for tensor in source.graph.initializer}
        self._shapes = {name for node in source.graph.node if node.op_type in SHAPE_OPS for name in node.output}

    def into(
        self, target: onnx.ModelProto, outputs: Collection[str], switch: Callable[[str], str] | None = None
    ) -> onnx.ModelProto:
        """A copy of `target` with some units as the source computes them from the tensors of `target`.

        Args:
            target: an FP32 graph with the same ends, or a part of one.
            outputs: ends of the units to take over.
            switch: end -> name of a boolean scalar, a new input of the graph; True takes the source's, and both are computed.
                None takes over at once, and what nothing needs any more is dropped.
        """
        made = copied(target)
        stops = self._stops | self._at_hand(made)
        nodes: list[onnx.NodeProto] = []
        switches: dict[str, None] = {}
        for node in list(made.graph.node):
            nodes.append(node)
            for at, end in enumerate(node.output):
                if end not in outputs:
                    continue
                node.output[at] = f"{end}/own"
                result = f"{end}/spliced" if switch else end
                nodes += self._part(end, result, stops, made)
                if switch:
                    switches[switch(end)] = None
                    nodes.append(helper.make_node("Where", [switch(end), result, f"{end}/own"], [end], name=f"{end}/switch"))
        del made.graph.node[:]
        made.graph.node.extend(nodes)
        made.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []) for name in switches)
        return made if switch else prefix(made, tuple(value.name for value in made.graph.output))

    def _at_hand(self, target: onnx.ModelProto) -> set[str]:
        """Tensors, besides ends and the image, that `target` has under the name that the source gives them.

        A part of a graph gets as inputs what follows from shapes alone, and does not have what these are the shapes of.
        """
        shapes = self._shapes & {name for node in target.graph.node for name in node.output}
        return shapes | {value.name for value in target.graph.input}

    def _part(self, end: str, result: str, stops: Collection[str], made: onnx.ModelProto) -> list[onnx.NodeProto]:
        """Nodes of the source that make one end, under names of their own; their constants go to `made`."""
        part, taken = [], {value.name for value in made.graph.initializer}

        def renamed(name: str) -> str:
            if name == end:
                return result
            return name if not name or name in stops else f"{end}:{name}"

        for at in needed_nodes(self._source, self._index, end, stops)[0]:
            node = onnx.NodeProto()
            node.CopyFrom(self._source.graph.node[at])
            for name in node.input:
                if name in self._stored and renamed(name) not in taken:
                    taken.add(renamed(name))
                    constant = made.graph.initializer.add()
                    constant.CopyFrom(self._stored[name])
                    constant.name = renamed(name)
            node.name = f"{end}:{self._index.names[at]}"
            node.input[:] = [renamed(name) for name in node.input]
            node.output[:] = [renamed(name) for name in node.output]
            part.append(node)
        return part
