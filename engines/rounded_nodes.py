"""Add nodes that compute in FP16 to a graph of FP32 nodes: results rounded by a pair of Casts, sums rounded at every step.

r(x)           Cast to FLOAT16 and back: infinity beyond 65504, subnormal values below 2^-14
pairwise sum   element i of the lower half + element i of the upper half, r(.), until one is left; an odd last one waits
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.errors import GraphError
from calib.graph import TensorType

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)


class RoundedNodes:
    """Nodes and constants in the order in which they are added. Names are made from that of the tensor that is computed.

    Args:
        types: types of the tensors that the nodes read, for the lengths of summed axes.
    """

    def __init__(self, types: Mapping[str, TensorType]) -> None:
        self.types = types
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output, computed in FP32; returns the output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def round(self, source: str, target: str) -> str:
        """Add target = r(source)."""
        self.add("Cast", [source], f"{target}/half", to=_HALF)
        return self.add("Cast", [f"{target}/half"], target, to=_FLOAT)

    def add_rounded(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add output = r(operator(inputs))."""
        return self.round(self.add(operator, inputs, f"{output}/exact", **attributes), output)

    def integers(self, name: str, values: Sequence[int]) -> str:
        """Add an INT64 constant."""
        return self._constant(name, np.array(values, np.int64))

    def number(self, name: str, value: float) -> str:
        """Add an FP32 scalar."""
        return self._constant(name, np.float32(value))

    def _constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def shape(self, tensor: str) -> tuple[int | None, ...]:
        """Sizes of a tensor. Raises GraphError if not even their number is known."""
        known = self.types[tensor].shape if tensor in self.types else None
        if known is None:
            raise GraphError("the rank of a tensor is not known", where=f"tensor {tensor}")
        return known

    def length(self, tensor: str, axis: int) -> int:
        """Size of an axis. Raises GraphError if it is not fixed."""
        length = self.shape(tensor)[axis]
        if length is None:
            raise GraphError("the length of a summed axis is not fixed in the graph", where=f"tensor {tensor}, axis {axis}")
        return length

    def split(self, source: str, name: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """Add a Split along an axis; returns its outputs."""
        if len(sizes) == 1:
            return [source]
        outputs = [f"{name}/{i}" for i in range(len(sizes))]
        read = [source, self.integers(f"{name}/sizes", sizes)]
        self.nodes.append(helper.make_node("Split", read, outputs, name=f"{name}/Split", axis=axis))
        return outputs

    def pairwise_sum(self, current: str, name: str, axis: int, length: int) -> str:
        """Add the sum over an axis, kept with length 1, rounded after every addition."""
        while length > 1:
            half, odd = length // 2, length % 2
            step = f"{name}/{length}"
            lower, upper, *rest = self.split(current, step, axis, [half, half, *[1] * odd])
            total = self.add_rounded("Add", [lower, upper], f"{step}/sum")
            if odd:
                total = self.add("Concat", [total, *rest], f"{step}/all", axis=axis)
            current, length = total, half + odd
        return current
