"""Checks around the layers: that looking changes nothing, and that the float graph is the reference's own function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx

from calib.graph import index_graph
from calib.ort_session import GraphSession, TappedGraph
from calib.qdq_writer import serialize
from edge.attribution.attribution_record import FloatDrift, TapCheck
from edge.attribution.graph_variants import tapped
from edge.attribution.layer_spans import Unit
from edge.attribution.local_errors import Look, decibels
from edge.images.preprocess import Float32
from edge.numeric_tolerances import EXPORT_SQNR_DB, SQNR_CAP_DB
from edge.runtime.ort_runner import OrtRunner


def logits_db(reference: Float32, logits: Float32) -> float:
    """SQNR of logits (n, classes), within +-300 dB."""
    with np.errstate(invalid="ignore", over="ignore"):
        noise = float(np.sum((logits.astype(np.float64) - reference) ** 2))
    return decibels(float(np.sum(reference.astype(np.float64) ** 2)), noise)


def look_at(as_run: onnx.ModelProto, taps: Sequence[str], images: Float32) -> tuple[Look, TapCheck]:
    """A way to see inner tensors of the judged run, and proof that looking does not change its logits.

    Extra outputs keep the runtime from melting the nodes around them into one, so that it may compute otherwise. Where it then
    gives the same logits to the last bit, the run that is looked at is the one that is judged. Where it does not (integer
    kernels of a graph that is not typed), the graph is run node by node as it is written, and the check says how far that is
    from the run that is judged.

    Args:
        as_run: the judged graph as it is run, see `edge.attribution.graph_variants`.
        taps: tensors to see, one at least.
        images: (B, 3, S, S), one batch to check on.

    Returns: images -> {tensor: values}, the output among them; the check.
    """
    (source,) = index_graph(as_run).inputs
    output = as_run.graph.output[0].name
    judged = OrtRunner(Path("the judged graph"), data=serialize(as_run))(images)
    names = tuple(dict.fromkeys((*taps, output)))
    seen = TappedGraph(as_run, names, threads=0)
    found = seen(images)[output]
    if np.array_equal(judged, found, equal_nan=True):
        return seen, TapCheck(len(names) - 1, True, SQNR_CAP_DB, SQNR_CAP_DB)
    plain, more = GraphSession(as_run, threads=0), GraphSession(tapped(as_run, names), threads=0)
    found = more({source: images})[output]
    untapped = plain({source: images})[output]
    identical = np.array_equal(untapped, found, equal_nan=True)
    check = TapCheck(
        outputs=len(names) - 1,
        identical=identical,
        sqnr_db=SQNR_CAP_DB if identical else logits_db(untapped, found),
        as_run_db=logits_db(judged, found),
    )
    return lambda batch: more({source: batch}), check


def check_float_graph(
    reference: onnx.ModelProto, base: onnx.ModelProto, units: Sequence[Unit], batches: Iterable[Float32]
) -> tuple[FloatDrift, Float32]:
    """The float graph against the reference at the end of every unit, powers of two apart; and the reference's logits.

    Folding multiplies a tensor by 2^p, which loses nothing: p is read from the largest magnitudes of the first batch.
    """
    (source,) = index_graph(reference).inputs
    made = index_graph(reference).producers
    shared = [unit for unit in units if unit.output in made]
    ends = [unit.output for unit in shared]
    sessions = [GraphSession(tapped(model, ends), threads=0) for model in (reference, base)]
    outputs = [model.graph.output[0].name for model in (reference, base)]
    exponents: dict[str, int] = {}
    sums = {end: [0.0, 0.0] for end in ends}
    logits: list[tuple[Float32, Float32]] = []
    for batch in batches:
        mine, other = (graph({source: batch}) for graph in sessions)
        logits.append((mine[outputs[0]], other[outputs[1]]))
        for end in ends:
            if end not in exponents:
                largest = [float(np.abs(run[end]).max()) for run in (mine, other)]
                exponents[end] = (
                    round(np.log2(largest[1] / largest[0])) if min(largest) > 0 and np.isfinite(largest).all() else 0
                )
            scaled = np.ldexp(mine[end], exponents[end]).astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                sums[end][0] += float(np.sum(scaled**2))
                sums[end][1] += float(np.sum((other[end] - scaled) ** 2))
    found = {unit.name: decibels(*sums[unit.output]) for unit in shared}
    worst = min(found, key=found.__getitem__, default="")
    sides = [np.concatenate(side) for side in zip(*logits, strict=True)]
    drift = FloatDrift(
        logits_db=logits_db(sides[0], sides[1]),
        worst_db=found.get(worst, SQNR_CAP_DB),
        worst_layer=worst,
        first_layer=next((name for name, db in found.items() if db < EXPORT_SQNR_DB), ""),
        scaled=sum(p != 0 for p in exponents.values()),
    )
    return drift, sides[0]
