"""Graphs of several outputs as graphs of one, so that a drift can be attributed to layers for all of them together.

    output (n, ...)  ->  Flatten (n, k)  ->  times 1 / RMS of the reference's  ->  Concat  ->  the one output (n, sum of k)

Each output so counts by its own signal: the power of its error relative to that of the reference. Outputs of integers (an index
of a largest value) have no power and are left out; what they are computed from is measured all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.errors import GraphError
from edge.tasks.task import Outputs

MERGED = "attribution/outputs"


def float_outputs(model: onnx.ModelProto) -> list[int]:
    """Numbers of the outputs that are floats. Raises GraphError where there is none."""
    numbers = [i for i, v in enumerate(model.graph.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    if not numbers:
        found = ", ".join(value.name for value in model.graph.output)
        raise GraphError("the network has no output of floats, whose error could be attributed", found=found)
    return numbers


def output_scales(outputs: Outputs, numbers: Sequence[int]) -> list[float]:
    """1 / RMS of some of the reference's outputs (n, ...); 1 for an output that is zero throughout."""
    rms = [float(np.sqrt(np.mean(np.square(outputs[i], dtype=np.float64)))) for i in numbers]
    return [1 / value if value > 0 else 1.0 for value in rms]


def merge_outputs(model: onnx.ModelProto, numbers: Sequence[int], scales: Sequence[float]) -> onnx.ModelProto:
    """A copy of the graph whose one output, float32 (n, k), holds these outputs, each times its scale."""
    merged = deepcopy(model)
    graph, parts = merged.graph, []
    for i, scale in zip(numbers, scales, strict=True):
        flat, scaled, factor = (f"{MERGED}/{i}/{what}" for what in ("flat", "scaled", "factor"))
        graph.initializer.append(numpy_helper.from_array(np.float32(scale), factor))
        graph.node.append(helper.make_node("Flatten", [graph.output[i].name], [flat], name=flat, axis=1))
        graph.node.append(helper.make_node("Mul", [flat, factor], [scaled], name=scaled))
        parts.append(scaled)
    graph.node.append(helper.make_node("Concat", parts, [MERGED], name=MERGED, axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(MERGED, TensorProto.FLOAT, None))
    return merged
