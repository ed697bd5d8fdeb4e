"""Decide whether the batch stays free: every image has to get the answers that it gets alone."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from calib.errors import GraphError
from calib.graph import to_array
from edge.numeric_tolerances import IMPORT_SQNR_DB
from edge.onnx_import.constant_folding import measure_fixed
from edge.onnx_import.graph_edit import is_operator
from edge.onnx_import.imported import Change, ImageInput
from edge.onnx_import.input_shapes import BATCH
from edge.onnx_import.measured_run import MeasuredRun, measure
from edge.onnx_import.output_agreement import agreement_db

_FREE_BATCHES = (1, 2)
"""Batch sizes that a free batch is tried with."""


@dataclass(frozen=True)
class BatchAxis:
    """What the batch axis turned out to be: the input, the batch sizes that it takes, a run at each, and what was changed."""

    image: ImageInput
    batches: tuple[int, ...]
    runs: list[MeasuredRun]
    changes: tuple[Change, ...] = ()


def check_batch(model: onnx.ModelProto, image: ImageInput, where: object) -> BatchAxis:
    """Try the batch axis, with runs that `fold_constants` takes.

    A free batch that the graph does not allow becomes 1, in place. Raises GraphError when ONNX Runtime cannot
    run the graph at all.
    """
    size = image.shape[0]
    if size is not None:
        return BatchAxis(image, (size,), measure_fixed(model, image, (size,), where, outputs=True))
    try:
        runs = measure_fixed(model, image, _FREE_BATCHES, where, outputs=True)
        reason = _why_not_free(runs, runs[-1])
    except GraphError as error:
        reason = " ".join(str(error).split())[:300]
    if reason is None:
        return BatchAxis(image, _FREE_BATCHES, runs)
    _set_batch(model, 1)
    fixed = replace(image, shape=(1, *image.shape[1:]))
    runs = measure_fixed(model, fixed, (1,), where, outputs=True)
    return BatchAxis(fixed, (1,), runs, (Change("batch", image.name, f"fixed to 1: {reason}"),))


def free_batch(model: onnx.ModelProto, batch: BatchAxis, where: object) -> BatchAxis:
    """Free a fixed batch above 1, in place, if each image then gets the answers that it got."""
    size = batch.image.shape[0]
    if size is None or size == 1:
        return batch
    freed = _freed(model, batch.image, size, where)
    image = replace(batch.image, shape=(None, *batch.image.shape[1:]))
    try:
        runs = measure(freed, image, (*_FREE_BATCHES, size), where=where)
    except GraphError:
        return batch
    if _why_not_free(runs, batch.runs[-1]) is not None:
        return batch
    model.CopyFrom(freed)
    changes = (Change("batch", image.name, f"of {size} made free: every image gets the same answers"),)
    return BatchAxis(image, _FREE_BATCHES, runs[: len(_FREE_BATCHES)], changes)


def _why_not_free(runs: Sequence[MeasuredRun], full: MeasuredRun) -> str | None:
    """The reason why an image's answers depend on the batch, compared with those in the run `full`; None if they do not."""
    for run in runs:
        for name, values in run.outputs.items():
            rows = full.outputs[name]
            if not isinstance(values, np.ndarray) or not values.shape or len(values) != run.batch or len(rows) != full.batch:
                return f"output {name} has no batch axis"
            if values.shape[1:] != rows.shape[1:] or agreement_db(rows[: run.batch], values) < IMPORT_SQNR_DB:
                return f"output {name} of an image depends on the batch"
    return None


def _freed(model: onnx.ModelProto, image: ImageInput, size: int, where: object) -> onnx.ModelProto:
    """A copy with a free batch: Reshapes to a fixed batch take over that of their input."""
    copy = deepcopy(model)
    graph = copy.graph
    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    reshapes = [node for node in graph.node if is_operator(node, "Reshape") and node.input[1] in constants]
    reshaped = sorted({node.input[0] for node in reshapes})
    shapes = measure(model, image, (size,), shapes=reshaped, outputs=False, where=where)[0].shapes
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
