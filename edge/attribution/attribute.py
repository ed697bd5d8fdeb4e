"""Where a build drifts from its FP32 reference: which layer, by weights or activations, by rounding or clipping, or none.

    reference   model.onnx
    base        the float graph that the judged one was made from, which errors are measured against: model.folded.onnx where
                the build folded powers of two into the weights, else the reference. It is held against the reference tensor by
                tensor, powers of two apart. The refined float graph is no base: its weights lie on INT8's grid already, so that
                the weights' share of the error would hide in it; it is shown as a stage.
    judged      the last graph: model.typed.onnx with every rounding emulated, else model.int8.onnx, else the reference

    units                what both graphs share: the ends of their layers                               `units`
    forms                the judged graph, its Q/DQ and roundings taken out one after the other         `forms`
    local errors         inherited against introduced, for every layer and kind                         `local_errors`
    weights              the constants themselves                                                       `weights`
    left in float        what each group costs the logits; the costliest tried in float                 `left_in_float`
    culprits             rules on all that, and one sentence                                            `culprits`

The judged graph is never changed but for further outputs, which do not change its logits: that is checked on every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calib.artifact import write_artifact
from calib.errors import InputError
from calib.files import sha256_bytes
from edge.attribution.attribution_record import Attribution, FloatDrift, GraphFile, Stage, TapCheck
from edge.images.preprocess import Float32, read_preprocess
from edge.numeric_tolerances import SQNR_CAP_DB
from edge.progress import Advance
from engines.build_folder.file_names import ATTRIBUTION, FOLDED, MODEL, QUANTIZED, REFINED, TYPED

if TYPE_CHECKING:
    import onnx

    from edge.attribution.diagnosis import Evidence
    from edge.attribution.float_fallback import Costs
    from edge.attribution.graph_variants import Forms
    from edge.attribution.layer_spans import Unit
    from edge.attribution.local_errors import Measured
    from edge.attribution.paired_images import Sides
    from edge.images.labelled_images import ImageSet

IMAGES = 32
"""Images that the errors of layers are summed over. Each has thousands of values at the end of a layer, so that another draw of
32 moves a layer's SQNR by some tenths of a dB."""
TRIAL_IMAGES = 128
"""Images that layers are tried in float on, and scales. An image has a few logits only: on 32 a gain of 1 dB is uncertain by as
much. Behind the class token it has one row of values, and how much clipping costs hangs on the largest few."""


@dataclass(frozen=True)
class LoadedGraph:
    """A graph and which file it is."""

    file: GraphFile
    model: onnx.ModelProto


@dataclass(frozen=True)
class Graphs:
    """The graphs of a build, see the module's docstring.

    Attributes:
        between: other graphs of the flow from `base` to `judged`, in order, that are shown as stages.
    """

    reference: LoadedGraph
    base: LoadedGraph
    judged: LoadedGraph
    between: tuple[LoadedGraph, ...] = ()


def attribute(folder: Path, images: ImageSet, advance: Advance) -> Attribution:
    """Attribute the drift of a build folder, and write `attribution.json` there.

    Args:
        folder: of `ufovit build`, with its graphs.
        images: any; TRIAL_IMAGES of them, spread evenly, are used. The reference gets them prepared as its graph says, the
            judged side as the manifest says.
        advance: told the share that is done.

    Raises InputError for a folder without graphs or manifest, and for images that cannot be read.
    """
    from edge.model.metadata import read_graph_info
    from engines.build_folder.manifest import read_manifest

    graphs, preprocess = load_graphs(folder), read_preprocess(read_manifest(folder))
    info = read_graph_info(graphs.reference.model, folder / MODEL)
    (judged,) = images.take(TRIAL_IMAGES).batches(preprocess, TRIAL_IMAGES)
    same = info is None or info.preprocess == preprocess
    (mine,) = (judged,) if same or info is None else images.take(TRIAL_IMAGES).batches(info.preprocess, TRIAL_IMAGES)
    found = attribute_graphs(graphs, mine, judged, advance)
    write_artifact(folder / ATTRIBUTION, found)
    return found


def load_graphs(folder: Path) -> Graphs:
    """The graphs of a build folder. Raises InputError where there is no reference."""
    from calib.graph import load_graph

    require_graphs(folder)
    loaded = {}
    for file in (MODEL, FOLDED, REFINED, QUANTIZED, TYPED):
        if (folder / file).is_file():
            model, data = load_graph(folder / file)
            loaded[file] = LoadedGraph(GraphFile(file, sha256_bytes(data)), model)
    present = list(loaded.values())
    base = loaded.get(FOLDED, loaded[MODEL])
    between = tuple(graph for graph in present[1:-1] if graph is not base)
    return Graphs(loaded[MODEL], base, present[-1], between)


def require_graphs(folder: Path) -> None:
    """Raise InputError where there is no reference graph."""
    if not (folder / MODEL).is_file():
        raise InputError(
            "the folder holds no FP32 reference graph",
            where=folder,
            allowed="a build folder; one that was built from a bundle has no graphs",
            next_command="run this where the build was made",
        )


def attribute_graphs(
    graphs: Graphs, images: Float32, judged_images: Float32 | None = None, advance: Advance = lambda _share: None
) -> Attribution:
    """Attribute the drift of one graph from another.

    Args:
        graphs: what is compared; all have one input and one output, of the same names.
        images: float32 (n, C, S, S) as the reference is fed with them. Layers are measured on IMAGES of them; scales and
            layers in float are tried on all.
        judged_images: the same images as the judged side is fed with them; None for the same array.
        advance: told the share that is done.

    Raises InputError for graphs or arrays that do not fit each other, and for a reference that gives NaN or infinity.
    """
    from edge.attribution.diagnosis import find_culprits, sentence
    from edge.attribution.float_fallback import measure_costs
    from edge.attribution.graph_checks import check_float_graph, logits_db, look_at
    from edge.attribution.graph_variants import take_forms
    from edge.attribution.layer_spans import comparable
    from edge.attribution.local_errors import measure, watched
    from edge.attribution.paired_images import Sides

    base, judged = graphs.base.model, graphs.judged.model
    _check_ports(graphs)
    sides = Sides(images, images if judged_images is None else judged_images)
    few = sides.take(IMAGES)
    units, lost = comparable(base, judged)
    forms = take_forms(judged)
    look, taps = look_at(forms.as_run, watched(forms.as_run, [unit.output for unit in units]), next(few.pairs())[1])
    advance(0.1)
    more = (mine for mine, _judged in sides.pairs_without(IMAGES))
    measured = measure(base, forms, units, look, few.pairs(), lambda done: advance(0.1 + 0.2 * done / len(sides)), more)
    float_graph, logits = check_float_graph(graphs.reference.model, base, units, (mine for mine, _ in few.pairs()))
    costs = measure_costs(base, judged, forms, units, sides, lambda share: advance(0.3 + 0.6 * share))
    db = logits_db(logits, measured.judged_logits)
    evidence = _evidence(graphs, forms, units, few, (measured, costs, float_graph, taps, db))
    culprits = find_culprits(evidence)
    stages = _stages(graphs, few, logits, (float_graph.logits_db, db))
    advance(1.0)
    return Attribution(
        sentence=sentence(culprits, db, costs.ranking),
        culprits=culprits,
        reference=graphs.reference.file,
        base=graphs.base.file,
        judged=graphs.judged.file,
        ran_on=f"ONNX Runtime, CPU{', its FP16 roundings emulated' if forms.typed else ''}",
        images=len(few),
        trial_images=len(sides),
        images_sha256=sha256_bytes(sides.mine.tobytes()),
        judged_images_sha256=sha256_bytes(sides.judged.tobytes()),
        logits_db=db,
        answers_changed=int((logits.argmax(1) != np.nan_to_num(measured.judged_logits).argmax(1)).sum()),
        input=evidence.input,
        float_graph=float_graph,
        taps=evidence.taps,
        stages=stages,
        layers=evidence.layers,
        activations=evidence.activations,
        costliest=costs.trials,
        float_form=costs.float_form,
        not_compared=lost,
    )


def _evidence(
    graphs: Graphs,
    forms: Forms,
    units: tuple[Unit, ...],
    sides: Sides,
    found: tuple[Measured, Costs, FloatDrift, TapCheck, float],
) -> Evidence:
    """All that the rules look at."""
    from edge.attribution.diagnosis import Evidence
    from edge.attribution.input_drift import compare_inputs
    from edge.attribution.layer_spans import rewired
    from edge.attribution.record_rows import activation_rows, layer_rows, not_finite_places
    from edge.attribution.weight_errors import compare_weights, held_already

    judged, (measured, costs, float_graph, taps, db) = graphs.judged.model, found
    weights = compare_weights(graphs.base.model, judged, units)
    return Evidence(
        typed=forms.typed,
        logits_db=db,
        input=compare_inputs(sides.mine, sides.judged),
        float_graph=float_graph,
        taps=taps,
        layers=layer_rows(judged, units, measured, weights, costs),
        activations=activation_rows(judged, measured),
        not_finite=not_finite_places(judged, units, measured),
        rewired=rewired(units, judged),
        weights=weights,
        refined=next((held_already(g.model, judged, units) for g in graphs.between if g.file.file == REFINED), frozenset()),
    )


def _stages(graphs: Graphs, sides: Sides, reference: Float32, known: tuple[float, float]) -> tuple[Stage, ...]:
    """The graphs of the build in order; `known`: SQNR of the base and of the judged graph."""
    from calib.ort_session import GraphSession
    from edge.attribution.graph_checks import logits_db

    stages = [Stage(graphs.reference.file, SQNR_CAP_DB)]
    if graphs.base is not graphs.reference:
        stages.append(Stage(graphs.base.file, known[0]))
    for graph in graphs.between:
        model = graph.model
        session, source, output = GraphSession(model, threads=0), model.graph.input[0].name, model.graph.output[0].name
        stages.append(
            Stage(graph.file, logits_db(reference, np.concatenate([session({source: b})[output] for _, b in sides.pairs()])))
        )
    if graphs.judged.file not in [stage.graph for stage in stages]:
        stages.append(Stage(graphs.judged.file, known[1]))
    return tuple(stages)


def _check_ports(graphs: Graphs) -> None:
    """Raises InputError for graphs that are not of one classifier."""
    from calib.graph import index_graph

    ports = {}
    for graph in (graphs.reference, graphs.base, graphs.judged, *graphs.between):
        model = graph.model
        ports[graph.file.file] = (index_graph(model).inputs, tuple(value.name for value in model.graph.output))
    inputs, outputs = ports[graphs.reference.file.file]
    if len(inputs) != 1 or len(outputs) != 1 or len(set(ports.values())) != 1:
        raise InputError(
            "the graphs are not of one classifier",
            found="; ".join(f"{file}: {', '.join(i)} -> {', '.join(o)}" for file, (i, o) in ports.items()),
            allowed="one input and one output, of the same names",
        )
