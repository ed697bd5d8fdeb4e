"""Decide whether the batch stays free: every image has to get the answers that it gets alone."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from calib.errors import GraphError
from calib.graph import to_array
from edge.numeric_tolerances import IMPORT_SQNR_DB
from edge.onnx_import.graph_edit import is_operator
from edge.onnx_import.imported import Change, ImageInput
from edge.onnx_import.input_shapes import BATCH
from edge.onnx_import.measured_run import MeasuredRun, measure
from edge.onnx_import.output_agreement import agreement_db

FREE_BATCHES = (1, 2, 3)
"""Batch sizes that a free batch is tried with."""


def check_batch(model: onnx.ModelProto, image: ImageInput, where: object) -> tuple[ImageInput, tuple[int, ...], list[Change]]:
    """The input, the batch sizes that it takes, and what was changed in place.

    A free batch that the graph does not allow becomes 1. Raises GraphError when ONNX Runtime cannot run the graph at all.
    """
    size = image.shape[0]
    if size is not None:
        measure(model, image, (size,), where=where)
        return image, (size,), []
    reason = _why_not_free(model, image, where)
    if reason is None:
        return image, FREE_BATCHES, []
    _set_batch(model, 1)
    measure(model, image, (1,), where=where)
    return replace(image, shape=(1, *image.shape[1:])), (1,), [Change("batch", image.name, f"fixed to 1: {reason}")]


def free_batch(model: onnx.ModelProto, image: ImageInput, where: object) -> tuple[ImageInput, tuple[int, ...], list[Change]]:
    """Free a fixed batch above 1, in place, if each image then gets the answers that it got; results as of `check_batch`."""
    size = image.shape[0]
    if size is None or size == 1:
        return image, FREE_BATCHES if size is None else (1,), []
    expected = measure(model, image, (size,), where=where)[0]
    freed = _freed(model, image, size, where)
    free_image = replace(image, shape=(None, *image.shape[1:]))
    if _why_not_free(freed, free_image, where, expected) is not None:
        return image, (size,), []
    model.CopyFrom(freed)
    return free_image, FREE_BATCHES, [Change("batch", image.name, f"of {size} made free: every image gets the same answers")]


def _why_not_free(model: onnx.ModelProto, image: ImageInput, where: object, expected: MeasuredRun | None = None) -> str | None:
    """The reason why the batch cannot be free; None if it can."""
    batches = FREE_BATCHES if expected is None else (*FREE_BATCHES, expected.batch)
    try:
        runs = measure(model, image, batches, where=where)
    except GraphError as error:
        return " ".join(str(error).split())[:300]
    full = expected or runs[-1]
    for run in runs:
        for name, values in run.outputs.items():
            rows = full.outputs[name]
            if not isinstance(values, np.ndarray) or not values.shape or len(values) != run.batch or len(rows) != full.batch:
                return f"output {name} has no batch axis"
            if expected is not None and run.batch > expected.batch:
                continue
            if values.shape[1:] != rows.shape[1:] or agreement_db(rows[: run.batch], values) < IMPORT_SQNR_DB:
                return f"output {name} of an image depends on the batch"
    return None


def _freed(model: onnx.ModelProto, image: ImageInput, size: int, where: object) -> onnx.ModelProto:
    """A copy with a free batch: Reshapes to a fixed batch take over that of their input."""
    copy = deepcopy(model)
    graph = copy.graph
    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    reshapes = [node for node in graph.node if is_operator(node, "Reshape") and node.input[1] in constants]
    shapes = measure(model, image, (size,), shapes=sorted({node.input[0] for node in reshapes}), where=where)[0].shapes
    for node in reshapes:
        target = constants[node.input[1]].copy()
        if target.size == 0 or target[0] <= 0 or target[0] % size:
            continue
        before = shapes[node.input[0]]
        if target[0] == size and before and before[0] == size:
            target[0] = 0
        elif -1 not in target:
            target[0] = -1
        name = f"{node.output[0]}/target"
        graph.initializer.append(numpy_helper.from_array(target, name))
        node.input[1] = name
    _set_batch(copy, None)
    return copy


def _set_batch(model: onnx.ModelProto, size: int | None) -> None:
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    if size is None:
        dim.dim_param = BATCH
    else:
        dim.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
