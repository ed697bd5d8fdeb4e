"""Per-layer quantization sensitivity: noise of each quantized group in the logits, alone and cumulative, and at its outputs.

A group is the quantized nodes that share a quantized activation, such as the Q, K and V projections of one LayerNorm: a node
cannot return from INT8 to float alone while its neighbours keep the Q/DQ pair that they share.

    isolated     only this group is quantized                                   SQNR and KL of the logits against float
    cumulative   this group and all before it, in graph order, are quantized    SQNR and KL of the logits against float
    local        only this group's weights, or activations, are quantized       SQNR of its own outputs, see `calib.layer_noise`

Runs start at the last cut of the graph before a group, see `calib.graph_segments`: a run of the whole network for each number
costs two forward passes per group, this about one, and less the earlier the MACs are. `calib.insert_qdq` writes Q/DQ into the
one segment that a run changes. Of all images the tensors at one cut are kept in memory: in float, with everything before it
quantized, and with the current group quantized. That is why few images are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from calib.calibration_table import CalibrationTable
from calib.errors import DataError
from calib.graph_segments import Segment, SegmentRuns, State, States, prefix
from calib.layer_noise import IsolatedLayers
from calib.macs import count_macs
from calib.metrics import capped_sqnr_db, kl
from calib.ort_session import GraphSession, check_batch
from calib.qdq_placement import QuantPlan
from calib.qdq_writer import check_plan, insert_qdq

IMAGES = 32
"""Largest number of images that are used."""

Progress = Callable[[int, int], None]
Group = tuple[str, ...]
"""Names of its nodes, in graph order."""


@dataclass(frozen=True)
class GroupCost:
    """Quantization noise of one group. SQNR in dB within [-300, 300], 300 for no difference; KL in nats.

    Attributes:
        name: its first node; `nodes` are in graph order.
        macs: multiply-accumulates for one image.
        isolated_db, isolated_kl: of the logits, only this group quantized.
        cumulative_db, cumulative_kl: of the logits, this group and all before it quantized.
        weight_db, activation_db: at its own outputs, only the weights or only the activations quantized; 300 dB for the
            weights of a product of two activations.
        rounding_db, clipping_db: the two parts of the activations' error.
    """

    name: str
    nodes: tuple[str, ...]
    macs: int
    isolated_db: float
    isolated_kl: float
    cumulative_db: float
    cumulative_kl: float
    weight_db: float
    activation_db: float
    rounding_db: float
    clipping_db: float


@dataclass(frozen=True)
class Sensitivity:
    """Noise of the groups of a plan in graph order, and the effort of measuring it.

    Attributes:
        segments: pieces that the graph was cut into; 1 if it has no cut.
        forwards_equivalent: executed MACs, in forward passes of the whole network.
        brute_forwards: passes that a run of the whole network for each number would take: one in float, two per group, the
            first counted once.
    """

    images: int
    groups: tuple[GroupCost, ...]
    segments: int
    forwards_equivalent: float
    brute_forwards: int

    def ranked(self, *, per_mac: bool = False) -> tuple[Group, ...]:
        """Nodes of each group, highest isolated noise-to-signal ratio first, or highest ratio per MAC. Ties in graph order."""
        noise = [10 ** (-g.isolated_db / 10) / (max(g.macs, 1) if per_mac else 1) for g in self.groups]
        order = sorted(range(len(noise)), key=lambda i: -noise[i])
        return tuple(self.groups[i].nodes for i in order)


def group_nodes(plan: QuantPlan) -> tuple[Group, ...]:
    """The groups of a plan: nodes that are connected through shared quantized activations, in graph order."""
    leader: dict[str, str] = {node: node for node in plan.nodes}
    order = {node: i for i, node in enumerate(plan.nodes)}

    def find(node: str) -> str:
        while leader[node] != node:
            node = leader[node]
        return node

    first_reader: dict[str, str] = {}
    for point in plan.points:
        if point.kind == "activation":
            roots = (find(first_reader.setdefault(point.tensor, point.node)), find(point.node))
            leader[max(roots, key=order.__getitem__)] = min(roots, key=order.__getitem__)
    groups: dict[str, list[str]] = {}
    for node in plan.nodes:
        groups.setdefault(find(node), []).append(node)
    return tuple(tuple(nodes) for nodes in groups.values())


def measure_sensitivity(
    model: onnx.ModelProto,
    table: CalibrationTable,
    plan: QuantPlan,
    batches: Iterable[NDArray[Any]],
    *,
    threads: int,
    images: int = IMAGES,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure every group of a plan on the first output of a float graph with one input.

    Args:
        table: scales of the plan's activations.
        batches: arrays (B, ...) float32 as the graph takes them; the local numbers come from the first.
        threads: threads of ONNX Runtime.
        images: largest number of images; the first ones are used.
        progress: called after each group with the number of groups done, and their total.

    Raises DataError for no images and for NaN or infinities in the logits, GraphError for a graph with several inputs and for
    groups that the first output does not depend on, ArtifactError for a planned tensor without a scale.
    """
    check_plan(model, table, plan)
    work = _Measurement(model, table, plan, _first(batches, images), threads)
    costs: list[GroupCost] = []
    for cost in work.run():
        costs.append(cost)
        if progress is not None:
            progress(len(costs), len(work.groups))
    return Sensitivity(
        images=sum(work.sizes),
        groups=tuple(costs),
        segments=len(work.runs.segments),
        forwards_equivalent=work.spent / (sum(work.macs.values()) * sum(work.sizes)),
        brute_forwards=2 * len(costs),
    )


def _first(batches: Iterable[NDArray[Any]], images: int) -> list[NDArray[Any]]:
    first: list[NDArray[Any]] = []
    count = 0
    for batch in batches:
        if count >= images:
            break
        check_batch(batch, count)
        first.append(batch[: images - count])
        count += len(first[-1])
    if not count:
        found = f"{len(first)} batches, at most {images} images"
        raise DataError("no images to measure on", found=found, allowed="at least one image")
    return first


class _Measurement:
    """Runs segment after segment from two states: all nodes before it in float, and all quantized."""

    def __init__(
        self, model: onnx.ModelProto, table: CalibrationTable, plan: QuantPlan, batches: list[NDArray[Any]], threads: int
    ) -> None:
        self.table, self.plan, self.threads = table, plan, threads
        self.groups, self.macs = group_nodes(plan), count_macs(model)
        self.sizes = [len(batch) for batch in batches]
        self.runs = SegmentRuns(model, self.groups, batches, threads)
        self.reference = _rows(self.runs.finish(0, self.runs.start))
        self.spent = sum(self.macs.values()) * sum(self.sizes)
        """Executed MACs, over all images."""

    def run(self) -> Iterator[GroupCost]:
        in_float = quantized = self.runs.start
        for at, segment in enumerate(self.runs.segments):
            members = [group for group in self.groups if group[0] in segment.nodes]
            noise = self._local(segment, members, in_float[0])
            after: States = []
            for i, group in enumerate(members):
                after = self._step(at, quantized, sum(members[: i + 1], ()))
                cumulative = self._compare(at + 1, after)
                first = i == 0 and quantized is in_float
                isolated = cumulative if first else self._compare(at + 1, self._step(at, in_float, group))
                yield GroupCost(group[0], group, sum(self.macs[n] for n in group), *isolated, *cumulative, *noise[group])
            in_float = self._step(at, in_float, ())
            quantized = after or in_float

    def _step(self, at: int, states: States, nodes: Group) -> States:
        """The states after segment `at` with these of its nodes quantized."""
        self._spend(self.runs.segments[at].nodes)
        plan = QuantPlan(tuple(p for p in self.plan.points if p.node in nodes), ())
        return self.runs.step(at, states, (lambda segment: insert_qdq(segment, self.table, plan)) if nodes else None)

    def _compare(self, at: int, states: States) -> tuple[float, float]:
        """SQNR and KL of the logits, from the states before segment `at`."""
        for segment in self.runs.segments[at:]:
            self._spend(segment.nodes)
        logits = _rows(self.runs.finish(at, states))
        return capped_sqnr_db(self.reference, logits), kl(self.reference, logits)

    def _local(self, segment: Segment, members: list[Group], state: State) -> dict[Group, tuple[float, float, float, float]]:
        """Noise at the outputs of each group of a segment."""
        layers = {group: IsolatedLayers(segment.model, group, self.plan) for group in members}
        inputs = dict.fromkeys(name for group in members for name in layers[group].inputs)
        inner = tuple(name for name in inputs if name not in state)
        values = dict(state)
        if inner:
            before = prefix(segment.model, inner)
            values.update(GraphSession(before, threads=self.threads)(state))
            self._spend([n.name for n in before.graph.node], self.sizes[0])
        for group in members:
            self._spend(group * layers[group].runs, self.sizes[0])
        scales = {name: entry.scale for name, entry in self.table.tensors.items()}
        return {group: layers[group].noise_db(values, scales, self.threads) for group in members}

    def _spend(self, nodes: Iterable[str], images: int | None = None) -> None:
        self.spent += sum(self.macs.get(name, 0) for name in nodes) * (sum(self.sizes) if images is None else images)


def _rows(logits: NDArray[Any]) -> NDArray[Any]:
    return logits.reshape(-1, logits.shape[-1])
