"""Attribute the quantization noise of a few layers to weights or activations, rounding or clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import index_graph, infer_types
from calib.graph_editor import GraphEditor
from calib.graph_segments import declare, part
from calib.metrics import capped_sqnr_db
from calib.ort_session import GraphSession
from calib.qdq_placement import QuantPlan
from calib.qdq_writer import fake_quantize_weight
from calib.scales import QMAX, QMIN

Tensors = Mapping[str, NDArray[Any]]


class IsolatedLayers:
    """Some nodes of a float graph, each run in isolation: it reads tensors of the float graph, never another node's output."""

    runs = 5
    """How often `noise_db` runs the nodes."""

    def __init__(self, model: onnx.ModelProto, nodes: Sequence[str], plan: QuantPlan) -> None:
        index = index_graph(model)
        isolated = {name: deepcopy(node) for name, node in index.nodes.items() if name in nodes}
        for name, node in isolated.items():
            node.name, node.output[:] = name, [f"{output}/alone" for output in node.output]
        constants = {*index.constants, *(t.name for t in model.graph.initializer)}
        read = (name for node in isolated.values() for name in node.input if name and name not in constants)
        self.inputs = tuple(dict.fromkeys(read))
        """Tensors that the nodes read, without constants."""
        self._points = tuple(p for p in plan.points if p.node in isolated)
        types = infer_types(model)
        outputs = [node.output[0] for node in isolated.values()]
        self._model = part(model, isolated.values(), outputs, [declare(name, types) for name in self.inputs])

    def noise_db(self, tensors: Tensors, scales: Mapping[str, float], threads: int) -> tuple[float, float, float, float]:
        """SQNR over all outputs with, in this order, quantized weights; quantized activations; rounded ones; clipped ones.

            s round(clip(x / s, -128, 127)) - x  =  clipping  +  rounding,    clipping = clip(x, -128 s, 127 s) - x

        `tensors` are values of `inputs`, others are ignored; `scales` the step s of each quantized activation.
        """
        plain = GraphSession(self._model, threads=threads)
        reference = plain(tensors)
        variants = [
            GraphSession(self._quantized_weights(), threads=threads)(tensors),
            *(plain({**tensors, **activations}) for activations in self._activations(tensors, scales)),
        ]
        weights, activations, rounding, clipping = (capped_sqnr_db(_flat(reference), _flat(variant)) for variant in variants)
        return weights, activations, rounding, clipping

    def _activations(self, tensors: Tensors, scales: Mapping[str, float]) -> tuple[Tensors, Tensors, Tensors]:
        quantized, rounded, clipped = {}, {}, {}
        for name in dict.fromkeys(p.tensor for p in self._points if p.kind == "activation"):
            x, step = tensors[name], np.float32(scales[name])
            quantized[name] = np.clip(np.rint(x / step), QMIN, QMAX) * step
            clipped[name] = np.clip(x, QMIN * step, QMAX * step)
            rounded[name] = x + (quantized[name] - clipped[name])
        return quantized, rounded, clipped

    def _quantized_weights(self) -> onnx.ModelProto:
        editor = GraphEditor(self._model)
        for point in self._points:
            if point.axis is not None:
                weight = editor.constant(point.node, point.input_index)
                quantized = fake_quantize_weight(weight, point.axis, point.tensor)
                editor.set_constant(point.node, point.input_index, quantized, "quantized")
        return editor.finish()


def _flat(tensors: Tensors) -> NDArray[Any]:
    return np.concatenate([values.ravel() for values in tensors.values()])
