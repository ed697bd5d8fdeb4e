"""Figures of the steps of an inference: one block of the network, kernel by kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.report.svg import draw
from edge.tasks.report_parts import ACCENT, BAD, GOOD, INK, MUTED, PAPER, Drawing, shorten

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from engines.plan_kernels import PlanKernels, PlanStep

LISTED_STEPS = 60
"""Steps of a block that are drawn; of a longer block the first."""
_LONGEST_NAME = 46
_COLOURS = {"product": GOOD, "attention": GOOD, "reduction": ACCENT, "pointwise": ACCENT}
_OVERHEAD = ("reformat", "pad", "copy")
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def overhead_steps(plan: PlanKernels) -> int:
    """Number of steps that compute nothing: they change types, move elements or append zeros."""
    return sum(plan.steps_of(kind) for kind in _OVERHEAD)


def step_title(step: PlanStep, block: str) -> str:
    """What a step does: the first nodes that it computes, without the name of their block, or the operations of its kernel."""
    nodes = [node.removeprefix(block).lstrip("./") for node in step.nodes if not node.endswith(_QDQ)]
    more = f" + {len(nodes) - 2}" if len(nodes) > 2 else ""  # two names fit
    return shorten(", ".join(nodes[:2]), _LONGEST_NAME) + more if nodes else shorten(step.name, _LONGEST_NAME)


def block_steps(plan: PlanKernels) -> Markup:
    """The steps of the largest block from top to bottom: a bar of the bytes that each moves for one image, by kind."""
    steps = plan.block_steps[:LISTED_STEPS]
    sizes = [(step.weight_bytes + (step.activation_bytes or 0)) / 1e3 for step in steps]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, (step, size) in enumerate(zip(steps, sizes, strict=True)):
            colour = BAD if step.kind in _OVERHEAD else _COLOURS.get(step.kind, MUTED)
            axes.barh(row, size, height=0.7, color=colour, alpha=0.75, edgecolor=PAPER)
            axes.text(size, row, f" {step.kind}", va="center", color=INK, fontsize=7)
        axes.set(ylim=(len(steps) - 0.4, -0.6), xlim=(0, 1.12 * max(sizes) or 1), xlabel="kB read and written for one image")
        axes.set_yticks(range(len(steps)), [step_title(step, plan.block) for step in steps], fontsize=7)
        axes.tick_params(length=0, axis="y", labelcolor=INK)
        axes.grid(axis="x")

    kinds = ", ".join(
        f"{sum(step.kind == kind for step in steps)} {kind}" for kind in dict.fromkeys(step.kind for step in steps)
    )
    alt = f"the {len(steps)} steps of {plan.block} in order: {kinds}; together {sum(sizes):,.0f} kB"
    return draw(Drawing("steps", (7.4, 0.6 + 0.19 * len(steps)), alt, paint))
