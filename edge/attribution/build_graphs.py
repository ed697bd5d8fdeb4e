"""The graphs of a build: the reference, the float graph that errors are measured against, the judged graph, those between.

And the checks on whole graphs: reading inner tensors changes nothing, and the float graph is the reference's own function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import ArtifactError, GraphError
from calib.graph import index_graph, parse_graph
from calib.metrics import SQNR_CAP_DB, power_ratio_db
from calib.ort_session import GraphSession, TappedGraph, tapped
from calib.qdq_writer import serialize
from edge.attribution.attribution_record import FloatDrift, GraphFile, Stage, TapCheck
from edge.attribution.layer_spans import LayerSpan
from edge.attribution.merge_outputs import float_outputs, merge_outputs, output_scales
from edge.attribution.paired_images import PairedImages
from edge.images.preprocess import Float32, Tensor
from edge.numeric_tolerances import EXPORT_SQNR_DB
from edge.runtime.ort_runner import OrtRunner
from edge.tasks.task_names import CLASSIFICATION
from engines.build_folder.file_names import FOLDED, MODEL, QUANTIZED, REFINED, TYPED
from engines.build_folder.folder import BuildFolder

ReadTensors = Callable[[Float32], dict[str, NDArray[Any]]]
"""Images (B, 3, S, S) -> tensors of the judged run by name, the logits among them."""


@dataclass(frozen=True)
class LoadedGraph:
    """A graph and which file it is."""

    file: GraphFile
    model: onnx.ModelProto


@dataclass(frozen=True)
class BuildGraphs:
    """The graphs of a build, see `edge.attribution.attribute`; stages `between` base and judged are in order.

    `classify`: whether their output is one score per class, (n, classes).
    """

    reference: LoadedGraph
    base: LoadedGraph
    judged: LoadedGraph
    between: tuple[LoadedGraph, ...] = ()
    classify: bool = True

    def check_ports(self) -> None:
        """Raise InputError for graphs that are not of one network."""
        ports = {}
        for graph in (self.reference, self.base, self.judged, *self.between):
            inputs, outputs = index_graph(graph.model).inputs, tuple(value.name for value in graph.model.graph.output)
            ports[graph.file.file] = (inputs, outputs)
        inputs, outputs = ports[self.reference.file.file]
        if len(inputs) != 1 or not outputs or len(set(ports.values())) != 1:
            raise GraphError(
                "the graphs are not of one network",
                found="; ".join(f"{file}: {', '.join(i)} -> {', '.join(o)}" for file, (i, o) in ports.items()),
                allowed="one input, and outputs of the same names",
            )

    def of_one_output(self, images: Tensor) -> BuildGraphs:
        """The same graphs where they have one output of floats, else with all of these as one; `images` scale them."""
        model = self.reference.model
        numbers = float_outputs(model)
        if len(model.graph.output) == 1:
            return self
        scales = output_scales(OrtRunner(Path(self.reference.file.file), data=serialize(model))(images), numbers)
        merged = [
            LoadedGraph(graph.file, merge_outputs(graph.model, numbers, scales))
            for graph in (self.reference, self.base, self.judged, *self.between)
        ]
        base = merged[0] if self.base is self.reference else merged[1]
        judged = {id(self.reference): merged[0], id(self.base): base}.get(id(self.judged), merged[2])
        return BuildGraphs(merged[0], base, judged, tuple(merged[3:]), self.classify)


def load_graphs(build: BuildFolder) -> BuildGraphs:
    """The graphs of a build. Raises InputError where there is no reference, and for a graph that is not the recorded one."""
    require_graphs(build)
    loaded = {}
    for file in (MODEL, FOLDED, REFINED, QUANTIZED, TYPED):
        if build.has(file):
            model = parse_graph(build.data(file), build.path / file)
            loaded[file] = LoadedGraph(GraphFile(file, build.digests[file]), model)
    present = list(loaded.values())
    base = loaded.get(FOLDED, loaded[MODEL])
    between = tuple(graph for graph in present[1:-1] if graph is not base)
    return BuildGraphs(loaded[MODEL], base, present[-1], between, build.manifest.task == CLASSIFICATION)


def require_graphs(build: BuildFolder) -> None:
    """Raise InputError where there is no reference graph."""
    if not build.has(MODEL):
        raise ArtifactError(
            "the folder holds no FP32 reference graph",
            where=build.path,
            allowed="a build folder; one that was built from a bundle has no graphs",
            next_command="run this where the build was made",
        )


def measure_stages(
    graphs: BuildGraphs, images: PairedImages, reference: Float32, base_db: float, judged_db: float
) -> tuple[Stage, ...]:
    """The graphs of the build in order, with the SQNR of their logits against `reference` (n, classes)."""
    stages = {graphs.reference.file: SQNR_CAP_DB}
    if graphs.base is not graphs.reference:
        stages[graphs.base.file] = base_db
    for graph in graphs.between:
        session, (source,), (output,) = GraphSession(graph.model, threads=0), graph.model.graph.input, graph.model.graph.output
        logits = np.concatenate([session({source.name: batch})[output.name] for _, batch in images.batches()])
        stages[graph.file] = logits_db(reference, logits)
    stages.setdefault(graphs.judged.file, judged_db)
    return tuple(Stage(file, db) for file, db in stages.items())


def logits_db(reference: Float32, logits: Float32) -> float:
    """SQNR of logits (n, classes), within +-SQNR_CAP_DB."""
    with np.errstate(invalid="ignore", over="ignore"):
        noise = float(np.sum((logits.astype(np.float64) - reference) ** 2))
    return power_ratio_db(float(np.sum(reference.astype(np.float64) ** 2)), noise)


def tap_judged_run(as_run: onnx.ModelProto, taps: Sequence[str], images: Float32) -> tuple[ReadTensors, TapCheck]:
    """How to read inner tensors of the judged run, and proof that reading them does not change its logits.

    Extra outputs keep the runtime from fusing the nodes around them, so that it may compute differently. Where it still gives
    the same logits to the last bit, the run that is read is the one that is judged. Where it does not (integer kernels of a
    graph that is not typed), the graph is run node by node as it is written, and the check says how far that is from the run
    that is judged.

    `images` (B, 3, S, S) are one batch to check on; `taps` at least one tensor. What reads gives the output too.
    """
    (source,) = index_graph(as_run).inputs
    output = as_run.graph.output[0].name
    (judged,) = OrtRunner(Path("the judged graph"), data=serialize(as_run))(images)
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
    index, output = index_graph(reference), reference.graph.output[0].name
    (source,) = index.inputs
    shared = [span for span in spans if span.output in index.producers]
    ends = [span.output for span in shared]
    sessions = [GraphSession(tapped(model, ends), threads=0) for model in (reference, base)]
    exponents: dict[str, int] = {}
    powers = {end: [0.0, 0.0] for end in ends}
    logits: list[tuple[Float32, Float32]] = []
    for batch in batches:
        expected, actual = (graph({source: batch}) for graph in sessions)
        logits.append((expected[output], actual[output]))
        for end in ends:
            if end not in exponents:
                exponents[end] = _exponent(expected[end], actual[end])
            scaled = np.ldexp(expected[end], exponents[end]).astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                powers[end][0] += float(np.sum(scaled**2))
                powers[end][1] += float(np.sum((actual[end] - scaled) ** 2))
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


def _exponent(expected: Float32, actual: Float32) -> int:
    """p of 2^p that brings one tensor nearest to another, 0 where there is none."""
    largest = [float(np.abs(values).max()) for values in (expected, actual)]
    return round(np.log2(largest[1] / largest[0])) if min(largest) > 0 and np.isfinite(largest).all() else 0
