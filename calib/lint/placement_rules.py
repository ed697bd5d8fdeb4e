"""Lint rules on the consumers of dequantized tensors: products that become INT8, and nodes that should not be quantized.

An operand is traced back to the DequantizeLinear that feeds it: TensorRT moves a DequantizeLinear past operators that only move
or retype values, so the operand still counts as INT8 (observed in engines of TensorRT-RTX 1.7 for each operator of _MOVES, not
for Relu or Pad, nor for Concat of different scales).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx

from calib.graph import GraphIndex, attribute, to_array
from calib.lint.finding import LintFinding, make_finding
from calib.qdq_placement import channel_axis
from calib.qdq_writer import DEQUANTIZE

_NORMALIZATIONS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "RMSNormalization")
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare")
_AXES_KEPT = ("Cast", "Identity")
_MOVES = (*_AXES_KEPT, "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class _DequantizeSource:
    """The DequantizeLinear that feeds an operand.

    Attributes:
        weight: whether its input is computed from constants.
        scales: empty when they are not constant.
        axis: channel axis of the operand; None when per tensor or lost in a Reshape.
    """

    weight: bool
    scales: tuple[float, ...]
    axis: int | None


def lint_placement(name: str, node: onnx.NodeProto, index: GraphIndex) -> Iterator[LintFinding]:
    """Findings on one product, norm or addition; none for any other node."""
    streams = [n for n in node.input if n not in index.constant_like]
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        yield from _lint_product(node, name, index)
    elif node.op_type in _NORMALIZATIONS + _REDUCTIONS and _dequantized(node.input[0], index):
        yield make_finding("norm-input", name, f"Q/DQ before {node.op_type}")
    elif node.op_type == "Add" and len(streams) == 2 and any(_dequantized(n, index) for n in streams):
        yield make_finding("residual-add", name, "Q/DQ before an addition of two activations")


def _dequantized(tensor: str, index: GraphIndex) -> bool:
    producer = index.producer(tensor)
    return producer is not None and producer.op_type == DEQUANTIZE


def _lint_product(node: onnx.NodeProto, name: str, index: GraphIndex) -> Iterator[LintFinding]:
    sources = [_trace(tensor, index) for tensor in node.input[:2]]
    for position, source in enumerate(sources):
        if source is None or len(source.scales) < 2:
            continue
        if not source.weight:
            yield make_finding("activation-per-channel", name, f"per-channel scale on input {position} of {node.op_type}")
        elif _along_sum(node, position, source, index):
            yield make_finding("weight-axis", name, f"{node.op_type} weight has its scales on axis {source.axis}")
    quantized = [position for position, source in enumerate(sources) if source is not None]
    if quantized and node.op_type == "ConvTranspose":
        yield make_finding("float-operator", name, "Q/DQ on a ConvTranspose")
    if len(quantized) == 1:
        (present,) = quantized
        one_sided = "weight-only" if node.input[present] in index.constant_like else "one-sided-matmul"
        rule = "activation-only" if node.input[1 - present] in index.constant_like else one_sided
        yield make_finding(rule, name, f"{node.op_type} with Q/DQ on input {present} alone")


def _along_sum(node: onnx.NodeProto, position: int, source: _DequantizeSource, index: GraphIndex) -> bool:
    """Whether the scales of a weight vary along another axis than that of the output channels."""
    if source.axis is None:
        return False
    tensor = node.input[position]  # the rank is that of the constant at the root of a chain of single-input nodes
    while tensor not in index.constants and (producer := index.producer(tensor)) is not None:
        tensor = producer.input[0]
    return tensor in index.constants and source.axis != channel_axis(node, position, len(index.constants[tensor].dims))


def _trace(tensor: str, index: GraphIndex) -> _DequantizeSource | None:
    """The DequantizeLinear that feeds an operand, or None when the operand is float."""
    node = index.producer(tensor)
    if node is None:
        return None
    if node.op_type == DEQUANTIZE:
        return _source(node, index)
    if node.op_type == "Concat":
        parts = [_trace(name, index) for name in node.input]
        return parts[0] if all(part is not None and part == parts[0] for part in parts) else None
    if node.op_type != "Transpose" and node.op_type not in _MOVES:
        return None
    source = _trace(node.input[0], index)
    if source is None or source.axis is None or node.op_type in _AXES_KEPT:
        return source
    permutation = attribute(node, "perm", None) if node.op_type == "Transpose" else None
    return replace(source, axis=list(permutation).index(source.axis) if permutation else None)


def _source(node: onnx.NodeProto, index: GraphIndex) -> _DequantizeSource:
    constant = index.constants.get(node.input[1]) if len(node.input) > 1 else None
    scales = tuple(float(s) for s in to_array(constant).ravel()) if constant is not None else ()
    axis = int(attribute(node, "axis", 1)) if len(scales) > 1 else None
    if axis is not None and axis < 0:
        axis = axis + len(index.constants[node.input[0]].dims) if node.input[0] in index.constants else None
    return _DequantizeSource(node.input[0] in index.constant_like, scales, axis)
