"""Checks around the layers: reading inner tensors changes nothing, and the float graph is the reference's own function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx

from calib.graph import index_graph
from calib.metrics import SQNR_CAP_DB, power_ratio_db
from calib.ort_session import GraphSession, TappedGraph
from calib.qdq_writer import serialize
from edge.attribution.attribution_record import FloatDrift, TapCheck
from edge.attribution.graph_variants import tapped
from edge.attribution.layer_spans import LayerSpan
from edge.attribution.local_errors import ReadTensors
from edge.images.preprocess import Float32
from edge.numeric_tolerances import EXPORT_SQNR_DB
from edge.runtime.ort_runner import OrtRunner


def logits_db(reference: Float32, logits: Float32) -> float:
    """SQNR of logits (n, classes), within +-SQNR_CAP_DB."""
    with np.errstate(invalid="ignore", over="ignore"):
        noise = float(np.sum((logits.astype(np.float64) - reference) ** 2))
    return power_ratio_db(float(np.sum(reference.astype(np.float64) ** 2)), noise)


def tap_judged_run(as_run: onnx.ModelProto, taps: Sequence[str], images: Float32) -> tuple[ReadTensors, TapCheck]:
    """A way to read inner tensors of the judged run, and proof that reading them does not change its logits.

    Extra outputs keep the runtime from fusing the nodes around them, so that it may compute differently. Where it still gives
    the same logits to the last bit, the run that is read is the one that is judged. Where it does not (integer kernels of a
    graph that is not typed), the graph is run node by node as it is written, and the check says how far that is from the run
    that is judged.

    Args:
        as_run: the judged graph as it is run, see `edge.attribution.graph_variants`.
        taps: tensors to read, one at least.
        images: (B, 3, S, S), one batch to check on.

    Returns: images -> {tensor: values}, the output among them; the check.
    """
    (source,) = index_graph(as_run).inputs
    output = as_run.graph.output[0].name
    judged = OrtRunner(Path("the judged graph"), data=serialize(as_run))(images)
    names = tuple(dict.fromkeys((*taps, output)))
    fused = TappedGraph(as_run, names, threads=0)
    if np.array_equal(judged, fused(images)[output], equal_nan=True):
        return fused, TapCheck(len(names) - 1, True, SQNR_CAP_DB, SQNR_CAP_DB)
    plain, as_written = GraphSession(as_run, threads=0), GraphSession(tapped(as_run, names), threads=0)
    logits, untapped = as_written({source: images})[output], plain({source: images})[output]
    identical = np.array_equal(untapped, logits, equal_nan=True)
    check = TapCheck(
        outputs=len(names) - 1,
        identical=identical,
        sqnr_db=SQNR_CAP_DB if identical else logits_db(untapped, logits),
        as_run_db=logits_db(judged, logits),
    )
    return lambda batch: as_written({source: batch}), check


def check_float_graph(
    reference: onnx.ModelProto, base: onnx.ModelProto, spans: Sequence[LayerSpan], batches: Iterable[Float32]
) -> tuple[FloatDrift, Float32]:
    """The float graph against the reference at the end of every span, powers of two apart; and the reference's logits.

    Folding multiplies a tensor by 2^p, which loses nothing: p is read from the largest magnitudes of the first batch.
    """
    index = index_graph(reference)
    (source,) = index.inputs
    shared = [span for span in spans if span.output in index.producers]
    ends = [span.output for span in shared]
    sessions = [GraphSession(tapped(model, ends), threads=0) for model in (reference, base)]
    outputs = [model.graph.output[0].name for model in (reference, base)]
    exponents: dict[str, int] = {}
    powers = {end: [0.0, 0.0] for end in ends}
    logits: list[tuple[Float32, Float32]] = []
    for batch in batches:
        wanted, found = (graph({source: batch}) for graph in sessions)
        logits.append((wanted[outputs[0]], found[outputs[1]]))
        for end in ends:
            if end not in exponents:
                exponents[end] = _exponent(wanted[end], found[end])
            scaled = np.ldexp(wanted[end], exponents[end]).astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                powers[end][0] += float(np.sum(scaled**2))
                powers[end][1] += float(np.sum((found[end] - scaled) ** 2))
    sqnr = {span.name: power_ratio_db(*powers[span.output]) for span in shared}
    worst = min(sqnr, key=sqnr.__getitem__, default="")
    reference_logits, base_logits = (np.concatenate(parts) for parts in zip(*logits, strict=True))
    drift = FloatDrift(
        logits_db=logits_db(reference_logits, base_logits),
        worst_db=sqnr.get(worst, SQNR_CAP_DB),
        worst_layer=worst,
        first_layer=next((name for name, db in sqnr.items() if db < EXPORT_SQNR_DB), ""),
        scaled=sum(exponent != 0 for exponent in exponents.values()),
    )
    return drift, reference_logits


def _exponent(wanted: Float32, found: Float32) -> int:
    """p of 2^p that brings one tensor nearest to another, 0 where there is none."""
    largest = [float(np.abs(values).max()) for values in (wanted, found)]
    return round(np.log2(largest[1] / largest[0])) if min(largest) > 0 and np.isfinite(largest).all() else 0
