"""The judged graph's weights against the float network's, each relative to the rounding error of its format.

    expected noise    sum of step^2 / 12 over the elements; step is the scale of an INT8 channel, |w| 2^-10 (at least 2^-24) for
                      FP16, |w| 2^-23 for FP32
    excess            measured noise over expected noise, in dB: about 0 where weights were rounded to the nearest code

Calibration may move a factor per input channel from the weights into the norm before them: the factors are read from the two
norms and undone first. Refinement rounds weights by second-order methods, and so that they compensate the errors of earlier
layers: that adds excess, up to 20 dB in a layer of the shipped network. The refined float graph holds such weights already.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import GraphIndex, attribute, index_graph, to_array
from calib.macs import MAC_OPS
from calib.metrics import power_ratio_db
from calib.qdq_placement import channel_axis
from calib.qdq_writer import DEQUANTIZE, QUANTIZE
from edge.attribution.layer_spans import LayerSpan

_WEIGHTED = (*MAC_OPS, "ConvTranspose")
"""Operators with one weight, whose output channels are one of its axes."""
_NORMS = ("BatchNormalization", "LayerNormalization")
_CARRYING = frozenset({
    DEQUANTIZE, QUANTIZE, "Cast", "Flatten", "Gather", "Identity", "Relu", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
"""Operators that pass factors per channel on."""
_ON_GRID_DB = -10.0
"""Excess of weights that are not rounded again: none, apart from scales that were rounded to FP16."""
_UNCHANGED = 2.0**-9
"""Factors within this of 1 are FP16's rounding of the norm's own."""

Float64 = NDArray[np.float64]
Gains = tuple[str, Float64]


@dataclass(frozen=True)
class WeightError:
    """How far the weights of one layer are off.

    Attributes:
        sqnr_db: of the whole tensor.
        expected_db: of the same tensor, as its format rounds.
        channel: output channel with the largest excess.
        channel_db: SQNR of that channel.
        zeroed: output channels whose weights are all 0 and, in the float network, larger than a step.
    """

    sqnr_db: float
    expected_db: float
    channel: int
    channel_db: float
    zeroed: tuple[int, ...]

    @property
    def excess_db(self) -> float:
        """Measured noise over expected noise."""
        return self.expected_db - self.sqnr_db


def compare_weights(base: onnx.ModelProto, judged: onnx.ModelProto, spans: Sequence[LayerSpan]) -> dict[str, WeightError]:
    """Name of the span -> its weights' error, for every span with constant weights in both graphs."""
    indices = index_graph(base), index_graph(judged)
    errors = {span.name: _layer_error(span.name, *indices) for span in spans if span.op_type in _WEIGHTED}
    return {name: error for name, error in errors.items() if error is not None}


def rounded_already(refined: onnx.ModelProto, judged: onnx.ModelProto, spans: Sequence[LayerSpan]) -> frozenset[str]:
    """Spans whose weights lie on the judged graph's grid already in the refined float graph, rounded to second order."""
    errors = compare_weights(refined, judged, spans)
    return frozenset(name for name, error in errors.items() if error.excess_db < _ON_GRID_DB)


def _layer_error(name: str, base: GraphIndex, judged: GraphIndex) -> WeightError | None:
    """Of a layer that multiplies; None where the graphs do not both have it with constant weights of one shape."""
    mine, other = base.nodes[name], judged.nodes.get(name)
    if other is None or other.op_type != mine.op_type or mine.input[1] not in base.constants:
        return None
    weight = to_array(base.constants[mine.input[1]]).astype(np.float64)
    stored = _stored(other.input[1], judged)
    if stored is None or stored[0].shape != weight.shape:
        return None
    axis = channel_axis(mine, 1, weight.ndim)
    factors = _factors(mine, _gains(mine, base), _gains(other, judged), weight.shape)
    as_stored = _error(weight, stored[0], stored[1], axis)
    if factors is None:
        return as_stored
    undone = _error(weight, stored[0] * factors, stored[1] * factors, axis)
    # where the norm alone was changed, the weights as stored are right
    return undone if undone.excess_db <= as_stored.excess_db else as_stored


def _stored(tensor: str, index: GraphIndex) -> tuple[Float64, Float64] | None:
    """A weight as the judged graph multiplies with it, and the step of its format at each element."""
    if tensor in index.constants:
        values = to_array(index.constants[tensor])
        half = values.dtype == np.float16
        exact = values.astype(np.float64)
        return exact, np.maximum(np.abs(exact) * 2.0 ** (-10 if half else -23), 2.0 ** (-24 if half else -149))
    producer = index.producer(tensor)
    if producer is None or producer.op_type != DEQUANTIZE or not {*filter(None, producer.input)} <= index.constants.keys():
        return None
    codes, scale, *zero = (to_array(index.constants[name]).astype(np.float64) for name in producer.input if name)
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[int(attribute(producer, "axis", 1))] = -1
    step = np.broadcast_to(scale.reshape(shape), codes.shape)
    return (codes - zero[0].reshape(shape) if zero else codes) * step, step


def _factors(node: onnx.NodeProto, base: Gains | None, judged: Gains | None, shape: Sequence[int]) -> Float64 | None:
    """What brings the judged weights back to the float network's, per input channel in a shape that broadcasts; or None."""
    if judged is None or (base is not None and (base[0] != judged[0] or base[1].shape != judged[1].shape)):
        return None
    gains = np.ones_like(judged[1]) if base is None else base[1]
    known = (gains != 0) & (judged[1] != 0)
    moved = np.where(known, judged[1] / np.where(known, gains, 1.0), 1.0)
    if not np.abs(moved - 1).max() > _UNCHANGED:
        return None
    if node.op_type == "ConvTranspose":
        return moved.reshape(-1, *[1] * (len(shape) - 1))
    if node.op_type != "Conv":
        return moved[None] if attribute(node, "transB", 0) else moved[:, None]
    groups = int(attribute(node, "group", 1))
    by_output = np.repeat(moved.reshape(groups, -1), shape[0] // groups, axis=0)  # (C_out, C_in / groups)
    return by_output.reshape(*by_output.shape, *[1] * (len(shape) - 2))


def _gains(node: onnx.NodeProto, index: GraphIndex) -> Gains | None:
    """Name and factors per channel of the node that scales a layer's activation: a norm, or a multiplication."""
    factors: Float64 = np.ones(())
    tensor, name = node.input[0], ""
    while tensor in index.producers:
        name = index.names[index.producers[tensor]]
        producer = index.nodes[name]
        constant = next((n for n in producer.input[1:2] if n in index.constants), None)
        if producer.op_type in _NORMS and constant is not None:
            return name, factors * to_array(index.constants[constant]).astype(np.float64)
        if producer.op_type == "Mul" and constant is not None:
            factors = factors * to_array(index.constants[constant]).astype(np.float64).ravel()
        elif producer.op_type not in _CARRYING and not (producer.op_type == "Add" and constant is not None):
            break
        tensor = producer.input[0]
    return (name, factors) if factors.ndim else None


def _error(weight: Float64, values: Float64, step: Float64, axis: int) -> WeightError:
    others = tuple(a for a in range(weight.ndim) if a != axis)
    signal, noise, expected = (
        np.asarray(np.sum(part**2, axis=others)) for part in (weight, values - weight, step / np.sqrt(12))
    )
    excess = [power_ratio_db(float(n), float(e)) for n, e in zip(noise, expected, strict=True)]
    worst = int(np.argmax(excess))
    return WeightError(
        sqnr_db=power_ratio_db(float(signal.sum()), float(noise.sum())),
        expected_db=power_ratio_db(float(signal.sum()), float(expected.sum())),
        channel=worst,
        channel_db=power_ratio_db(float(signal[worst]), float(noise[worst])),
        zeroed=tuple(int(c) for c in np.flatnonzero(~values.any(axis=others) & (signal > 12 * expected))),
    )
