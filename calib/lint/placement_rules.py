"""Rules on what the dequantized tensors meet: products that become INT8, and nodes that should not be quantized."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from calib.graph import GraphIndex, attribute
from calib.lint.finding import Finding, make_finding
from calib.lint.trace_dequantize import Source, trace
from calib.qdq_writer import DEQUANTIZE

_NORMS = (
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "RMSNormalization",
    "ReduceL1",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
)


def lint_placement(name: str, node: onnx.NodeProto, index: GraphIndex) -> list[Finding]:
    """Findings on one product, norm or addition; none for any other node."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return _product(node, name, index)
    if node.op_type in _NORMS and _dequantized(node.input[0], index):
        return [make_finding("norm-input", name, f"Q/DQ in front of {node.op_type}")]
    streams = [n for n in node.input if n not in index.constant_like]
    if node.op_type == "Add" and len(streams) == 2 and any(_dequantized(n, index) for n in streams):
        return [make_finding("residual-add", name, "Q/DQ in front of an addition of two activations")]
    return []


def _dequantized(tensor: str, index: GraphIndex) -> bool:
    producer = index.producer(tensor)
    return producer is not None and producer.op_type == DEQUANTIZE


def _product(node: onnx.NodeProto, name: str, index: GraphIndex) -> list[Finding]:
    sources = [trace(tensor, index) for tensor in node.input[:2]]
    constant = [tensor in index.constant_like for tensor in node.input[:2]]
    found = []
    for position, source in enumerate(sources):
        if source is None or not source.per_channel:
            continue
        if not source.weight:
            found.append(
                make_finding("activation-per-channel", name, f"per-channel scale on input {position} of {node.op_type}")
            )
        elif _along_sum(node, position, source, len(_dims(node.input[position], index))):
            found.append(make_finding("weight-axis", name, f"{node.op_type} weight has its scales on axis {source.axis}"))
    if sum(source is not None for source in sources) == 1:
        present = 0 if sources[0] is not None else 1
        one_sided = "weight-only" if constant[present] else "one-sided-matmul"
        rule = "activation-only" if constant[1 - present] else one_sided
        found.append(make_finding(rule, name, f"{node.op_type} with Q/DQ on input {present} alone"))
    return found


def _along_sum(node: onnx.NodeProto, position: int, source: Source, rank: int) -> bool:
    """Whether the scales of a weight vary along an axis that is summed over (for Conv: any but the output channels)."""
    if source.axis is None:
        return False
    if node.op_type == "Conv":
        return source.axis != 0
    if node.op_type == "ConvTranspose":
        return source.axis != 1
    if node.op_type == "Gemm":
        return source.axis == int(bool(attribute(node, ("transA", "transB")[position], 0))) ^ (position == 0)
    return source.axis == (rank - 1 if position == 0 else rank - 2)


def _dims(tensor: str, index: GraphIndex) -> Sequence[int]:
    """Shape of the constant at the root of a chain of single-input nodes; only its length is of interest."""
    while tensor not in index.constants and (producer := index.producer(tensor)) is not None:
        tensor = producer.input[0]
    return index.constants[tensor].dims if tensor in index.constants else ()
