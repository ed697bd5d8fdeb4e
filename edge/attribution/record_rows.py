"""The rows of `attribution.json`, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from calib.graph import GraphIndex, index_graph
from calib.macs import MAC_OPS
from calib.qdq_writer import DEQUANTIZE, QUANTIZE
from edge.attribution.attribution_record import ActivationDrift, LayerDrift
from edge.attribution.diagnosis import NotFinite
from edge.attribution.float_fallback import Costs
from edge.attribution.layer_spans import Unit
from edge.attribution.local_errors import Measured, UnitError, decibels
from edge.attribution.weight_errors import WeightError
from engines.layer_requests import read_layers


def layer_rows(
    judged: onnx.ModelProto, units: Sequence[Unit], measured: Measured, weights: Mapping[str, WeightError], costs: Costs
) -> tuple[LayerDrift, ...]:
    """One row per unit, in graph order."""
    asked = {layer.name: layer for layer in read_layers(judged)}
    bad: dict[str, int] = {}
    for place in not_finite_places(judged, units, measured):
        bad[place.layer] = bad.get(place.layer, 0) + place.count
    rows = []
    for unit in units:
        error, weight, layer = measured.units[unit.name], weights.get(unit.name), asked.get(unit.name)
        rows.append(
            LayerDrift(
                name=unit.name,
                op_type=unit.op_type,
                output=unit.output,
                precision=layer.requested if layer else "",
                macs=layer.macs if layer else 0,
                accumulated_db=error.db("accumulated"),
                inherited_db=error.db("inherited"),
                introduced_db=error.db("introduced"),
                weights_db=error.db("weights"),
                activation_db=_activation_db(error),
                rounding_db=error.db("rounding"),
                clipping_db=error.db("clipping"),
                fp16_db=error.db("fp16"),
                weight_sqnr_db=weight.sqnr_db if weight else None,
                weight_expected_db=weight.expected_db if weight else None,
                worst_channel=weight.channel if weight else None,
                worst_channel_db=weight.channel_db if weight else None,
                not_finite=bad.get(unit.name, 0),
                isolated_db=costs.isolated_db.get(unit.name),
                logits_share=costs.share.get(unit.name),
            )
        )
    return tuple(rows)


def _activation_db(error: UnitError) -> float:
    """SQNR of all that happens to activations: the parts that are not the constants', whose noises add up."""
    return decibels(error.signal, sum(error.noise[part] for part in ("fp16", "rounding", "clipping")))


def activation_rows(judged: onnx.ModelProto, measured: Measured) -> tuple[ActivationDrift, ...]:
    """One row per quantized activation, in graph order."""
    index = index_graph(judged)
    rows = []
    for tensor, error in measured.scales.items():
        source = error.activation
        rows.append(
            ActivationDrift(
                tensor=tensor,
                readers=_readers(judged, index, tensor),
                scale=source.scale,
                excess_db=error.excess_db,
                best_factor=error.best_factor,
                clipping_share=error.clipping_share,
                clipped=error.beyond / error.count if error.count else 0.0,
                range_used=error.largest / (source.high * source.scale),
            )
        )
    return tuple(rows)


def _readers(judged: onnx.ModelProto, index: GraphIndex, tensor: str) -> tuple[str, ...]:
    """The layers that multiply with what the Q/DQ pairs of a tensor give."""
    found: dict[str, None] = {}
    for at in index.consumers.get(tensor, ()):
        if judged.graph.node[at].op_type != QUANTIZE:
            continue
        for pair in index.consumers.get(judged.graph.node[at].output[0], ()):
            if judged.graph.node[pair].op_type != DEQUANTIZE:
                continue
            readers = index.consumers.get(judged.graph.node[pair].output[0], ())
            found.update((index.names[r], None) for r in readers if judged.graph.node[r].op_type in MAC_OPS)
    return tuple(found)


def not_finite_places(judged: onnx.ModelProto, units: Sequence[Unit], measured: Measured) -> tuple[NotFinite, ...]:
    """Where NaN or infinity is seen, in graph order."""
    index = index_graph(judged)
    home: dict[str, str] = {}
    for unit in units:
        for node in unit.nodes:
            home.setdefault(node, unit.name)
    places = []
    for tensor, count in measured.not_finite.items():
        node = index.names[index.producers[tensor]] if tensor in index.producers else tensor
        places.append(NotFinite(node, home.get(node, ""), count))
    return tuple(places)
