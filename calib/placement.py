"""Choose which layers stay in float: by the noise that each group adds to the output and the work that it is, for any graph.

One sensitivity pass (`calib.sensitivity`) gives the noise-to-signal ratio n_g of every group g with only g in INT8. If noise
adds up, the network with the groups F in float has the SQNR

    Q(F) = -10 log10(sum of n_g over g not in F)

Groups leave INT8 one by one, always the one with the largest gain of Q per MAC, as long as the INT8 share stays above the least
share; one that gains less than LEAST_GAIN_DB stays. Where steps are counted, an attention stays whole, see
`calib.attention_products`. Leading parts of this order, evenly spread over the gain of Q, are then measured as whole quantized
graphs on held-out images, everything in INT8 among them: the frontier of (INT8 share, SQNR). Where the longest part gains less
than CLEAR_DB, none between is measured.

The choice is the knee of the frontier, the point with the largest

    SQNR - DB_PER_POINT * 100 * (share of the MACs left in float + steps beyond those of everything in INT8, as a share of them)

with fewer groups in float on ties: beyond it, a percentage point of the MACs or a percent more steps (kernel launches) buys
less than DB_PER_POINT dB. At batch 1 launches decide about the time, and a layer in float between layers in INT8 often adds
some. Steps are counted of everything in INT8 and of at most MOST_COUNTED other points, those with the most SQNR for their work
first; where the target's engines do not report them, they cost nothing.

Everything in INT8 is one of the points, and kept unless the knee is better by CLEAR_DB, so that the choice is never worse than
that in SQNR on these images. No layer is known by its name. Of several outputs, the one with the lowest SQNR counts: in the
ranking for each group alone, on the frontier for the whole graph.

Cost: with G groups, noise is read at about sqrt(G) cuts, so that the ranking takes about sqrt(G) runs of the whole network per
image instead of G / 2; `ranking_images` keeps them to an eighth of the calibration images, but to no fewer than FEWEST_RANKING
images per group; at most MOST_MEASURED graphs are measured on JUDGES images. Times: docs/float-layers.md.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.attention_products import join_attention, readers_of_attention
from calib.calibration_table import CalibrationTable
from calib.held_out import CLEAR_DB, Judge
from calib.macs import count_macs
from calib.metrics import SQNR_CAP_DB
from calib.placement_record import FrontierPoint, GroupCost, Placement
from calib.qdq_placement import QuantPlan, QuantScheme, plan_quantization
from calib.qdq_writer import insert_qdq
from calib.sensitivity import GroupNoise, group_nodes, measure_sensitivity

LEAST_SHARE = 0.90
"""Least part of the multiply-accumulates that are in INT8 when everything is that can be."""
DB_PER_POINT = 0.25
"""dB that a percentage point of the multiply-accumulates has to buy (evenly spread noise: 0.05), or a percent more steps."""
LEAST_GAIN_DB = 0.02
"""Gain below which a group is not worth the conversions around it."""
FEWEST_MEASURED, MOST_MEASURED = 4, 6
"""Quantized graphs that are measured, of many images more than of few."""
JUDGES = 16
"""Held-out images that measure them, or a few more, so that they are whole batches."""
MOST_COUNTED = 3
"""Placements whose steps are counted beside those of everything in INT8: an engine is built for each."""
FEWEST_RANKING, MOST_RANKING = 2, 16
"""Images that rank the groups."""


@dataclass(frozen=True)
class PlacementSearch:
    """What a placement has to satisfy.

    Attributes:
        least_share: INT8 share of all MACs, in [0, 1], that has to remain, where it is more than LEAST_SHARE leaves.
        count_steps: Q/DQ graph -> steps (kernel launches) of one inference of its engine, None where they cannot be counted.
            Without, steps do not decide, and attentions may be divided.
    """

    least_share: float = 0.0
    count_steps: Callable[[onnx.ModelProto], int | None] | None = None


@dataclass(frozen=True)
class Order:
    """Groups in the order in which they leave INT8, and the others.

    Attributes:
        costs: all groups, those that leave first.
        leaving: number of groups that leave.
        predicted_db: Q with the first 0, 1, ... `leaving` groups in float.
    """

    costs: tuple[GroupCost, ...]
    leaving: int
    predicted_db: tuple[float, ...]


def ranking_images(images: int, groups: int) -> int:
    """Number of images that rank so many groups, of all the images that calibrate."""
    return max(FEWEST_RANKING, min(MOST_RANKING, images // (8 * math.isqrt(max(groups, 1)))))


def judging_batches(held_out: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """The held-out batches that measure placements: about JUDGES images, evenly spread."""
    return held_out[:: max(1, sum(map(len, held_out)) // JUDGES)]


def place(
    model: onnx.ModelProto,
    table: CalibrationTable,
    scheme: QuantScheme,
    batches: Iterable[NDArray[Any]],
    judge: Judge,
    *,
    search: PlacementSearch = PlacementSearch(),
    progress: Callable[[float], None] = lambda _done: None,
) -> Placement:
    """Choose the nodes that stay in float beside those that `scheme` excludes.

    Args:
        model: float graph with one input.
        table: scales of everything that `scheme` quantizes.
        batches: images that rank the groups, arrays (B, ...) as the graph takes them.
        judge: SQNR of a quantized graph on other images, of the output where it is lowest; its threads also rank.
        search: what the placement has to satisfy.
        progress: called with the fraction done.

    Groups whose MACs cannot be counted stay in INT8. Raises what `measure_sensitivity` raises.
    """
    plan, images = plan_quantization(model, scheme), list(batches)
    macs = count_macs(model, measure=True)
    total = max(macs.total, 1)
    int8_share = sum(macs.by_name[node] for node in plan.nodes) / total
    least = min(max(search.least_share, LEAST_SHARE * int8_share), int8_share)
    measured = measure_sensitivity(
        model,
        table,
        plan,
        images,
        threads=judge.threads,
        stops=math.isqrt(len(group_nodes(plan))),
        progress=lambda done, groups: progress(0.6 * done / groups),
    )
    noises = join_attention(measured, model) if search.count_steps else list(measured)
    after = readers_of_attention(noises, model) if search.count_steps else {}
    movable = [not any(node in macs.not_counted for node in group.nodes) for group in noises]
    order = leaving_order(noises, movable, total, int8_share - least, after)
    tried = spread(order.predicted_db, order.costs, max(FEWEST_MEASURED, min(MOST_MEASURED, table.images // 8)))
    frontier: list[FrontierPoint] = []

    def quantize(count: int) -> onnx.ModelProto:
        floats = {node for group in order.costs[:count] for node in group.nodes}
        return insert_qdq(model, table, QuantPlan(tuple(point for point in plan.points if point.node not in floats)))

    for done, count in enumerate((0, *tried[:0:-1]), start=1):
        share = int8_share - sum(group.share for group in order.costs[:count])
        frontier.append(FrontierPoint(count, share, judge.decibels(quantize(count))))
        progress(0.6 + 0.4 * done / len(tried))
        if done == 2 and frontier[1].sqnr_db < frontier[0].sqnr_db + CLEAR_DB:
            break  # not even the most layers in float are worth it
    frontier.sort(key=lambda point: point.float_groups)
    costs, ranked_on = measured_costs(order, frontier), sum(map(len, images))
    steps_of = search.count_steps or (lambda _quantized: None)
    chosen, counted = choose(frontier, lambda point: steps_of(quantize(point.float_groups)))
    return Placement(chosen.float_groups, costs, counted, judge.images, ranked_on, least)


def choose(
    frontier: Sequence[FrontierPoint], count_steps: Callable[[FrontierPoint], int | None]
) -> tuple[FrontierPoint, tuple[FrontierPoint, ...]]:
    """The choice, and the frontier with the steps of the points that were counted for it.

    Steps only lower a score, so that counting stops at the first point that no other can surpass. A point that cannot be
    counted is not chosen, unless everything in INT8 cannot be counted either: then steps do not decide.

    Args:
        frontier: fewest groups in float first, everything in INT8 at the head.
        count_steps: see `PlacementSearch`.
    """
    all_int8 = frontier[0]
    ranked = sorted(frontier, key=lambda point: (-_score(point), point.float_groups))
    knee = ranked[0]
    if not _clearly_better(knee, all_int8):
        return all_int8, tuple(frontier)
    most = count_steps(all_int8)
    if most is None:
        return knee, tuple(frontier)
    chosen = replace(all_int8, steps=most)
    counted = {all_int8.float_groups: chosen}
    for point in [point for point in ranked if _clearly_better(point, all_int8)][:MOST_COUNTED]:
        if _score(point) <= _score(chosen, most):
            break
        tried = replace(point, steps=count_steps(point))
        counted[point.float_groups] = tried
        if tried.steps is not None and _score(tried, most) > _score(chosen, most):
            chosen = tried
    return chosen, tuple(counted.get(point.float_groups, point) for point in frontier)


def without(scheme: QuantScheme, nodes: Iterable[str]) -> QuantScheme:
    """A scheme that leaves these nodes in float, too."""
    return replace(scheme, exclude=(*scheme.exclude, *map(escape, nodes)))


def leaving_order(
    noises: Sequence[GroupNoise],
    movable: Sequence[bool],
    total: int,
    share_to_move: float,
    after: Mapping[int, frozenset[int]] = MappingProxyType({}),
) -> Order:
    """The order in which groups leave INT8.

    Args:
        noises: every group, in graph order; `movable` says which may leave.
        total: MACs of the network.
        share_to_move: largest share of them that may leave.
        after: group -> groups that leave before it.
    """
    noise = np.array([10 ** (-group.isolated_db / 10) for group in noises])
    shares = [group.macs / total for group in noises]
    left, pending, moved = float(noise.sum()), list(range(len(noises))), 0.0
    first: list[int] = []
    costs: dict[int, float] = {}
    predicted = [_decibels(left)]
    while True:
        gains = {i: _gain(float(noise[i]), float(noise[pending].sum())) for i in pending}
        fitting = [
            i
            for i in pending
            if movable[i]
            and after.get(i, frozenset()).isdisjoint(pending)
            and gains[i] >= LEAST_GAIN_DB
            and moved + shares[i] <= share_to_move + 1e-12
        ]
        if not fitting:
            break
        best = max(fitting, key=lambda i: (gains[i] / max(shares[i], 1 / total), -i))
        costs[best] = gains[best]
        moved += shares[best]
        first.append(best)
        pending.remove(best)
        predicted.append(_decibels(float(noise[pending].sum())))
    costs |= gains
    found = tuple(GroupCost(noises[i].nodes, shares[i], noises[i].isolated_db, costs[i]) for i in (*first, *pending))
    return Order(found, len(first), tuple(predicted))


def measured_costs(order: Order, frontier: Sequence[FrontierPoint]) -> tuple[GroupCost, ...]:
    """The groups with costs that add up to the gains measured from one point to the next, shared out as predicted.

    Errors of layers alike are correlated, so that they cost more together than the sum of their noise.
    """
    costs = list(order.costs)
    for one, other in pairwise(frontier):
        first, last = one.float_groups, other.float_groups
        predicted = order.predicted_db[last] - order.predicted_db[first]
        factor = max(other.sqnr_db - one.sqnr_db, 0.0) / predicted if predicted > 0 else 0.0
        costs[first:last] = [replace(group, cost_db=factor * group.cost_db) for group in costs[first:last]]
    return tuple(costs)


def spread(predicted_db: Sequence[float], costs: Sequence[GroupCost], most: int = MOST_MEASURED) -> tuple[int, ...]:
    """At most `most` numbers of groups in float to measure: 0, all that leave, the predicted knee, and steps of equal gain."""
    last = len(predicted_db) - 1
    moved = np.concatenate([[0.0], np.cumsum([group.share for group in costs[:last]])])
    knee = int(np.argmax(np.asarray(predicted_db) - 100 * DB_PER_POINT * moved))
    steps = np.linspace(predicted_db[0], predicted_db[-1], most - 1)[1:-1]
    between = [int(np.argmax(np.asarray(predicted_db) >= step)) for step in steps]
    return tuple(sorted({0, knee, last, *between}))


def _score(point: FrontierPoint, most: int = 0) -> float:
    """What the choice maximizes; `most` is the number of steps that cost nothing."""
    more = 0.0 if point.steps is None else max(0.0, point.steps / most - 1)
    return point.sqnr_db + 100 * DB_PER_POINT * (point.int8_share - more)


def _clearly_better(point: FrontierPoint, other: FrontierPoint) -> bool:
    return point.sqnr_db >= other.sqnr_db + CLEAR_DB


def _gain(noise: float, left: float) -> float:
    """dB that leaving out `noise` from the sum `left` gains."""
    if noise <= 0 or left <= 0:
        return 0.0
    return SQNR_CAP_DB if noise >= left else min(-10 * math.log10(1 - noise / left), SQNR_CAP_DB)


def _decibels(noise: float) -> float:
    return SQNR_CAP_DB if noise <= 0 else max(-SQNR_CAP_DB, min(-10 * math.log10(noise), SQNR_CAP_DB))
