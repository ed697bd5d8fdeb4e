"""Drawing of a figure in percentage points and its confidence interval, beside the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.tasks import report_parts as parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from edge.tasks.interval import Interval, Verdict

VERDICT_COLOURS = {"pass": parts.GOOD, "fail": parts.BAD, "inconclusive": parts.WARN}


def interval_drawing(what: str, point: float, interval: Interval, budget: float, verdict: Verdict) -> parts.Drawing:
    """The figure that the budget is on, called `what`, and its interval, all in points."""
    low, high = interval.low_points, interval.high_points
    colour = VERDICT_COLOURS[verdict]
    ends = np.array([low, high, budget, 0.0])
    margin = max(0.15 * float(np.ptp(ends)), 0.05)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        left, right = float(ends.min()) - margin, float(ends.max()) + margin
        axes.axvspan(budget, right, color=parts.BAD, alpha=0.12, linewidth=0)
        axes.axvline(0, color=parts.MUTED, linewidth=0.8, linestyle=":")
        axes.axvline(budget, color=parts.BAD, linewidth=1.4)
        axes.plot([low, high], [0, 0], color=colour, linewidth=7, solid_capstyle="butt", alpha=0.55)
        axes.plot([point], [0], marker="o", markersize=7, color=colour, markeredgecolor=parts.PAPER)
        side = "right" if budget > (left + right) / 2 else "left"  # the text stays inside the figure
        axes.text(budget, 0.86, f" budget {budget:g} ", color=parts.BAD, va="center", ha=side)
        axes.text(point, -0.5, f"{point:+.2f}", ha="center", va="center", fontweight="bold")
        axes.set(xlim=(left, right), ylim=(-1, 1.1), yticks=[], xlabel=f"{what} (right is worse)")
        axes.spines["left"].set_visible(False)

    alt = f"{what}: {point:+.2f}, interval from {low:+.2f} to {high:+.2f}, budget {budget:g}"
    return parts.Drawing("interval", (5.4, 1.5), alt, paint)
