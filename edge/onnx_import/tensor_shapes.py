"""Declare the shapes of outputs, and of inner tensors after operators whose result ONNX's shape inference does not know."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from calib.errors import GraphError
from calib.graph import TensorType, infer_types
from edge.onnx_import.batch_axis import BatchAxis
from edge.onnx_import.control_flow import CONTROL_FLOW
from edge.onnx_import.graph_edit import DEFAULT_DOMAINS, is_operator
from edge.onnx_import.imported import Change
from edge.onnx_import.input_shapes import BATCH
from edge.onnx_import.measured_run import MeasuredRun, measure


def declare_shapes(model: onnx.ModelProto, batch: BatchAxis, path: Path) -> list[Change]:
    """Write measured shapes into the model, and name control flow and custom operators, which stay as they are.

    Raises GraphError, naming the node, for control flow and custom operators whose results have no fixed sizes.
    """
    graph = model.graph
    unusual = [node for node in graph.node if is_operator(node, *CONTROL_FLOW) or node.domain not in DEFAULT_DOMAINS]
    types = infer_types(model, 1)
    unknown = [name for node in graph.node for name in node.output if name and not _is_known(types.get(name))]
    for value in graph.output:
        dtype = batch.runs[0].outputs[value.name].dtype
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32) if dtype == np.float64 else dtype)
        shapes = [run.outputs[value.name].shape for run in batch.runs]
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, _common(shapes, batch.runs)))
    results = {value.name for value in graph.output}
    for name, (element, shape) in _measured(model, batch, unknown, types, path).items():
        maker = next(node for node in graph.node if name in node.output)
        if maker in unusual and (shape is None or None in shape):
            what = "the size of what a node returns depends on the image"
            command = "export without it, or end the graph before it: --outputs NAME"
            raise GraphError(what, where=f"{path}, node {maker.name} ({maker.op_type})", next_command=command)
        if shape is not None and name not in results:
            graph.value_info.append(helper.make_tensor_value_info(name, element, shape))
    return [
        Change(
            "kept_in_float",
            node.name or node.output[0],
            f"{node.domain + '.' if node.domain else ''}{node.op_type} stays as it is",
        )
        for node in unusual
    ]


def _measured(
    model: onnx.ModelProto, batch: BatchAxis, names: list[str], types: Mapping[str, TensorType], where: object
) -> dict[str, tuple[int, list[int | str | None] | None]]:
    """Element type and shape of inner tensors, from runs. Tensors without a known type are read as a whole."""
    untyped = [name for name in names if name not in types or not types[name].dtype]
    shaped = [name for name in names if name not in untyped]
    runs = measure(model, batch.image, batch.batches, values=untyped, shapes=shaped, outputs=False, where=where)
    measured = {name: (types[name].dtype, _common([run.shapes[name] for run in runs], runs)) for name in shaped}
    for name in untyped:
        values = [run.values[name] for run in runs]
        if isinstance(values[0], np.ndarray):  # not a sequence of tensors
            element = helper.np_dtype_to_tensor_dtype(values[0].dtype)
            measured[name] = (element, _common([value.shape for value in values], runs))
    return measured


def _is_known(known: TensorType | None) -> bool:
    return known is not None and known.shape is not None and None not in known.shape


def _common(shapes: Sequence[tuple[int, ...]], runs: Sequence[MeasuredRun]) -> list[int | str | None] | None:
    """Sizes that all runs share, the batch by its name, None for other sizes that vary; None for a rank that varies."""
    if len({len(shape) for shape in shapes}) != 1:
        return None
    sizes: list[int | str | None] = []
    for axis, size in enumerate(shapes[0]):
        if all(shape[axis] == size for shape in shapes):
            sizes.append(size)
        elif all(shape[axis] == run.batch for shape, run in zip(shapes, runs, strict=True)):
            sizes.append(BATCH)
        else:
            sizes.append(None)
    return sizes
