"""A graph as the finders of sites look at it: types, readers, views, axes."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import onnx

from calib.errors import GraphError
from calib.graph import TensorType, infer_types
from edge.onnx_import.graph_edit import is_operator
from edge.onnx_import.graph_rewriting import GraphRewriting, int_constants

VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "DepthToSpace", "SpaceToDepth")
"""Operators whose output holds the same numbers as their first input, in another order or shape."""


class SiteGraph(GraphRewriting):
    """Read only. Types that cannot be inferred are unknown, not an error: most axes are counted from the last."""

    @cached_property
    def _types(self) -> dict[str, TensorType]:
        try:
            return infer_types(self.model)
        except GraphError:
            return {}

    def type_of(self, tensor: str) -> TensorType | None:
        """The inferred type of a tensor; None where it is not known."""
        return self._types.get(tensor)

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor is known to hold FP32 numbers."""
        known = self._types.get(tensor)
        return known is not None and known.dtype == onnx.TensorProto.FLOAT

    def is_activation(self, tensor: str) -> bool:
        """Whether a tensor depends on the graph's inputs."""
        return bool(tensor) and tensor not in self.index.constant_like

    def computed_by(self, tensor: str, *operators: str) -> onnx.NodeProto | None:
        """`producer`, but None for what constants alone compute."""
        return self.producer(tensor, *operators) if self.is_activation(tensor) else None

    def plain(self, tensor: str, *, through: Sequence[str] = ("Identity", "Expand")) -> str:
        """The tensor that nodes of these operators pass on."""
        while (node := self.computed_by(tensor)) is not None and is_operator(node, *through):
            tensor = node.input[0]
        return tensor

    def nodes_reading(self, tensor: str) -> tuple[onnx.NodeProto, ...]:
        """The nodes of the main graph that read a tensor."""
        return tuple(self.index.nodes[self.index.names[at]] for at in self.index.consumers.get(tensor, ()))

    def reduced_axes(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """The negative, ascending axes that a reduction or a global pooling sums over; None where they are not known."""
        shape = self.shape(node.input[0])
        if node.op_type == "GlobalAveragePool":
            return None if shape is None else tuple(range(2 - len(shape), 0))
        axes = int_constants(self, node, "axes", 1)
        if axes is None or (shape is None and (not axes or max(axes) >= 0)):
            return None
        rank = 0 if shape is None else len(shape)
        return tuple(sorted(axis - rank if axis >= 0 else axis for axis in axes)) or tuple(range(-rank, 0))

    def in_order(self, nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
        """Their names, in graph order, each once."""
        return tuple(self.index.names[at] for at in sorted({self.index.producers[node.output[0]] for node in nodes}))
