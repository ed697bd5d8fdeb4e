"""Run a graph on random images at several batch sizes and measure values and shapes of its tensors."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calib.errors import DataError, GraphError
from calib.ort_session import GraphSession
from edge.onnx_import.graph_edit import DEFAULT_DOMAINS, all_nodes, prune
from edge.onnx_import.imported import ImageInput

_SHAPE = "//shape_of/"
_SEED = 20


@dataclass(frozen=True)
class MeasuredRun:
    """What one run gave: its batch size, the values asked for, the shapes asked for, and the graph's outputs."""

    batch: int
    values: Mapping[str, NDArray[Any]]
    shapes: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, NDArray[Any]]


def random_images(image: ImageInput, count: int) -> NDArray[Any]:
    """`count` images as the input takes them: normally distributed floats, or integers of 0 to 255."""
    rng, shape = np.random.default_rng(_SEED), (count, *(int(size or 1) for size in image.shape[1:]))
    if np.dtype(image.dtype).kind == "f":
        return rng.standard_normal(shape).astype(image.dtype)
    return rng.integers(0, 128 if image.dtype == "int8" else 256, shape).astype(image.dtype)


def measure(
    model: onnx.ModelProto,
    image: ImageInput,
    batches: Sequence[int],
    *,
    values: Collection[str] = (),
    shapes: Collection[str] = (),
    outputs: bool = True,
    where: object = None,
) -> list[MeasuredRun]:
    """Run `model` once per batch size; a run of fewer images takes the first ones of a larger run.

    Without `outputs` only what `values` and `shapes` need is computed.

    Raises GraphError, naming the operators that ONNX does not define if there are some, when ONNX Runtime refuses the graph or
    a batch size.
    """
    if not (values or shapes or outputs):
        return [MeasuredRun(batch, {}, {}, {}) for batch in batches]
    copy = deepcopy(model)
    if not outputs:
        del copy.graph.output[:]
    declared = [value.name for value in copy.graph.output]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in declared)
    copy.graph.node.extend(helper.make_node("Shape", [name], [f"{_SHAPE}{name}"]) for name in shapes)
    copy.graph.output.extend(helper.make_tensor_value_info(f"{_SHAPE}{name}", onnx.TensorProto.INT64, None) for name in shapes)
    if not outputs:
        prune(copy)
    session = _open(copy, where)
    images = random_images(image, max(batches))
    runs = []
    for batch in batches:
        try:
            tensors = session({image.name: images[:batch]})
        except DataError as error:
            command = "export with a free batch, or with a batch of 1"
            found = f"batch {batch}: {_reason(error)}"
            raise GraphError("ONNX Runtime cannot run the graph", where=where, found=found, next_command=command) from error
        measured = {name: tuple(int(size) for size in tensors[f"{_SHAPE}{name}"]) for name in shapes}
        runs.append(
            MeasuredRun(batch, {name: tensors[name] for name in values}, measured, {name: tensors[name] for name in declared})
        )
    return runs


def _open(model: onnx.ModelProto, where: object) -> GraphSession:
    try:
        return GraphSession(model, threads=0, where=where)
    except GraphError as error:
        foreign = sorted(
            {f"{n.domain}.{n.op_type} (node {n.name})" for n in all_nodes(model.graph) if n.domain not in DEFAULT_DOMAINS}
        )
        if foreign:
            what = "the graph holds operators that ONNX Runtime cannot run, so nothing can be calibrated"
            raise GraphError(
                what, where=where, found="; ".join(foreign)[:400], next_command="export without custom operators"
            ) from error
        raise


def _reason(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())[:300]
