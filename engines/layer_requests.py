"""Read the precision that a graph requests for each node that multiplies, its MACs, and problems that prevent INT8.

    requested = "int8"     both operands come directly from DequantizeLinear of int8 codes
                "uint8"    likewise, but one operand has uint8 codes, which TensorRT reads as int8
                "fp16"...  otherwise: the type of the first operand

A "problem" is a property of the graph that makes TensorRT compute the layer in float, or wrongly, without an error, or the
reason why its MACs cannot be counted.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from calib.errors import GraphError
from calib.files import read_regular
from calib.graph import GraphIndex, TensorType, attribute, index_graph, infer_types, to_array
from calib.graph import parse_graph as parse_model
from calib.graph_checks import LARGEST_BYTES
from calib.macs import MAC_OPS, NodeMacs, count_macs
from calib.qdq_placement import channel_axis, float_reason
from engines.layer_records import GraphFacts, Layer, TensorInfo

TYPE_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}
_NOT_NUMBERS = (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)
"""Element types; UNDEFINED is that of a sequence, a map or an optional."""


def load_graph(path: Path) -> tuple[bytes, GraphFacts]:
    """Load an ONNX file: its bytes and facts. Raises GraphError if it is missing, invalid, or has not one input."""
    return parse_graph(read_regular(path, GraphError, largest=LARGEST_BYTES, remake="ufovit build"), path)


def parse_graph(data: bytes, path: Path) -> tuple[bytes, GraphFacts]:
    """Parse the bytes of an ONNX file like `load_graph`; errors name `path`."""
    model = parse_model(data, path)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise GraphError("not a valid ONNX model", where=path, found=error, next_command="ufovit build") from error
    return model.SerializeToString(deterministic=True), graph_facts(model)


def graph_facts(model: onnx.ModelProto) -> GraphFacts:
    """Facts that a build needs of a graph. Raises GraphError unless it has one input, all ports tensors of numbers."""
    layers, names = read_layers(model), Counter(node.name for node in model.graph.node)
    weights = {i.name for i in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights]
    other = [v.name for v in (*inputs, *model.graph.output) if v.type.tensor_type.elem_type in _NOT_NUMBERS]
    if len(inputs) != 1 or not model.graph.output or other:
        found = f"{len(inputs)} inputs, {len(model.graph.output)} outputs"
        found += f"; not tensors of numbers: {', '.join(other)}" if other else ""
        raise GraphError("unsupported graph inputs or outputs", found=found, allowed="one input tensor, output tensors")
    traceable = tuple(layer.name for layer in layers if names[layer.name] == 1)  # others do not identify a node in an engine
    return GraphFacts(layers, traceable, tensor_info(inputs[0]), tuple(map(tensor_info, model.graph.output)))


def tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    """Name, shape (-1 for a free axis) and numpy's name of the element type."""
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return TensorInfo(value.name, shape, tensor_dtype_to_np_dtype(tensor.elem_type).name)


def read_layers(model: onnx.ModelProto, *, measure: bool = True) -> tuple[Layer, ...]:
    """Every node of a graph that multiplies, in graph order, those in bodies and local functions included.

    `measure` as in `calib.macs.count_macs`: the graph may be run where shapes cannot be inferred.
    """
    index, types = index_graph(model), infer_types(model)
    return tuple(_layer(counted, index, types) for counted in count_macs(model, measure=measure).nodes)


def _layer(counted: NodeMacs, index: GraphIndex, types: dict[str, TensorType]) -> Layer:
    node = index.nodes.get(counted.name)
    if node is None or counted.body or node.op_type != counted.op_type:
        requested, problem = (
            "unknown",
            "it lies in a body of an If, Loop or Scan, or in a local function, and stays in float there",
        )
    elif node.op_type in MAC_OPS:
        requested, problem = _request(node, index, types)
    else:
        data = node.input[0] if node.input else ""
        requested, problem = TYPE_NAMES.get(types[data].dtype if data in types else 0, "unknown"), float_reason(node, index)
    if counted.problem:
        problem = f"{problem}: its multiply-accumulates are unknown: {counted.problem}".removeprefix(": ")
    return Layer(counted.name, counted.op_type, counted.macs, requested, problem)


def _request(node: onnx.NodeProto, index: GraphIndex, types: dict[str, TensorType]) -> tuple[str, str]:
    """(requested precision, problem) of a node whose operands are called A and B."""

    def dtype(tensor: str) -> int:
        return types[tensor].dtype if tensor in types else 0

    producers = {side: index.producer(tensor) for side, tensor in zip("AB", node.input, strict=False)}
    sources = {side: source for side, source in producers.items() if source and source.op_type == "DequantizeLinear"}
    if len(sources) < len(producers):
        missing = " and ".join(f"operand {side}" for side in producers if side not in sources)
        reason = "" if sources else float_reason(node, index)
        problem = f"the graph has no Q/DQ on {missing}"
        return TYPE_NAMES.get(dtype(node.input[0]), "unknown"), f"{problem}: {reason}" if reason else problem
    problems = [_operand_problem(node, side, source, index) for side, source in sources.items()]
    unsigned = [side for side, source in sources.items() if dtype(source.input[0]) == onnx.TensorProto.UINT8]
    problems += [f"operand {side} is quantized to uint8, which TensorRT reads as int8" for side in unsigned]
    return "uint8" if unsigned else "int8", "; ".join(p for p in problems if p)


def _operand_problem(node: onnx.NodeProto, side: str, dequantize: onnx.NodeProto, index: GraphIndex) -> str:
    scale = index.constants.get(dequantize.input[1])
    if scale is None:
        return f"the scale of operand {side} is not a constant"
    if len(dequantize.input) > 2 and dequantize.input[2]:
        zero = index.constants.get(dequantize.input[2])
        if zero is None or np.any(to_array(zero)):
            return f"the zero-point of operand {side} is not 0"
    if int(np.prod(scale.dims)) <= 1:
        return ""
    weight = index.constants.get(dequantize.input[0])
    if weight is None:
        return f"operand {side} is an activation with per-channel scales"
    axis, rank = int(attribute(dequantize, "axis", 1)), len(weight.dims)
    axis += rank if axis < 0 else 0
    if axis == channel_axis(node, "AB".index(side), rank):
        return ""
    why = "is summed over" if rank == 2 or node.op_type == "Conv" else "is not that of the output channels"
    return f"the weight's scales vary along axis {axis}, which {why}"
