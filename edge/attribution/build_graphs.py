"""The graphs of a build: the reference, the float graph that errors are measured against, the judged graph, those between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from calib.errors import ArtifactError, GraphError
from calib.graph import index_graph, parse_graph
from calib.metrics import SQNR_CAP_DB
from calib.ort_session import GraphSession
from edge.attribution.attribution_record import GraphFile, Stage
from edge.attribution.graph_checks import logits_db
from edge.attribution.paired_images import PairedImages
from edge.images.preprocess import Float32
from engines.build_folder.file_names import FOLDED, MODEL, QUANTIZED, REFINED, TYPED
from engines.build_folder.folder import BuildFolder


@dataclass(frozen=True)
class LoadedGraph:
    """A graph and which file it is."""

    file: GraphFile
    model: onnx.ModelProto


@dataclass(frozen=True)
class BuildGraphs:
    """The graphs of a build, see `edge.attribution.attribute`.

    Attributes:
        between: other graphs of the flow from `base` to `judged`, in order, that are shown as stages.
    """

    reference: LoadedGraph
    base: LoadedGraph
    judged: LoadedGraph
    between: tuple[LoadedGraph, ...] = ()

    @property
    def refined(self) -> onnx.ModelProto | None:
        """The refined float graph, None where there is none between the others."""
        return next((graph.model for graph in self.between if graph.file.file == REFINED), None)

    def check_ports(self) -> None:
        """Raise InputError for graphs that are not of one classifier."""
        ports = {}
        for graph in (self.reference, self.base, self.judged, *self.between):
            inputs, outputs = index_graph(graph.model).inputs, tuple(value.name for value in graph.model.graph.output)
            ports[graph.file.file] = (inputs, outputs)
        inputs, outputs = ports[self.reference.file.file]
        if len(inputs) != 1 or len(outputs) != 1 or len(set(ports.values())) != 1:
            raise GraphError(
                "the graphs are not of one classifier",
                found="; ".join(f"{file}: {', '.join(i)} -> {', '.join(o)}" for file, (i, o) in ports.items()),
                allowed="one input and one output, of the same names",
            )


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
    return BuildGraphs(loaded[MODEL], base, present[-1], between)


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
