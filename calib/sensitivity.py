"""Per-layer quantization sensitivity: noise in the outputs of each quantized group alone, and the ranking of the groups by it.

A group is the quantized nodes that share a quantized activation, such as the Q, K and V projections of one LayerNorm: a node
cannot return from INT8 to float alone while its neighbours keep the Q/DQ pair that they share. Each run starts at the last cut
of the graph before its group, see `calib.graph_segments`.

Exact runs go on to the outputs, half of the network per group. With `stops`, a run ends at the next one of so many cuts, where
the noise-to-signal ratio n_g of the group is read. What follows is the same for all groups that end there: their errors are
added, scaled to the ratio CARRIED and taken to the outputs, where they have the ratio m, and every group is estimated to have

    n_g * m / CARRIED
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.calibration_table import CalibrationTable
from calib.errors import DataError
from calib.graph import index_graph
from calib.graph_segments import ExchangedRun, Group, SegmentRuns, States, needed_nodes
from calib.macs import count_macs
from calib.metrics import SQNR_CAP_DB, power_ratio_db
from calib.ort_session import checked_batches
from calib.qdq_placement import QuantPlan
from calib.qdq_writer import check_plan, insert_qdq

IMAGES = 32
"""Images that settle the ranking; the tensors of all of them at one cut are kept in memory."""
CARRIED = 1e-3
"""Noise-to-signal ratio that passes through what follows in proportion, and is far above the roundings of FP32."""


@dataclass(frozen=True)
class GroupNoise:
    """Nodes of one group, in graph order, and their multiply-accumulates for one image.

    `isolated_db` is the SQNR of the output where it is lowest, with only this group quantized, within [-300, 300], 300 for no
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
    stops: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[GroupNoise, ...]:
    """Measure every group of a plan, in graph order, in a float graph with one input.

    Nodes that no output depends on add no noise.

    Args:
        table: scales of the plan's activations.
        batches: arrays (B, ...) float32 as the graph takes them, of about IMAGES images.
        stops: number of cuts at which the noise of the groups is read; 0 to read it at the outputs, exactly.
        progress: called after each group with the number of groups done, and their total.

    Raises DataError for no images and for NaN or infinities in the float outputs; others see `SegmentRuns` and `check_plan`.
    """
    check_plan(model, table, plan)

    def quantized(nodes: Group, segment: onnx.ModelProto) -> onnx.ModelProto:
        return insert_qdq(segment, table, QuantPlan(tuple(p for p in plan.points if p.node in nodes)))

    images = [batch for batch in checked_batches(batches) if len(batch)]
    if not images:
        raise DataError("no images to measure on", allowed="at least one image")
    groups, macs = group_nodes(plan), count_macs(model, measure=True).by_name
    index = index_graph(model)
    outputs = tuple(v.name for v in model.graph.output if v.name in index.producers and v.name not in index.constants)
    needed = {index.names[at] for at in needed_nodes(index, outputs)}
    parts = {group: tuple(name for name in group if name in needed) for group in groups}
    group_of = {part: group for group, part in parts.items() if part}
    isolated_db = {group: SQNR_CAP_DB for group, part in parts.items() if not part}
    runs = SegmentRuns(model, tuple(group_of), images, threads, outputs)
    reference = runs.unchanged()
    if not all(np.isfinite(state[name]).all() for state in reference for name in outputs):
        raise DataError("not a finite number", where="float outputs", found="NaN or infinity")
    for stop, members in groupby(runs.runs(quantized, runs.stops(stops)), key=lambda run: run.stop):
        stretch = _Stretch(runs, stop, reference)
        for run in members:
            stretch.add(run)
            progress(len(isolated_db) + len(stretch.finished), len(groups))
        isolated_db |= {group_of[part]: power_ratio_db(1.0, noise) for part, noise in stretch.noises().items()}
    return tuple(GroupNoise(group, sum(macs[name] for name in group), isolated_db[group]) for group in groups)


@dataclass
class _Stretch:
    """The groups whose runs end before segment `stop`.

    Attributes:
        reference: the outputs of the float graph.
        at_cut: noise-to-signal ratio of each group in the cut; `finished` in the outputs computed before it, the largest.
    """

    runs: SegmentRuns
    stop: int
    reference: States
    at_cut: dict[Group, float] = field(default_factory=dict)
    finished: dict[Group, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ended = self.stop == len(self.runs.segments)
        self._exact = self.reference if ended else self.runs.unchanged(self.stop)
        self._cut = "" if ended else self.runs.segments[self.stop - 1].cut
        self._errors: list[NDArray[Any]] = [np.zeros_like(state[self._cut]) for state in self._exact] if self._cut else []

    def add(self, run: ExchangedRun) -> None:
        """Read the noise of a group."""
        names = [name for name in self.runs.outputs if name in self._exact[0]]
        self.finished[run.group] = max((_ratio(self._exact, run.states, name) for name in names), default=0.0)
        self.at_cut[run.group] = noise = _ratio(self._exact, run.states, self._cut) if self._cut else 0.0
        if 0 < noise < math.inf:
            for total, exact, state in zip(self._errors, self._exact, run.states, strict=True):
                np.add(total, state[self._cut] - exact[self._cut], out=total)

    def noises(self) -> dict[Group, float]:
        """Noise-to-signal ratio of each group in the outputs, the largest; infinite where it is not finite."""
        gain = self._gain()
        passed = {group: noise * gain if 0 < noise < math.inf else noise for group, noise in self.at_cut.items()}
        return {group: max(self.finished[group], noise) for group, noise in passed.items()}

    def _gain(self) -> float:
        """Noise-to-signal ratio in the outputs after the cut, the largest, of errors that have the ratio 1 in the cut."""
        signal = sum(_energy(state[self._cut]) for state in self._exact) if self._cut else 0.0
        noise = sum(map(_energy, self._errors))
        if not 0 < noise < math.inf:
            return 1.0
        factor = math.sqrt(CARRIED * signal / noise)
        states = [
            {**state, self._cut: state[self._cut] + (factor * error).astype(error.dtype)}
            for state, error in zip(self._exact, self._errors, strict=True)
        ]
        outputs = self.runs.advance(self.stop, states)
        return max(_ratio(self.reference, outputs, name) for name in self.runs.outputs if name not in self._exact[0]) / CARRIED


def _ratio(exact: States, found: States, name: str) -> float:
    """Noise-to-signal ratio of a tensor over all batches; infinite where it is not finite."""
    signal = noise = 0.0
    for reference, state in zip(exact, found, strict=True):
        signal += _energy(reference[name])
        noise += _energy(np.subtract(state[name], reference[name], dtype=np.float64))
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 and math.isfinite(noise) else math.inf


def _energy(values: NDArray[Any]) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def rank_groups(groups: Sequence[GroupNoise]) -> tuple[Group, ...]:
    """Nodes of each group, highest noise-to-signal ratio per MAC first; ties keep their order."""
    costly_first = sorted(groups, key=lambda group: -(10 ** (-group.isolated_db / 10)) / max(group.macs, 1))
    return tuple(group.nodes for group in costly_first)
