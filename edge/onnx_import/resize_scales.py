"""Resize to sizes that are computed, because the batch is among them: to constant scales that give the same sizes.

scale = out / in in FP32, as ONNX defines it for sizes; used where floor(in * scale) = out holds for every axis
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calib.graph import attribute
from edge.onnx_import.batch_axis import BatchAxis
from edge.onnx_import.graph_edit import is_operator, prune
from edge.onnx_import.imported import Change
from edge.onnx_import.measured_run import measure


def sizes_to_scales(model: onnx.ModelProto, batch: BatchAxis, where: object) -> list[Change]:
    """Replace computed sizes of Resize nodes of the main graph, in place."""
    graph, changes = model.graph, []
    constants = {tensor.name for tensor in graph.initializer}
    computed = [node for node in graph.node if _sizes_are_computed(node, constants)]
    names = sorted({name for node in computed for name in (node.input[0], node.output[0])})
    runs = measure(model, batch.image, batch.batches, shapes=names, outputs=False, where=where) if computed else []
    for node in computed:
        scales = [_scales(run.shapes[node.input[0]], run.shapes[node.output[0]]) for run in runs]
        first = scales[0]
        if first is None or not all(other is not None and np.array_equal(first, other) for other in scales):
            continue
        name = f"{node.output[0]}/scales"
        graph.initializer.append(numpy_helper.from_array(first, name))
        node.input[:] = [node.input[0], node.input[1], name]
        changes.append(Change("folded", node.name, f"sizes of Resize into scales {first.tolist()}"))
    if changes:
        prune(model)
    return changes


def _sizes_are_computed(node: onnx.NodeProto, constants: set[str]) -> bool:
    if not is_operator(node, "Resize") or len(node.input) < 4 or node.input[3] in ("", *constants):
        return False
    return attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch" and attribute(node, "axes", None) is None


def _scales(before: tuple[int, ...], after: tuple[int, ...]) -> NDArray[np.float32] | None:
    scales = (np.asarray(after, np.float32) / np.asarray(before, np.float32)).astype(np.float32)
    reached = np.floor(np.asarray(before, np.float32) * scales).astype(np.int64)
    return scales if np.array_equal(reached, after) else None
