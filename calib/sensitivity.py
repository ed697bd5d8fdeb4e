"""Per-layer quantization sensitivity: noise in the logits of each quantized group alone, and the ranking of the groups by it.

A group is the quantized nodes that share a quantized activation, such as the Q, K and V projections of one LayerNorm: a node
cannot return from INT8 to float alone while its neighbours keep the Q/DQ pair that they share. Each run starts at the last cut
of the graph before its group, see `calib.graph_segments`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.calibration_table import CalibrationTable
from calib.errors import DataError
from calib.graph import index_graph
from calib.graph_segments import Group, SegmentRuns, needed_nodes
from calib.macs import count_macs
from calib.metrics import SQNR_CAP_DB, sqnr_db
from calib.ort_session import checked_batches
from calib.qdq_placement import QuantPlan
from calib.qdq_writer import check_plan, insert_qdq

IMAGES = 32
"""Images that settle the ranking; the tensors of all of them at one cut are kept in memory."""


@dataclass(frozen=True)
class GroupNoise:
    """Nodes of one group, in graph order, and their multiply-accumulates for one image.

    `isolated_db` is the SQNR of the logits against float with only this group quantized, within [-300, 300], 300 for no
    difference, -300 where they are not finite.
    """

    nodes: Group
    macs: int
    isolated_db: float


def group_nodes(plan: QuantPlan) -> tuple[Group, ...]:
    """The groups of a plan: nodes that are connected through shared quantized activations, in graph order."""
    order = {node: i for i, node in enumerate(plan.nodes)}
    group_of = {node: {node} for node in plan.nodes}
    for tensor in plan.activations:
        readers = [p.node for p in plan.points if p.kind == "activation" and p.tensor == tensor]
        joined = set().union(*(group_of[node] for node in readers))
        group_of.update(dict.fromkeys(joined, joined))
    groups = {tuple(sorted(group, key=order.__getitem__)) for group in group_of.values()}
    return tuple(sorted(groups, key=lambda group: order[group[0]]))


def measure_sensitivity(
    model: onnx.ModelProto,
    table: CalibrationTable,
    plan: QuantPlan,
    batches: Iterable[NDArray[Any]],
    *,
    threads: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[GroupNoise, ...]:
    """Measure every group of a plan, in graph order, on the first output of a float graph with one input.

    Nodes that this output does not depend on add no noise to it.

    Args:
        table: scales of the plan's activations.
        batches: arrays (B, ...) float32 as the graph takes them, of about IMAGES images.
        progress: called after each group with the number of groups done, and their total.

    Raises DataError for no images and for NaN or infinities in the float logits; for others see `SegmentRuns` and `check_plan`.
    """
    check_plan(model, table, plan)

    def quantized(nodes: Group, segment: onnx.ModelProto) -> onnx.ModelProto:
        return insert_qdq(segment, table, QuantPlan(tuple(p for p in plan.points if p.node in nodes)))

    images = [batch for batch in checked_batches(batches) if len(batch)]
    if not images:
        raise DataError("no images to measure on", allowed="at least one image")
    groups, macs = group_nodes(plan), count_macs(model, measure=True).by_name
    index = index_graph(model)
    needed = {index.names[at] for at in needed_nodes(index, [model.graph.output[0].name])}
    parts = {group: tuple(name for name in group if name in needed) for group in groups}
    group_of = {part: group for group, part in parts.items() if part}
    isolated_db = {group: SQNR_CAP_DB for group, part in parts.items() if not part}
    runs = SegmentRuns(model, tuple(group_of), images, threads)
    reference = runs.output()
    if not np.isfinite(reference).all():
        raise DataError("not a finite number", where="float logits", found="NaN or infinity")
    for part, logits in runs.exchanged(quantized):
        decibels = sqnr_db(reference, logits) if np.isfinite(logits).all() else -SQNR_CAP_DB
        isolated_db[group_of[part]] = max(-SQNR_CAP_DB, min(decibels, SQNR_CAP_DB))
        progress(len(isolated_db), len(groups))
    return tuple(GroupNoise(group, sum(macs[name] for name in group), isolated_db[group]) for group in groups)


def rank_groups(groups: Sequence[GroupNoise]) -> tuple[Group, ...]:
    """Nodes of each group, highest noise-to-signal ratio per MAC first; ties keep their order."""
    costly_first = sorted(groups, key=lambda group: -(10 ** (-group.isolated_db / 10)) / max(group.macs, 1))
    return tuple(group.nodes for group in costly_first)
