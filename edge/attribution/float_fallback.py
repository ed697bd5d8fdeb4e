"""Which layers would buy most if they were left in float, and whether they do.

A group is the layers that share a quantized activation: they can leave INT8 only together. Its cost is what it does to the
logits alone: the float network with this one group as judged (`isolated`). The costliest are then tried: the judged graph runs
with each of them, and with all of them, computed as the float network does. In a typed INT8 graph that is FP16 with its
roundings, in any other graph FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import InputError
from calib.graph import index_graph, infer_types
from calib.graph_segments import Chain, split
from calib.macs import MAC_OPS
from calib.ort_session import GraphSession
from calib.qdq_placement import QuantPlan, QuantPoint
from calib.qdq_writer import DEQUANTIZE
from calib.sensitivity import group_nodes
from edge.attribution.attribution_record import Trial
from edge.attribution.graph_variants import Forms
from edge.attribution.layer_spans import Unit
from edge.attribution.local_errors import decibels
from edge.attribution.paired_images import Sides
from edge.attribution.splice import Splicer
from edge.images.preprocess import Float32

ISOLATED_IMAGES = 16
"""Images for the cost of each group, which takes about half a run of the network: the ranking is settled by so few, and the
groups that it picks are tried on all images."""
TRIED = 5
"""Groups that are tried in float."""
CERTAIN = 2.0
"""Standard errors that a gain has to exceed to be called confirmed."""

Group = tuple[Unit, ...]


@dataclass(frozen=True)
class Costs:
    """What every group costs, and what the costliest gain in float.

    Attributes:
        isolated_db: layer -> SQNR of the float network's logits with its group alone as judged.
        share: layer -> its group's share of the noise of all groups.
        ranking: layers of a group -> share, costliest first.
        trials: the costliest each by itself, then together; empty where nothing costs anything.
        float_form: what a layer in float computed.
    """

    isolated_db: dict[str, float]
    share: dict[str, float]
    ranking: dict[tuple[str, ...], float]
    trials: tuple[Trial, ...]
    float_form: str


def measure_costs(
    base: onnx.ModelProto,
    judged: onnx.ModelProto,
    forms: Forms,
    units: Sequence[Unit],
    sides: Sides,
    advance: Callable[[float], None] = lambda _share: None,
) -> Costs:
    """Measure all groups and try the costliest.

    Args:
        base, judged, forms: the graphs.
        units: that both have.
        sides: the images; groups are ranked on a few of them and tried on all.
        advance: told the share that is done.
    """
    groups, ends = find_groups(judged, units), [unit.output for unit in units]
    few = sides.take(ISOLATED_IMAGES).mine
    isolated, signal = isolated_noise(base, forms, groups, ends, few, lambda done: advance(0.8 * done / len(groups)))
    shares = noise_shares(isolated)
    ranked = sorted(groups, key=lambda group: -shares[group[0].name])
    tried = [group for group in ranked if isolated[group[0].name] > 0][:TRIED]
    trials: tuple[Trial, ...] = ()
    source, form = float_form(base, judged, forms)
    if tried:
        graph = GraphSession(base, threads=0)
        (image,), output = index_graph(base).inputs, base.graph.output[0].name
        reference = np.concatenate([graph({image: batch})[output] for batch, _ in sides.pairs()])
        noise = try_in_float(forms, source, tried, ends, [batch for _, batch in sides.pairs()], reference)
        trials = conclude(tried, isolated, (signal, float((reference.astype(np.float64) ** 2).sum())), noise)
    advance(1.0)
    members = {unit.name: group[0].name for group in groups for unit in group}
    return Costs(
        isolated_db={name: decibels(signal, isolated[first]) for name, first in members.items()},
        share={name: shares[first] for name, first in members.items()},
        ranking={tuple(unit.name for unit in group): shares[group[0].name] for group in ranked},
        trials=trials,
        float_form=form,
    )


def find_groups(judged: onnx.ModelProto, units: Sequence[Unit]) -> tuple[Group, ...]:
    """The layers that could be left in float, together where they share a quantized activation; in graph order.

    Quantized layers of a graph that quantizes any, else all that multiply.
    """
    index = index_graph(judged)
    nodes = dict(zip(index.names, judged.graph.node, strict=True))
    layers = {unit.name: unit for unit in units if unit.op_type in MAC_OPS and unit.name in nodes}
    points = []
    for name in layers:
        for at, tensor in enumerate(nodes[name].input[:2]):
            maker = judged.graph.node[index.producers[tensor]] if tensor in index.producers else None
            if maker is not None and maker.op_type == DEQUANTIZE and tensor not in index.constant_like:
                points.append(QuantPoint(name, at, tensor, "activation"))
    if not points:
        return tuple((unit,) for unit in layers.values())
    return tuple(tuple(layers[name] for name in group) for group in group_nodes(QuantPlan(tuple(points), ())))


def isolated_noise(
    base: onnx.ModelProto,
    forms: Forms,
    groups: Sequence[Group],
    ends: Sequence[str],
    images: Float32,
    done: Callable[[int], None] = lambda _groups: None,
) -> tuple[dict[str, float], float]:
    """Squared error of the logits, summed, with one group as judged and all else in float; and the sum of their squares.

    Args:
        base: the float graph.
        forms: the judged graph.
        groups: of `find_groups`.
        ends: of all units.
        images: (n, 3, S, S), a few.
        done: told the number of groups after each.

    Returns: name of the group's first layer -> noise, infinite where the judged layers give NaN or infinity; signal.
    """
    output = base.graph.output[0].name
    nodes = {group: sum((unit.nodes for unit in group), ()) for group in groups}
    chain = Chain(split(base, output, list(nodes.values())), output, 0)
    state = {chain.source: images}
    reference = chain.finish(0, state)
    place = {node: at for at, segment in enumerate(chain.segments) for node in segment.nodes}
    judged = Splicer(forms.as_run, ends)
    found: dict[str, float] = {}
    at = 0
    for count, group in enumerate(sorted(groups, key=lambda group: min(place[n] for n in nodes[group])), start=1):
        places, taken = [place[node] for node in nodes[group]], [unit.output for unit in group]
        while at < min(places):
            state, at = chain.step(at, state), at + 1
        if max(places) == at:
            ahead = chain.step(at, state, GraphSession(judged.into(chain.segments[at].model, taken), threads=0))
            logits = chain.finish(at + 1, ahead)
        else:  # a cut that other groups need lies inside: all that is behind is one piece
            rest = split(base, output, [nodes[group]])[-1]
            logits = rest.advance(state, GraphSession(judged.into(rest.model, taken), threads=0))[output]
        found[group[0].name] = float(_noise(reference, logits).sum())
        done(count)
    return found, float((reference.astype(np.float64) ** 2).sum())


def float_form(base: onnx.ModelProto, judged: onnx.ModelProto, forms: Forms) -> tuple[onnx.ModelProto, str]:
    """What a layer left in float computes, and its name: FP16 with its roundings in a typed graph that quantizes, else FP32."""
    if not forms.typed or not any(node.op_type == DEQUANTIZE for node in judged.graph.node):
        return base, "fp32"
    from edge.stability.finders.xnorm import find_sites
    from edge.stability.islands import fp32_nodes
    from engines.fp16_emulation import emulated_graph
    from engines.typed_graph import type_graph

    types, names = infer_types(judged), set(index_graph(base).names)
    islands = {
        node.name
        for node in judged.graph.node
        if node.name in names and node.output[0] in types and types[node.output[0]].dtype == onnx.TensorProto.FLOAT
    }
    try:
        return emulated_graph(type_graph(base, keep_fp32=frozenset(islands) | fp32_nodes(base, find_sites(base), ()))), "fp16"
    except InputError:  # weights that FP16 cannot hold
        return base, "fp32"


def try_in_float(
    forms: Forms,
    source: onnx.ModelProto,
    groups: Sequence[Group],
    ends: Sequence[str],
    batches: Sequence[Float32],
    reference: Float32,
) -> list[NDArray[np.float64]]:
    """Squared error (n,) of each image's logits: as judged, with each of the groups in float, with all of them in float.

    Args:
        forms: the judged graph.
        source: of `float_form`.
        groups: what is tried.
        ends: of all units.
        batches: (B, 3, S, S) as the judged graph gets them.
        reference: (n, classes) of the float network.

    All runs are of one graph with a switch per group, so that nothing but the group differs between them.
    """
    names = {unit.output: f"in_float/{group[0].name}" for group in groups for unit in group}
    graph = GraphSession(Splicer(source, ends).into(forms.as_run, names, names.__getitem__), threads=0)
    (image,) = index_graph(forms.as_run).inputs
    output = forms.as_run.graph.output[0].name
    ways = [set(), *({f"in_float/{group[0].name}"} for group in groups), set(names.values())]
    found = []
    for way in ways:
        switches = {name: np.array(name in way) for name in names.values()}
        found.append(_noise(reference, np.concatenate([graph({image: batch, **switches})[output] for batch in batches])))
    return found


def noise_shares(isolated: Mapping[str, float]) -> dict[str, float]:
    """Each group's share of the noise of all; among infinite ones where there are any."""
    infinite = [name for name, noise in isolated.items() if not np.isfinite(noise)]
    if infinite:
        return {name: 1 / len(infinite) if name in infinite else 0.0 for name in isolated}
    total = sum(isolated.values())
    return {name: noise / total if total else 0.0 for name, noise in isolated.items()}


def conclude(
    groups: Sequence[Group], isolated: Mapping[str, float], signal: tuple[float, float], noise: Sequence[NDArray[np.float64]]
) -> tuple[Trial, ...]:
    """What each trial gained, all groups together last.

    With noise a_i before and b_i after on image i, the gain is 10 log10(sum a / sum b) dB and its standard error that of
    (10 / ln 10) (a_i / sum a - b_i / sum b) summed over the images.

    Args:
        groups: that were tried.
        isolated: of `isolated_noise`, of all groups.
        signal: sum of squares of the logits, on the images of `isolated` and on those of the trials.
        noise: of `try_in_float`.
    """
    before = noise[0]
    shares = noise_shares(isolated)
    trials = []
    for way, after in zip((*((group,) for group in groups), tuple(groups)), noise[1:], strict=True):
        alone = [isolated[group[0].name] for group in way]
        gain = decibels(signal[1], after.sum()) - decibels(signal[1], before.sum())
        error = _uncertainty(before, after)
        trials.append(
            Trial(
                layers=tuple(unit.name for group in way for unit in group),
                isolated_db=decibels(signal[0], alone[0]) if len(way) == 1 else None,
                share=min(1.0, sum(shares[group[0].name] for group in way)),
                before_db=decibels(signal[1], before.sum()),
                after_db=decibels(signal[1], after.sum()),
                gain_db=gain,
                uncertainty_db=error,
                confirmed=gain > CERTAIN * error,
            )
        )
    return tuple(trials)


def _uncertainty(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    if not (np.isfinite(before).all() and np.isfinite(after).all() and before.sum() > 0 and after.sum() > 0):
        return 0.0
    parts = 10 / np.log(10) * (before / before.sum() - after / after.sum())
    return float(np.sqrt(len(parts) / max(1, len(parts) - 1) * np.sum(parts**2)))


def _noise(reference: Float32, logits: Float32) -> NDArray[np.float64]:
    """Squared error (n,) of each image's logits; infinite where it is no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        squared = ((logits.astype(np.float64) - reference) ** 2).reshape(len(reference), -1).sum(axis=1)
    return np.where(np.isfinite(squared), squared, np.inf)
