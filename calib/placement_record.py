"""What `calib.placement` found, as `calibration.json` records it: the cost of every group, the frontier, the choice."""

from __future__ import annotations

from dataclasses import dataclass

_TENTHS_FROM_DB = 0.1


@dataclass(frozen=True)
class GroupCost:
    """Layers that share a quantized activation, or the two products of an attention.

    Attributes:
        nodes: their names, in graph order.
        share: of the network's multiply-accumulates, in [0, 1].
        isolated_db: SQNR of the output where it is lowest, with only this group in INT8, as estimated by
            `calib.sensitivity` from the noise at a cut; within [-300, 300], 300 for no difference.
        cost_db: SQNR that it costs in INT8, with the groups that leave INT8 before it in float: a share of a measured gain
            where it was measured in float, with others; else estimated as if noise added up.
    """

    nodes: tuple[str, ...]
    share: float
    isolated_db: float
    cost_db: float


@dataclass(frozen=True)
class FrontierPoint:
    """A placement that was measured: the first `float_groups` groups in float, the INT8 share of the MACs, the SQNR in dB.

    `steps` are the kernel launches of one inference of its engine, None where they were not counted.
    """

    float_groups: int
    int8_share: float
    sqnr_db: float
    steps: int | None = None


@dataclass(frozen=True)
class Placement:
    """Which layers stay in float because INT8 costs too much there.

    Attributes:
        float_groups: number of groups that stay in float, the first of `groups`; 0 for all in INT8.
        groups: every group that can be quantized: first those that leave INT8, in their order, then the others.
        frontier: what was measured on images that neither rank nor refine, fewest groups in float first.
        images: number of these images.
        ranked_on: number of the other images that ranked the groups.
        least_share: INT8 share of the multiply-accumulates that no placement went below.
    """

    float_groups: int
    groups: tuple[GroupCost, ...]
    frontier: tuple[FrontierPoint, ...]
    images: int
    ranked_on: int
    least_share: float

    @property
    def float_nodes(self) -> tuple[str, ...]:
        """Nodes that stay in float, the group that leaves INT8 first at the head."""
        return tuple(node for group in self.groups[: self.float_groups] for node in group.nodes)

    @property
    def all_int8(self) -> FrontierPoint:
        """The measured point with everything in INT8."""
        return self.frontier[0]

    @property
    def chosen(self) -> FrontierPoint:
        """The measured point that was chosen."""
        return next(point for point in self.frontier if point.float_groups == self.float_groups)

    def reasons(self) -> dict[str, str]:
        """Node that stays in float -> why."""
        return {
            node: f"costs about {group.cost_db:.{1 if group.cost_db >= _TENTHS_FROM_DB else 2}f} dB in INT8"
            for group in self.groups[: self.float_groups]
            for node in group.nodes
        }

    @property
    def steps_text(self) -> str:
        """Steps of the choice beside those of everything in INT8, or of what was given up for its steps; "" if not counted."""
        before, chosen = self.all_int8.steps, self.chosen
        if before is None or chosen.steps is None:
            return ""
        others = [point for point in self.frontier if point.steps is not None and point.float_groups]
        if self.float_groups:
            return f"{before} -> {chosen.steps} steps per image"
        best = max(others, key=lambda point: point.sqnr_db, default=None)
        return "" if best is None else f"{best.sqnr_db:.1f} dB would take {best.steps} steps per image in place of {before}"

    def __str__(self) -> str:
        """A sentence for the user."""
        before, judged = self.all_int8, f"on {self.images} held-out calibration images"
        if not self.float_groups:
            why = f"; {self.steps_text}" if self.steps_text else ""
            return f"all in INT8, {before.sqnr_db:.1f} dB {judged}: no layer is worth leaving in float{why}"
        layers = len(self.float_nodes)
        chosen = self.chosen
        return (
            f"{layers} layer{'s' * (layers > 1)} in float with {before.int8_share - chosen.int8_share:.2%} of the "
            f"multiply-accumulates: {before.sqnr_db:.1f} -> {chosen.sqnr_db:.1f} dB {judged}"
            + (f", {self.steps_text}" if self.steps_text else "")
        )
