"""Where a build drifts from its FP32 reference: which layer, by weights or activations, by rounding or clipping, or none.

    reference   model.onnx
    base        the float graph that the judged one was made from, which errors are measured against: model.folded.onnx where
                the build folded powers of two into the weights, else the reference. It is compared with the reference tensor by
                tensor, powers of two apart. The refined float graph cannot be the base: its weights lie on INT8's grid already,
                so that the weights' share of the error would be hidden; it is shown as a stage.
    judged      the last graph: model.typed.onnx with every rounding emulated, else model.int8.onnx, else the reference

    layer spans          what both graphs share: the ends of their layers                               `layer_spans`
    variants             the judged graph, its Q/DQ and roundings taken out one after the other         `graph_variants`
    local errors         inherited against introduced, for every layer and kind                         `local_errors`
    weights              the constants themselves                                                       `weight_errors`
    float fallback       what each group costs the logits; the costliest tried in float                 `float_fallback`
    diagnosis            rules on all that, and one sentence                                            `diagnosis`

The judged graph is never changed but for further outputs, which do not change its logits: every call checks that.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from calib.artifact import write_artifact
from calib.files import sha256_bytes
from calib.graph import GraphIndex, index_graph
from calib.macs import MAC_OPS
from calib.qdq_writer import DEQUANTIZE, QUANTIZE
from edge.attribution.attribution_record import ActivationDrift, Attribution, LayerDrift, NotCompared
from edge.attribution.build_graphs import BuildGraphs, check_float_graph, load_graphs, logits_db, measure_stages
from edge.attribution.diagnosis import DriftEvidence, NotFinite, diagnose, summarize
from edge.attribution.float_fallback import GroupCosts, measure_group_costs
from edge.attribution.graph_variants import make_variants
from edge.attribution.layer_spans import LayerSpan, rewired_spans, shared_spans
from edge.attribution.local_errors import PARTS, LocalErrors
from edge.attribution.paired_images import PairedImages, compare_inputs
from edge.attribution.weight_errors import WeightError, compare_weights, rounded_already
from edge.images.labelled_images import ImageSet
from edge.images.preprocess import Float32, Tensor, read_preprocess
from edge.model.metadata import read_graph_info
from edge.progress import Advance
from engines.build_folder.file_names import ATTRIBUTION, MODEL, REFINED
from engines.build_folder.folder import BuildFolder
from engines.layer_requests import read_layers

IMAGES = 32
"""Images that the errors of layers are summed over. Each has thousands of values at the end of a layer, so that another draw of
32 moves a layer's SQNR by some tenths of a dB."""
TRIAL_IMAGES = 128
"""Images that layers are tried in float on, and scales. An image has a few logits only: on 32 a gain of 1 dB is uncertain by as
much. At the class token it has one row of values, and the cost of clipping depends on the largest few."""


def attribute_build(build: BuildFolder, images: ImageSet, advance: Advance, out: Path | None = None) -> Attribution:
    """Attribute the drift of a build, and write `attribution.json` into the folder `out`, by default its own.

    TRIAL_IMAGES of the images, spread evenly, are used. They are prepared for the reference as its graph says, for the judged
    side as the manifest says. `advance` is called with the share that is done. Raises InputError for a folder without graphs
    or manifest, and for images that cannot be read.
    """
    graphs, preprocess = load_graphs(build), read_preprocess(build.manifest)
    info = read_graph_info(graphs.reference.model, build.path / MODEL)
    chosen = images.take(TRIAL_IMAGES)
    (judged,) = chosen.batches(preprocess, TRIAL_IMAGES)
    reference = judged
    if info is not None and info.preprocess != preprocess:
        (reference,) = chosen.batches(info.preprocess, TRIAL_IMAGES)
    attribution = attribute_graphs(graphs, reference, judged, advance)
    write_artifact((out or build.path) / ATTRIBUTION, attribution)
    return attribution


def attribute_graphs(
    graphs: BuildGraphs, images: Tensor, judged_images: Tensor | None = None, advance: Advance = lambda _share: None
) -> Attribution:
    """Attribute the drift of one graph from another.

    Args:
        graphs: what is compared; all have one input, and outputs of the same names. Several are attributed together, see
            `edge.attribution.merge_outputs`.
        images: (n, ...), inputs of the reference. Layers are measured on IMAGES of them; scales and layers in
            float are tried on all.
        judged_images: the same images as inputs of the judged side; None for the same array.
        advance: called with the share that is done.

    Raises InputError for graphs or arrays that do not fit each other, and for a reference that gives NaN or infinity.
    """
    graphs.check_ports()
    pairs = PairedImages(images, images if judged_images is None else judged_images)
    few = pairs.take(IMAGES)
    graphs = graphs.of_one_output(few.reference)
    base, judged = graphs.base.model, graphs.judged.model
    variants = make_variants(base, judged)
    spans, not_compared = shared_spans(base, judged)
    errors = LocalErrors(variants, [span.output for span in spans], next(few.batches())[1])
    advance(0.1)
    errors.measure(pairs, IMAGES, lambda done: advance(0.1 + 0.2 * done / len(pairs)))
    judged_logits = np.concatenate(errors.judged_logits)
    float_graph, logits = check_float_graph(graphs.reference.model, base, spans, (batch for batch, _ in few.batches()))
    costs = measure_group_costs(variants, spans, pairs, lambda share: advance(0.3 + 0.6 * share))
    not_compared += _in_bodies(judged)
    weights = compare_weights(base, judged, spans)
    refined = next((graph.model for graph in graphs.between if graph.file.file == REFINED), None)
    not_finite = _not_finite_places(judged, spans, errors)
    evidence = DriftEvidence(
        typed=variants.typed,
        outputs="logits" if graphs.classify else "outputs",
        logits_db=logits_db(logits, judged_logits),
        input=compare_inputs(few.reference, few.judged),
        float_graph=float_graph,
        taps=errors.taps,
        layers=_layer_rows(judged, spans, errors, weights, costs, not_finite),
        activations=_activation_rows(judged, errors),
        not_finite=not_finite,
        rewired=rewired_spans(spans, judged),
        weights=weights,
        refined=frozenset() if refined is None else rounded_already(refined, judged, spans),
    )
    attribution = _record(graphs, pairs, evidence, costs, (logits, judged_logits), not_compared)
    advance(1.0)
    return attribution


def _record(
    graphs: BuildGraphs,
    pairs: PairedImages,
    evidence: DriftEvidence,
    costs: GroupCosts,
    logits: tuple[Float32, Float32],
    not_compared: tuple[NotCompared, ...],
) -> Attribution:
    """What was measured, diagnosed; `logits` of the reference and of the judged graph."""
    few, findings = pairs.take(IMAGES), diagnose(evidence)
    shares = {group[0].name: share for group, share in costs.shares.items()}
    return Attribution(
        sentence=summarize(findings, evidence.logits_db, shares, evidence.outputs),
        culprits=findings,
        reference=graphs.reference.file,
        base=graphs.base.file,
        judged=graphs.judged.file,
        ran_on=f"ONNX Runtime, CPU{', its FP16 roundings emulated' if evidence.typed else ''}",
        images=len(few),
        trial_images=len(pairs),
        images_sha256=sha256_bytes(pairs.reference.tobytes()),
        judged_images_sha256=sha256_bytes(pairs.judged.tobytes()),
        logits_db=evidence.logits_db,
        answers_changed=_answers_changed(*logits, classify=graphs.classify),
        input=evidence.input,
        float_graph=evidence.float_graph,
        taps=evidence.taps,
        stages=measure_stages(graphs, few, logits[0], evidence.float_graph.logits_db, evidence.logits_db),
        layers=evidence.layers,
        activations=evidence.activations,
        costliest=costs.trials,
        float_form=costs.float_form,
        not_compared=not_compared,
    )


def _answers_changed(reference: Float32, judged: Float32, *, classify: bool) -> int:
    """Images whose class differs; for outputs (n, ...) that are not scores of classes, those of which any value differs."""
    if classify:
        return int((reference.argmax(1) != np.nan_to_num(judged).argmax(1)).sum())
    return int((reference != judged).reshape(len(reference), -1).any(axis=1).sum())


def _layer_rows(
    judged: onnx.ModelProto,
    spans: Sequence[LayerSpan],
    errors: LocalErrors,
    weights: Mapping[str, WeightError],
    costs: GroupCosts,
    places: Sequence[NotFinite],
) -> tuple[LayerDrift, ...]:
    """One row per span, in graph order."""
    requested = {layer.name: layer for layer in read_layers(judged)}
    not_finite: Counter[str] = Counter()
    for place in places:
        not_finite[place.layer] += place.count
    group_of = {span.name: group for group in costs.shares for span in group}
    rows = []
    for span in spans:
        error, weight, layer = errors.spans[span.output], weights.get(span.name), requested.get(span.name)
        group = group_of.get(span.name)
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
                isolated_db=costs.isolated_db[group] if group else None,
                logits_share=costs.shares[group] if group else None,
            )
        )
    return tuple(rows)


def _activation_rows(judged: onnx.ModelProto, errors: LocalErrors) -> tuple[ActivationDrift, ...]:
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


def _in_bodies(judged: onnx.ModelProto) -> tuple[NotCompared, ...]:
    """The layers in bodies of If, Loop and Scan: what they add counts for the layer that reads their result."""
    nodes = index_graph(judged).nodes
    why = "it lies in a body, and is measured as part of the layer that reads the result"
    return tuple(NotCompared(layer.name, why) for layer in read_layers(judged) if layer.name not in nodes)


def _readers(judged: onnx.ModelProto, index: GraphIndex, tensor: str) -> tuple[str, ...]:
    """The layers that multiply with the output of a tensor's Q/DQ pairs."""
    tensors = [tensor]
    for operators in ({QUANTIZE}, {DEQUANTIZE}, MAC_OPS):
        readers = [at for name in tensors for at in index.consumers.get(name, ()) if judged.graph.node[at].op_type in operators]
        tensors = [judged.graph.node[at].output[0] for at in readers]
    return tuple(dict.fromkeys(index.names[at] for at in readers))


def _not_finite_places(judged: onnx.ModelProto, spans: Sequence[LayerSpan], errors: LocalErrors) -> tuple[NotFinite, ...]:
    """Where NaN or infinity occurs, in graph order."""
    index = index_graph(judged)
    layer_of = {node: span.name for span in reversed(spans) for node in span.nodes}  # of several, the first in graph order
    places = []
    for tensor, count in errors.not_finite.items():
        node = index.names[index.producers[tensor]] if tensor in index.producers else tensor
        if count:
            places.append(NotFinite(node, layer_of.get(node, ""), count))
    return tuple(places)
