"""The rows of `attribution.json`, from what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx

from calib.graph import GraphIndex, index_graph
from calib.macs import MAC_OPS
from calib.qdq_writer import DEQUANTIZE, QUANTIZE
from edge.attribution.attribution_record import ActivationDrift, LayerDrift
from edge.attribution.diagnosis import NotFinite
from edge.attribution.float_fallback import GroupCosts
from edge.attribution.layer_spans import LayerSpan
from edge.attribution.local_errors import PARTS, LocalErrors
from edge.attribution.weight_errors import WeightError
from engines.layer_requests import read_layers


def layer_rows(
    judged: onnx.ModelProto,
    spans: Sequence[LayerSpan],
    errors: LocalErrors,
    weights: Mapping[str, WeightError],
    costs: GroupCosts,
) -> tuple[LayerDrift, ...]:
    """One row per span, in graph order."""
    requested = {layer.name: layer for layer in read_layers(judged)}
    not_finite: Counter[str] = Counter()
    for place in not_finite_places(judged, spans, errors):
        not_finite[place.layer] += place.count
    rows = []
    for span in spans:
        error, weight, layer = errors.spans[span.name], weights.get(span.name), requested.get(span.name)
        rows.append(
            LayerDrift(
                name=span.name,
                op_type=span.op_type,
                output=span.output,
                precision=layer.requested if layer else "",
                macs=layer.macs if layer else 0,
                **{f"{part}_db": error.db(part) for part in PARTS},
                activation_db=error.db("fp16", "rounding", "clipping"),
                weight_sqnr_db=weight.sqnr_db if weight else None,
                weight_expected_db=weight.expected_db if weight else None,
                worst_channel=weight.channel if weight else None,
                worst_channel_db=weight.channel_db if weight else None,
                not_finite=not_finite[span.name],
                isolated_db=costs.isolated_db.get(span.name),
                logits_share=costs.share.get(span.name),
            )
        )
    return tuple(rows)


def activation_rows(judged: onnx.ModelProto, errors: LocalErrors) -> tuple[ActivationDrift, ...]:
    """One row per quantized activation, in graph order."""
    index = index_graph(judged)
    rows = []
    for tensor, error in errors.scales.items():
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
    """The layers that multiply with the output of a tensor's Q/DQ pairs."""
    layers: dict[str, None] = {}
    for at in index.consumers.get(tensor, ()):
        if judged.graph.node[at].op_type != QUANTIZE:
            continue
        for pair in index.consumers.get(judged.graph.node[at].output[0], ()):
            if judged.graph.node[pair].op_type != DEQUANTIZE:
                continue
            readers = index.consumers.get(judged.graph.node[pair].output[0], ())
            layers.update((index.names[r], None) for r in readers if judged.graph.node[r].op_type in MAC_OPS)
    return tuple(layers)


def not_finite_places(judged: onnx.ModelProto, spans: Sequence[LayerSpan], errors: LocalErrors) -> tuple[NotFinite, ...]:
    """Where NaN or infinity occurs, in graph order."""
    index = index_graph(judged)
    layer_of: dict[str, str] = {}
    for span in spans:
        for node in span.nodes:
            layer_of.setdefault(node, span.name)
    places = []
    for tensor, count in errors.not_finite.items():
        node = index.names[index.producers[tensor]] if tensor in index.producers else tensor
        places.append(NotFinite(node, layer_of.get(node, ""), count))
    return tuple(places)
