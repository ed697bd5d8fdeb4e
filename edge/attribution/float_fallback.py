"""Which layers would gain most if they were left in float, and whether they do.

A group is the layers that share a quantized activation: they can leave INT8 only together. Its cost is what it does to the
logits alone: the float network with this one group as judged (`isolated_db`). The costliest are then tried: the judged graph
runs with each of them, and with all of them, computed as the float network does. In a typed INT8 graph that is FP16 with its
roundings, in any other graph FP32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import InputError
from calib.graph import index_graph, infer_types
from calib.graph_segments import SegmentRuns
from calib.graph_splice import Splicer
from calib.macs import multiplies
from calib.metrics import power_ratio_db
from calib.ort_session import GraphSession
from calib.qdq_placement import QuantPlan, QuantPoint
from calib.qdq_writer import DEQUANTIZE
from calib.sensitivity import group_nodes
from edge.attribution.attribution_record import FloatTrial
from edge.attribution.graph_variants import GraphVariants
from edge.attribution.layer_spans import LayerSpan
from edge.attribution.paired_images import PairedImages
from edge.images.preprocess import Float32
from edge.progress import Advance
from edge.stability.finders.xnorm import find_sites
from edge.stability.islands import fp32_nodes
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph

ISOLATED_IMAGES = 16
"""Images for the cost of each group, which takes about half a run of the network: so few settle the ranking, and the groups at
its head are tried on all images."""
TRIED = 5
"""Groups that are tried in float."""
CERTAIN = 2.0
"""Standard errors that a gain has to exceed to be called confirmed."""

Group = tuple[LayerSpan, ...]


@dataclass(frozen=True)
class GroupCosts:
    """What every group costs, and what the costliest gain in float.

    Attributes:
        isolated_db: group -> SQNR of the float network's logits with it alone as judged.
        shares: group -> its share of the noise of all groups, costliest first.
        trials: the costliest each by itself, then together; empty where nothing costs anything.
        float_form: what a layer in float computed.
    """

    isolated_db: dict[Group, float]
    shares: dict[Group, float]
    trials: tuple[FloatTrial, ...]
    float_form: str


def measure_group_costs(
    variants: GraphVariants, spans: Sequence[LayerSpan], images: PairedImages, advance: Advance
) -> GroupCosts:
    """Rank all groups on a few of the images, and try the costliest on all."""
    groups, ends = find_groups(variants.judged, spans), [span.output for span in spans]
    few = images.take(ISOLATED_IMAGES).reference
    noise, signal = _isolated_noise(variants, groups, ends, few, lambda done: advance(0.8 * done / len(groups)))
    parts = _noise_shares(noise)
    shares = {group: parts[group] for group in sorted(groups, key=lambda group: -parts[group])}
    source, form = _float_graph(variants)
    isolated_db = {group: power_ratio_db(signal, noise[group]) for group in groups}
    costly = [group for group in shares if noise[group] > 0][:TRIED]
    trials: tuple[FloatTrial, ...] = ()
    if costly:
        trials = _try_in_float(variants, Splicer(source, ends), costly, images, isolated_db, shares)
    advance(1.0)
    return GroupCosts(isolated_db, shares, trials, form)


def find_groups(judged: onnx.ModelProto, spans: Sequence[LayerSpan]) -> tuple[Group, ...]:
    """The layers that could be left in float, together where they share a quantized activation; in graph order.

    Quantized layers of a graph that quantizes any, else all that multiply.
    """
    index = index_graph(judged)
    layers = {span.name: span for span in spans if span.name in index.nodes and multiplies(index.nodes[span.name])}
    points = []
    for name in layers:
        for at, tensor in enumerate(index.nodes[name].input[:2]):
            producer = index.producer(tensor)
            if producer is not None and producer.op_type == DEQUANTIZE and tensor not in index.constant_like:
                points.append(QuantPoint(name, at, tensor, "activation"))
    if not points:
        return tuple((span,) for span in layers.values())
    return tuple(tuple(layers[name] for name in group) for group in group_nodes(QuantPlan(tuple(points))))


def _isolated_noise(
    variants: GraphVariants, groups: Sequence[Group], ends: Sequence[str], images: Float32, done: Callable[[int], None]
) -> tuple[dict[Group, float], float]:
    """Squared error of the outputs, summed, with one group as judged and all else in float; and the sum of their squares.

    The error is infinite where the judged layers compute NaN or infinity. `ends` are those of all spans; `done` is called with
    the number of groups after each.
    """
    by_nodes = {sum((span.nodes for span in group), ()): group for group in groups}
    judged = Splicer(variants.as_run, ends)

    def as_judged(nodes: tuple[str, ...], segment: onnx.ModelProto) -> onnx.ModelProto:
        return judged.into(segment, [span.output for span in by_nodes[nodes]])

    runs = SegmentRuns(variants.base, list(by_nodes), [images], threads=0)
    reference = runs.output()
    noise: dict[Group, float] = {}
    for count, (nodes, logits) in enumerate(runs.exchanged(as_judged), start=1):
        noise[by_nodes[nodes]] = float(_squared_errors(reference, logits).sum())
        done(count)
    return noise, float((reference.astype(np.float64) ** 2).sum())


def _float_graph(variants: GraphVariants) -> tuple[onnx.ModelProto, str]:
    """What a layer left in float computes, and its name: FP16 with its roundings in a typed graph that quantizes, else FP32."""
    base, judged = variants.base, variants.judged
    if not variants.typed or not any(node.op_type == DEQUANTIZE for node in judged.graph.node):
        return base, "fp32"
    types, names = infer_types(judged), set(index_graph(base).names)
    islands = frozenset(
        node.name
        for node in judged.graph.node
        if node.name in names and node.output[0] in types and types[node.output[0]].dtype == onnx.TensorProto.FLOAT
    )
    try:
        return emulated_graph(type_graph(base, keep_fp32=islands | fp32_nodes(base, find_sites(base), ()))), "fp16"
    except InputError:  # weights that FP16 cannot hold
        return base, "fp32"


def _try_in_float(
    variants: GraphVariants,
    source: Splicer,
    groups: Sequence[Group],
    images: PairedImages,
    isolated_db: Mapping[Group, float],
    shares: Mapping[Group, float],
) -> tuple[FloatTrial, ...]:
    """What each of the groups gains in float, then all of them together.

    All runs are of one graph with a switch per group, so that nothing but the group differs between them. With noise a_i
    before and b_i after on image i, the gain is 10 log10(sum a / sum b) dB.
    """
    (image,), output = index_graph(variants.base).inputs, variants.base.graph.output[0].name
    graph = GraphSession(variants.base, threads=0)
    reference = np.concatenate([graph({image: batch})[output] for batch, _ in images.batches()])
    signal = float((reference.astype(np.float64) ** 2).sum())
    switches = {span.output: f"in_float/{group[0].name}" for group in groups for span in group}
    graph = GraphSession(source.into(variants.as_run, switches, switches.__getitem__), threads=0)

    def errors(*in_float: Group) -> NDArray[np.float64]:
        on = {switches[group[0].output] for group in in_float}
        settings = {name: np.array(name in on) for name in switches.values()}
        logits = [graph({image: batch, **settings})[output] for _, batch in images.batches()]
        return _squared_errors(reference, np.concatenate(logits))

    judged = errors()
    trials = []
    for tried in (*((group,) for group in groups), tuple(groups)):
        noise = errors(*tried)
        before, after = (power_ratio_db(signal, parts.sum()) for parts in (judged, noise))
        uncertainty = _uncertainty(judged, noise)
        trials.append(
            FloatTrial(
                layers=tuple(span.name for group in tried for span in group),
                isolated_db=isolated_db[tried[0]] if len(tried) == 1 else None,
                share=min(1.0, sum(shares[group] for group in tried)),
                before_db=before,
                after_db=after,
                gain_db=after - before,
                uncertainty_db=uncertainty,
                confirmed=after - before > CERTAIN * uncertainty,
            )
        )
    return tuple(trials)


def _noise_shares(noise: Mapping[Group, float]) -> dict[Group, float]:
    """Each group's share of the noise of all; among infinite ones where there are any."""
    infinite = {group: float(np.isinf(value)) for group, value in noise.items()}
    parts = infinite if any(infinite.values()) else noise
    total = sum(parts.values())
    return {group: part / total if total else 0.0 for group, part in parts.items()}


def _uncertainty(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Standard error of the gain: that of (10 / ln 10) (a_i / sum a - b_i / sum b) summed over the images."""
    if not (np.isfinite(before).all() and np.isfinite(after).all() and before.sum() > 0 and after.sum() > 0):
        return 0.0
    parts = 10 / np.log(10) * (before / before.sum() - after / after.sum())
    return float(np.sqrt(len(parts) / max(1, len(parts) - 1) * np.sum(parts**2)))


def _squared_errors(reference: Float32, logits: Float32) -> NDArray[np.float64]:
    """Squared error (n,) of each image's logits; infinite where it is not a number."""
    with np.errstate(invalid="ignore", over="ignore"):
        squared = ((logits.astype(np.float64) - reference) ** 2).reshape(len(reference), -1).sum(axis=1)
    return np.where(np.isfinite(squared), squared, np.inf)
