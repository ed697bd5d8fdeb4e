"""Lint rules on the parameters of Q/DQ nodes: scales, zero-points, types, opset."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from calib.graph import GraphIndex, TensorType, attribute, opset_version, to_array
from calib.lint.finding import LintFinding, make_finding
from calib.qdq_writer import DEQUANTIZE, QUANTIZE

_T = onnx.TensorProto
_NEWEST_OPSET = 20
_FP16_SCALE_OPSET = 19
_INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QAttention", "QGemm")
_DYNAMIC_QUANTIZATION = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
_OTHER_TYPES = ("FLOAT8E4M3FN", "FLOAT4E2M1", "INT4")


def lint_graph_level(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[LintFinding]:
    """Findings on the whole graph: no Q/DQ at all, opset, integer operators that TensorRT does not parse."""
    quantized = False
    for name, node in zip(names, model.graph.node, strict=True):
        integer = node.op_type in _INTEGER_PRODUCTS + _DYNAMIC_QUANTIZATION or node.op_type.startswith("QLinear")
        if integer:
            yield make_finding("integer-operator", name, node.op_type)
        quantized |= integer or node.op_type in (QUANTIZE, DEQUANTIZE)
    if not quantized:
        yield make_finding("float-graph", "graph", "no QuantizeLinear or DequantizeLinear")
    if opset_version(model) > _NEWEST_OPSET:
        yield make_finding("opset", "graph", f"opset {opset_version(model)}")


def lint_parameters(
    name: str, node: onnx.NodeProto, index: GraphIndex, types: Mapping[str, TensorType], opset: int
) -> Iterator[LintFinding]:
    """Findings on one QuantizeLinear or DequantizeLinear; none for any other node."""
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    if block_size := attribute(node, "block_size", 0):
        yield make_finding("blocked", name, f"block_size {block_size}")
    yield from _lint_type(node, name, index, types)
    yield from _lint_pair(node, name, index)
    scale_name = node.input[1] if len(node.input) > 1 else ""
    if scale_name in index.constants:
        yield from _lint_scale(node, name, index.constants[scale_name], types, opset)
    elif scale_name in index.producers or scale_name in index.inputs:
        yield make_finding("scale-not-constant", name, f"scale {scale_name} is computed")
    else:
        yield make_finding("scale-missing", name, f"scale {scale_name or '(none)'} is not defined")


def _lint_pair(node: onnx.NodeProto, name: str, index: GraphIndex) -> Iterator[LintFinding]:
    quantize = index.producer(node.input[0])
    if node.op_type != DEQUANTIZE or quantize is None or quantize.op_type != QUANTIZE:
        return
    scales = [to_array(index.constants[n.input[1]]) for n in (quantize, node) if n.input[1:] and n.input[1] in index.constants]
    if len(scales) == 2 and not np.array_equal(scales[0], scales[1], equal_nan=True):
        yield make_finding("unlike-pair", name, f"QuantizeLinear {index.names[index.producers[node.input[0]]]}")


def _lint_type(node: onnx.NodeProto, name: str, index: GraphIndex, types: Mapping[str, TensorType]) -> Iterator[LintFinding]:
    zero_point = index.constants.get(node.input[2]) if len(node.input) > 2 else None
    kind = _T.DataType.Name(_quantized_type(node, zero_point, types))
    if kind == "UINT8":
        yield make_finding("uint8", name, "unsigned 8-bit" if zero_point is not None else "no zero-point, hence uint8")
    elif kind == "INT32":
        yield make_finding("int32-bias", name, f"{node.op_type} on INT32")
    elif kind in _OTHER_TYPES:
        yield make_finding("other-type", name, kind)
    elif kind not in ("INT8", "UNDEFINED"):
        yield make_finding("unsupported-type", name, kind)
    if zero_point is not None and kind in ("INT8", "UINT8", "INT4") and np.any(to_array(zero_point).astype(np.int64) != 0):
        yield make_finding("zero-point", name, f"zero-point {np.ravel(to_array(zero_point))[:4].tolist()}")


def _quantized_type(node: onnx.NodeProto, zero_point: onnx.TensorProto | None, types: Mapping[str, TensorType]) -> int:
    if zero_point is not None:
        return zero_point.data_type
    position = 0 if node.op_type == DEQUANTIZE else 2
    if len(node.input) > position and node.input[position]:
        return types[node.input[position]].dtype if node.input[position] in types else _T.UNDEFINED
    return int(attribute(node, "output_dtype", 0)) or int(_T.UINT8)


def _lint_scale(
    node: onnx.NodeProto, name: str, tensor: onnx.TensorProto, types: Mapping[str, TensorType], opset: int
) -> Iterator[LintFinding]:
    scale = to_array(tensor).astype(np.float64)
    valid = np.isfinite(scale) & (scale > 0)
    if scale.size == 0 or not np.all(valid):
        yield make_finding("scale-invalid", name, f"scale {scale[~valid][:4].tolist()}")
    if tensor.data_type == _T.FLOAT16 and opset < _FP16_SCALE_OPSET:
        yield make_finding("fp16-scale-opset", name, f"FP16 scale in opset {opset}")
    shape = types[node.input[0]].shape if node.input[0] in types else None
    axis = int(attribute(node, "axis", 1))
    if scale.ndim != 1 or scale.size == 1 or shape is None or attribute(node, "block_size", 0):
        return
    channels = shape[axis] if -len(shape) <= axis < len(shape) else -1
    if channels is not None and channels != scale.size:
        what = f"axis {axis} of {shape}" if channels >= 0 else f"axis {axis} outside {shape}"
        yield make_finding("scale-length", name, f"{scale.size} scales on {what}")
