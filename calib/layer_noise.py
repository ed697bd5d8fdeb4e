"""Where the quantization noise of a few layers comes from: weights or activations, rounding or clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from calib.qdq_writer import dequantize_weight, quantize_weight
from calib.scales import QMAX

Tensors = Mapping[str, NDArray[Any]]


class IsolatedLayers:
    """Some nodes of a graph, each run by itself on its float inputs.

    Args:
        model: the float graph.
        nodes: their names; each reads what the whole graph computes in float, never the output of another of these.
        plan: which of their inputs are quantized.
    """

    runs = 5
    """How often the nodes are run by `noise_db`."""

    def __init__(self, model: onnx.ModelProto, nodes: Sequence[str], plan: QuantPlan) -> None:
        index = index_graph(model)
        chosen = {name: onnx.NodeProto() for name in index.names if name in nodes}
        for name, node in zip(index.names, model.graph.node, strict=True):
            if name in chosen:
                chosen[name].CopyFrom(node)
                chosen[name].name, chosen[name].output[:] = name, [f"{output}/alone" for output in node.output]
        known = {*index.constants, *(t.name for t in model.graph.initializer)}
        read = dict.fromkeys(name for node in chosen.values() for name in node.input if name and name not in known)
        self.inputs = tuple(read)
        """Tensors that the nodes read, constants apart."""
        self._points = tuple(p for p in plan.points if p.node in chosen)
        types = infer_types(model)
        outputs = [node.output[0] for node in chosen.values()]
        self._model = part(model, chosen.values(), outputs, [declare(name, types) for name in self.inputs])

    def noise_db(self, tensors: Tensors, scales: Mapping[str, float], threads: int) -> tuple[float, float, float, float]:
        """SQNR over all outputs with, in this order, quantized weights; quantized activations; rounded ones; clipped ones.

            s round(clip(x / s, -128, 127)) - x  =  clipping  +  rounding,    clipping = clip(x, -128 s, 127 s) - x

        Args:
            tensors: values of `inputs`; more are allowed.
            scales: step s of each quantized activation.
            threads: threads of ONNX Runtime.
        """
        plain = GraphSession(self._model, threads=threads)
        reference = plain(tensors)
        variants = [
            GraphSession(self._quantized_weights(), threads=threads)(tensors),
            *(plain({**tensors, **part_of}) for part_of in self._activations(tensors, scales)),
        ]
        quantized, activation, rounding, clipping = (capped_sqnr_db(_flat(reference), _flat(variant)) for variant in variants)
        return quantized, activation, rounding, clipping

    def _activations(self, tensors: Tensors, scales: Mapping[str, float]) -> tuple[Tensors, Tensors, Tensors]:
        whole, rounded, clipped = {}, {}, {}
        for name in dict.fromkeys(p.tensor for p in self._points if p.kind == "activation"):
            x, step = tensors[name], np.float32(scales[name])
            whole[name] = np.clip(np.rint(x / step), -QMAX - 1, QMAX) * step
            clipped[name] = np.clip(x, (-QMAX - 1) * step, QMAX * step)
            rounded[name] = x + (whole[name] - clipped[name])
        return whole, rounded, clipped

    def _quantized_weights(self) -> onnx.ModelProto:
        editor = GraphEditor(self._model)
        for point in self._points:
            if point.axis is not None:
                weight = editor.constant(point.node, point.input_index)
                values, scales = quantize_weight(weight, point.axis, point.tensor)
                restored = dequantize_weight(values, scales, point.axis)
                editor.set_constant(point.node, point.input_index, restored, "quantized")
        return editor.finish()


def _flat(tensors: Tensors) -> NDArray[Any]:
    return np.concatenate([values.ravel() for values in tensors.values()])
