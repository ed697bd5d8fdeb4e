"""Report section on calibration error: reliability diagrams of the FP32 reference and of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.tasks import report_parts as parts
from edge.tasks.classification.logit_metrics import Reliability
from edge.tasks.task import Judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def confidence_section(drift: Judged) -> parts.Section | None:
    """Expected calibration error, reliability diagram and bins; None unless the verdict rests on labels."""
    before, after = drift.comparison.reliability_reference, drift.comparison.reliability_engine
    if drift.judged_by != "accuracy" or before is None or after is None:
        return None
    values = {"drawing": reliability_drawing(before, after), "few": parts.FEW}
    fragment = parts.Fragment("tasks/classification/confidence_section.html", values)
    return parts.Section("Is its confidence still honest?", (fragment,))


def reliability_drawing(before: Reliability, after: Reliability) -> parts.Drawing:
    """Reliability diagram per side: accuracy of each bin (bars), mean confidence (lines) and number of images."""
    sides = (("before (FP32)", before), ("after", after))
    most = max(b.images for _, side in sides for b in side.bins)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
        for column, (title, side) in enumerate(sides):
            _shares(grid[0, column], side, column)
            grid[0, column].set_title(f"{title}: off by {100 * side.ece:.1f} points", loc="left", fontsize=8, color=parts.INK)
            _counts(grid[1, column], side, most)
        figure.get_layout_engine().set(wspace=0.1)  # type: ignore[union-attr,call-arg]  # `draw` gave it a constrained layout
        grid[0, 0].set_ylabel("share right")
        grid[1, 0].set_ylabel("images")
        figure.supxlabel("confidence in the answer", fontsize=8, color=parts.INK)

    descriptions = []
    for title, side in sides:
        filled = [b for b in side.bins if b.images]
        bins = ", ".join(f"{b.confidence:.0%} sure and {b.accuracy:.0%} right in {b.images:,} images" for b in filled)
        descriptions.append(f"{title}, off by {100 * side.ece:.2f} points on average: {bins}")
    return parts.Drawing("reliability", (6.4, 3.3), "; ".join(descriptions), paint)


def _shares(axes: Axes, side: Reliability, column: int) -> None:
    n = len(side.bins)
    axes.plot([0, 1], [0, 1], color=parts.MUTED, linewidth=0.8, linestyle=":")
    for i, group in enumerate(side.bins):
        if group.images:
            colour = parts.BAD if group.confidence > group.accuracy else parts.GOOD
            strength = 0.55 if group.images >= parts.FEW else 0.18
            axes.bar(i / n, group.accuracy, 1 / n, align="edge", color=parts.ACCENT, alpha=strength, edgecolor=parts.PAPER)
            edges = [i / n + 0.1 / n, i / n + 0.9 / n]
            (tick,) = axes.plot(edges, [group.confidence] * 2, color=colour, linewidth=2, solid_capstyle="butt")
            tick.set_gid(f"sure-{column}-{i}")
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.tick_params(length=2)


def _counts(axes: Axes, side: Reliability, most: int) -> None:
    n = len(side.bins)
    counts = [b.images for b in side.bins]
    axes.bar(np.arange(n) / n, counts, 1 / n, align="edge", color=parts.MUTED, alpha=0.6, edgecolor=parts.PAPER)
    for i, count in enumerate(counts):
        if count:
            axes.text((i + 0.5) / n, count, f"{count:,}", ha="center", va="bottom", fontsize=6.5, color=parts.INK)
    axes.set(ylim=(0, 1.35 * most))
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.locator_params(axis="y", nbins=2, integer=True)
    axes.tick_params(length=2)
