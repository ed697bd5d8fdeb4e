"""From an operand back to the DequantizeLinear that feeds it.

TensorRT moves a DequantizeLinear behind operators that only move or retype values, so the operand still counts as INT8
(seen in engines of TensorRT-RTX 1.7 for each operator named below; not for Relu or Pad, nor for Concat of unlike scales).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx

from calib.graph import GraphIndex, attribute, to_array
from calib.qdq_writer import DEQUANTIZE

_MOVES = (
    "Cast",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Unsqueeze",
)


@dataclass(frozen=True)
class Source:
    """A DequantizeLinear as seen by an operand.

    Attributes:
        weight: whether what it dequantizes follows from constants.
        scales: its scales; empty when they are no constant.
        axis: channel axis as the operand has it; None when per tensor or lost in a Reshape.
    """

    weight: bool
    scales: tuple[float, ...]
    axis: int | None

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return len(self.scales) > 1


def trace(tensor: str, index: GraphIndex) -> Source | None:
    """The DequantizeLinear behind an operand, or None when the operand is float."""
    node = index.producer(tensor)
    if node is None:
        return None
    if node.op_type == DEQUANTIZE:
        return _source(node, index)
    if node.op_type == "Concat":
        parts = [trace(name, index) for name in node.input]
        return parts[0] if all(part is not None and part == parts[0] for part in parts) else None
    if node.op_type != "Transpose" and node.op_type not in _MOVES:
        return None
    source = trace(node.input[0], index)
    if source is None or source.axis is None or node.op_type in ("Cast", "Identity"):
        return source
    permutation = attribute(node, "perm", None) if node.op_type == "Transpose" else None
    return replace(source, axis=list(permutation).index(source.axis) if permutation else None)


def _source(node: onnx.NodeProto, index: GraphIndex) -> Source:
    constant = index.constants.get(node.input[1]) if len(node.input) > 1 else None
    scales = tuple(float(s) for s in to_array(constant).ravel()) if constant is not None else ()
    rank = len(index.constants[node.input[0]].dims) if node.input[0] in index.constants else None
    axis: int | None = int(attribute(node, "axis", 1))
    if axis is not None and axis < 0:
        axis = axis + rank if rank is not None else None
    return Source(node.input[0] in index.constant_like, scales, axis if len(scales) > 1 else None)
