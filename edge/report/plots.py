"""The figures of verdict and receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.report.svg import draw
from edge.tasks.report_parts import ACCENT, BAD, GOOD, INK, MUTED, PAPER, WARN

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from edge.tasks.interval import Verdict
    from edge.tasks.report_parts import Budgeted
    from engines.precision_receipt import Receipt

_PRECISION_COLOURS = {"int8": GOOD, "fp16": ACCENT, "bf16": ACCENT, "fp32": MUTED}


def interval(found: Budgeted, budget: float, verdict: Verdict) -> Markup:
    """The figure that the verdict is about, and its interval, against the budget."""
    point, what, low, high = found.points, found.what, found.interval.low_points, found.interval.high_points
    colour = {"pass": GOOD, "fail": BAD, "inconclusive": WARN}[verdict]
    ends = np.array([low, high, budget, 0.0])
    margin = max(0.15 * float(np.ptp(ends)), 0.05)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        left, right = float(ends.min()) - margin, float(ends.max()) + margin
        axes.axvspan(budget, right, color=BAD, alpha=0.12, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=":")
        axes.axvline(budget, color=BAD, linewidth=1.4)
        axes.plot([low, high], [0, 0], color=colour, linewidth=7, solid_capstyle="butt", alpha=0.55)
        axes.plot([point], [0], marker="o", markersize=7, color=colour, markeredgecolor=PAPER)
        late = budget > (left + right) / 2  # the words stay inside the figure, on the side that has room
        axes.text(budget, 0.86, f" budget {budget:g} ", color=BAD, va="center", ha="right" if late else "left")
        axes.text(point, -0.5, f"{point:+.2f}", ha="center", va="center", fontweight="bold")
        axes.set(xlim=(left, right), ylim=(-1, 1.1), yticks=[], xlabel=f"{what} (right is worse)")
        axes.spines["left"].set_visible(False)

    alt = f"{what}: {point:+.2f}, interval from {low:+.2f} to {high:+.2f}, budget {budget:g}"
    return draw("interval", (5.4, 1.5), alt, paint)


def precisions(receipt: Receipt) -> Markup:
    """Share of the multiply-accumulates by precision: what the graph asks, what the engine does."""
    rows = (("engine does", receipt.actual), ("graph asks", receipt.requested))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, (_, shares) in enumerate(rows):
            start = 0.0
            for name, share in sorted(shares.items(), key=lambda item: (-item[1], item[0])):
                colour = _PRECISION_COLOURS.get(name, BAD)
                axes.barh(row, share, left=start, height=0.62, color=colour, alpha=0.6, edgecolor=PAPER)
                if share >= 0.12:
                    axes.text(start + share / 2, row, f"{name} {share:.1%}", ha="center", va="center", color=INK)
                start += share
        axes.set(xlim=(0, 1), ylim=(-0.5, 1.5), xlabel="share of the network's multiply-accumulates")
        axes.set_yticks([0, 1], [name for name, _ in rows])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.tick_params(length=0, axis="y", labelcolor=INK)
        axes.spines["left"].set_visible(False)

    said = [f"{title}: " + ", ".join(f"{n} {s:.1%}" for n, s in sorted(shares.items())) for title, shares in rows]
    return draw("precisions", (5.4, 1.4), "; ".join(said), paint)
