"""Turn graphs in FP16, BF16 or FP64 into FP32 graphs: constants, inputs, outputs, and every attribute that names a type.

FP32 holds every FP16 and BF16 number. FP64 is narrowed: values outside FP32, such as the -1.8e308 of a mask, become the largest
finite ones, so that no infinity appears where none was.
"""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edge.onnx_import.external_data import tensors_of
from edge.onnx_import.graph_edit import all_graphs, all_nodes, is_operator
from edge.onnx_import.imported import Change

HALF: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
DOUBLE: dict[int, str] = {TensorProto.DOUBLE: "float64"}
_TYPE_ATTRIBUTES = {"to", "dtype", "stash_type", "output_dtype", "softmax_precision"}
_LARGEST = float(np.finfo(np.float32).max)


def other_float_types(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the float types other than FP32 that a model stores, takes, returns or casts to."""
    names = {**HALF, **DOUBLE}
    used = {tensor.data_type for tensor in tensors_of(model)}
    used |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    used |= {
        item.i for node in all_nodes(model.graph) for item in node.attribute if is_operator(node, "Cast") and item.name == "to"
    }
    return tuple(sorted(names[kind] for kind in used if kind in names))


def widen(model: onnx.ModelProto, kinds: Collection[int]) -> list[Change]:
    """Replace these float types by FP32, in place."""
    changes: list[Change] = []
    for tensor in tensors_of(model):
        if tensor.data_type in kinds:
            changes.append(Change("widened", tensor.name, f"constant from {TensorProto.DataType.Name(tensor.data_type)}"))
            values = np.clip(numpy_helper.to_array(tensor).astype(np.float64), -_LARGEST, _LARGEST)  # NaN stays NaN
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type in kinds:
                changes.append(Change("widened", value.name, f"tensor from {TensorProto.DataType.Name(kind.elem_type)}"))
                kind.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for item in node.attribute:
                if item.name in _TYPE_ATTRIBUTES and item.type == onnx.AttributeProto.INT and item.i in kinds:
                    changes.append(
                        Change("widened", node.name or node.output[0], f"{item.name} from {TensorProto.DataType.Name(item.i)}")
                    )
                    item.i = TensorProto.FLOAT
    return changes
