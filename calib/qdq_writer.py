"""Insert QuantizeLinear/DequantizeLinear (Q/DQ) pairs into a float graph, and read them back.

    activation   x -> QuantizeLinear -> DequantizeLinear -> every quantized consumer; other consumers keep x
    weight       int8 constant -> DequantizeLinear -> consumer; the float constant is removed unless something else reads it

INT8 symmetric, zero-point 0, range [-127, 127]; scales are FP32 numbers that FP16 represents exactly. Biases stay in float.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calib.calibration_table import REMAKE, CalibrationTable
from calib.errors import ArtifactError, GraphError
from calib.graph import index_graph, to_array
from calib.graph_editor import GraphEditor
from calib.qdq_placement import QuantPlan, QuantPoint
from calib.scales import QMAX, weight_scales

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class QdqInfo:
    """An activation has a Q/DQ pair, a weight a DequantizeLinear on a constant; a scale, or one per channel."""

    kind: Literal["activation", "weight"]
    scale: tuple[float, ...]


def insert_qdq(model: onnx.ModelProto, table: CalibrationTable, plan: QuantPlan) -> onnx.ModelProto:
    """A copy of `model` with Q/DQ at every point of `plan`; errors see `check_plan`. Equal inputs give equal bytes."""
    check_plan(model, table, plan)
    editor = GraphEditor(model, separator="_")
    zero_point = editor.add_constant("qdq_zero_point", np.zeros((), np.int8))
    dequantized: dict[tuple[str, int | None], str] = {}
    for tensor in plan.activations:
        dequantized[tensor, None] = _add_activation(editor, tensor, table.tensors[tensor].scale, zero_point)
    weights = [point for point in plan.points if point.kind == "weight"]
    for point in weights:
        if (point.tensor, point.axis) not in dequantized:
            dequantized[point.tensor, point.axis] = _add_weight(editor, point)
    for point in plan.points:
        editor.node(point.node).input[point.input_index] = dequantized[point.tensor, point.axis]
    quantized = editor.finish(removable={point.tensor for point in weights})
    stamps = {"calib.method": table.method, "calib.onnx_sha256": table.onnx_sha256}
    for key, value in (stamps | ({"calib.synthetic": "true"} if table.synthetic else {})).items():
        quantized.metadata_props.add(key=key, value=value)
    return quantized


def _add_activation(editor: GraphEditor, tensor: str, scale: float, zero_point: str) -> str:
    """Insert a Q/DQ pair right after the producer of an activation; return the dequantized tensor."""
    parameters = [editor.add_constant(f"{tensor}_scale", np.asarray(scale, np.float32)), zero_point]
    quantized, dequantized = editor.new_name(f"{tensor}_quantized"), editor.new_name(f"{tensor}_dequantized")
    editor.insert_after(
        tensor,
        helper.make_node(QUANTIZE, [tensor, *parameters], [quantized], name=editor.new_name(f"{tensor}/{QUANTIZE}")),
        helper.make_node(DEQUANTIZE, [quantized, *parameters], [dequantized], name=editor.new_name(f"{tensor}/{DEQUANTIZE}")),
    )
    return dequantized


def _add_weight(editor: GraphEditor, point: QuantPoint) -> str:
    """Add a weight as an INT8 constant, dequantized before its first reader; return the dequantized tensor."""
    tensor, axis = point.tensor, point.axis
    values, scales = quantize_weight(to_array(editor.index.constants[tensor]), axis, tensor)
    inputs = [
        editor.add_constant(f"{tensor}_quantized", values),
        editor.add_constant(f"{tensor}_scale", scales),
        editor.add_constant(f"{tensor}_zero_point", np.zeros(scales.shape, np.int8)),
    ]
    dequantized = editor.new_name(f"{tensor}_dequantized")
    name = editor.new_name(f"{tensor}/{DEQUANTIZE}")
    editor.insert_before_readers(tensor, helper.make_node(DEQUANTIZE, inputs, [dequantized], name=name, axis=axis))
    return dequantized


def check_plan(model: onnx.ModelProto, table: CalibrationTable, plan: QuantPlan) -> None:
    """Raises ArtifactError for a planned tensor without a scale, GraphError for a plan that does not match the graph."""
    missing = [name for name in plan.activations if name not in table.tensors]
    if missing:
        raise ArtifactError(
            "planned tensors have no scale",
            found=f"{len(missing)} tensors: {', '.join(missing[:8])}",
            allowed="a table made for this graph and this scheme",
            next_command=REMAKE,
        )
    index = index_graph(model)
    for p in plan.points:
        inputs = index.nodes[p.node].input if p.node in index.nodes else ()
        fits = p.input_index < len(inputs) and inputs[p.input_index] == p.tensor
        if not fits or (p.kind == "weight" and p.tensor not in index.constants):
            where = f"node {p.node}, input {p.input_index}"
            raise GraphError("plan was made for another graph", where=where, found=f"no {p.kind} {p.tensor}")


def read_qdq(model: onnx.ModelProto) -> dict[str, QdqInfo]:
    """Quantized tensors in graph order: input of QuantizeLinear, or constant input of DequantizeLinear -> its scale.

    Raises GraphError for a scale that is not a constant.
    """
    index = index_graph(model)
    quantized: dict[str, QdqInfo] = {}
    for name, node in zip(index.names, model.graph.node, strict=True):
        on_constant = node.op_type == DEQUANTIZE and node.input[0] in index.constants
        if node.op_type != QUANTIZE and not on_constant:
            continue
        if node.input[1] not in index.constants:
            raise GraphError("scale is not a constant", where=f"node {name}", found=node.input[1])
        scale = np.atleast_1d(to_array(index.constants[node.input[1]]).astype(np.float64))
        quantized[node.input[0]] = QdqInfo("weight" if on_constant else "activation", tuple(scale.tolist()))
    return quantized


def serialize(model: onnx.ModelProto) -> bytes:
    """Bytes of a model, equal for equal models within one version of protobuf."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def quantize_weight(weight: NDArray[Any], axis: int | None, tensor: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Per-channel symmetric INT8: (quantized, like `weight`; scales (channels,)) with weight ~ quantized * scale along `axis`.

    Without an axis there is one scale, of shape ().

    scale_c = FP16-rounded-up(max |w_c| / 127), q = clip(round_half_even(w / scale_c), -127, 127), in float32 like
    QuantizeLinear.
    """
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scales = weight_scales(np.abs(weight).max(axis=others), tensor)
    quantized = np.clip(np.rint(weight.astype(np.float32) / np.expand_dims(scales, others)), -QMAX, QMAX)
    return quantized.astype(np.int8), scales


def fake_quantize_weight(weight: NDArray[Any], axis: int | None, tensor: str) -> NDArray[np.float32]:
    """The weight after `quantize_weight` and dequantization: values * scales along `axis`, exact in float32."""
    values, scales = quantize_weight(weight, axis, tensor)
    return np.asarray(values * np.expand_dims(scales, tuple(a for a in range(values.ndim) if a != axis)))
