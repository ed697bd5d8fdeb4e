"""The figures of a report but for the ranges, which `edge.report.range_tables` draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.patches import Rectangle

from edge.report.svg import ACCENT, BAD, GOOD, INK, LINE, MUTED, PAPER, WARN, draw, shorten

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edge.drift.compare import DriftReport
    from edge.tasks.classification.logit_metrics import Reliability
    from edge.tasks.classification.logits import Logits
    from engines.precision_receipt import Receipt

CONFUSION_CLASSES = 24
"""Classes that a heatmap can name legibly; of more, those that changed most are shown."""
FEW = 30
"""Images below which a group or a class is drawn pale: whatever it shows rests on hardly anything."""
_PRECISION_COLOURS = {"int8": GOOD, "fp16": ACCENT, "bf16": ACCENT, "fp32": MUTED}


def interval(drift: DriftReport) -> Markup:
    """What the verdict is about, and its interval, against the budget: the drop, or without labels the changed answers."""
    labelled = drift.labelled
    if labelled is None:
        found, point, what = drift.changed_interval, 100 * (1 - drift.agreement), "changed answers, percent of the images"
    else:
        found, point, what = labelled.interval, labelled.drop_points, "drop in top-1, percentage points"
    low, high, budget = found.low_points, found.high_points, drift.budget_points
    colour = {"pass": GOOD, "fail": BAD, "inconclusive": WARN}[drift.verdict]
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


def changed_classes(change: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the classes a heatmap shows: all, or the CONFUSION_CLASSES whose rows and columns changed most."""
    moved = np.abs(change).sum(0) + np.abs(change).sum(1)
    return np.sort(np.argsort(-moved, kind="stable")[:CONFUSION_CLASSES])


def confusion_change(change: npt.NDArray[np.int64], labels: tuple[str, ...]) -> Markup:
    """Confusion of the engine minus that of the reference, counts (classes, classes) as [label][answer]."""
    shown = changed_classes(change)
    part, names = change[np.ix_(shown, shown)], [shorten(labels[i]) for i in shown]
    n, largest = len(shown), max(1, int(np.abs(change).max()))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, column in np.ndindex(n, n):
            value = int(part[row, column])
            if value:
                better = value > 0 if row == column else value < 0
                tint = 0.15 + 0.55 * abs(value) / largest
                square = Rectangle((column - 0.5, row - 0.5), 1, 1, color=GOOD if better else BAD, alpha=tint, linewidth=0)
                axes.add_patch(square)
                axes.text(column, row, f"{value:+d}", ha="center", va="center", fontsize=8 if n <= 12 else 6)
        _matrix_axes(axes, names)

    side = min(7.0, 2.2 + 0.32 * n)
    return draw("confusion", (side, side), f"change of the confusion counts between {n} classes", paint)


def _matrix_axes(axes: Axes, names: list[str]) -> None:
    n = len(names)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), xlabel="answer", ylabel="true class", aspect="equal")
    axes.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 6 or n > 12 else 0)
    axes.set_yticks(range(n), names)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=LINE, linewidth=0.4)
    axes.tick_params(which="both", length=0, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def margins(logits: Logits) -> npt.NDArray[np.float64]:
    """How sure the reference is of each image (n,): its largest logit minus its second largest."""
    top = np.sort(logits.reference.astype(np.float64), axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def margin_histogram(margin: npt.NDArray[np.float64], changed: npt.NDArray[np.bool_]) -> Markup:
    """Distribution of `margin` (n,) over all images, and over those whose answer changed."""
    edges = np.linspace(0, max(float(margin.max()), 1e-6), 41)

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, values, colour, name in ((upper, margin, MUTED, "all"), (lower, margin[changed], BAD, "changed")):
            counts, _ = np.histogram(values, edges)
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, alpha=0.65)
            axes.set_ylabel(name)
            axes.tick_params(length=2)
            axes.locator_params(axis="y", nbins=3, integer=True)
        lower.set_xlabel("lead of the FP32 model's answer over its second choice (logits)")

    return draw("margins", (5.4, 2.3), "how sure the FP32 model was, for all images and for changed answers", paint)


def reliability(before: Reliability, after: Reliability) -> Markup:
    """How often each side is right (bars) when it is so sure (lines: mean confidence of the bin), and in how many images."""
    sides = (("before (FP32)", before), ("after", after))
    most = max(b.images for _, side in sides for b in side.bins)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
        for column, (title, side) in enumerate(sides):
            _shares(grid[0, column], side, column)
            grid[0, column].set_title(f"{title}: off by {100 * side.ece:.1f} points", loc="left", fontsize=8, color=INK)
            _counts(grid[1, column], side, most)
        figure.get_layout_engine().set(wspace=0.1)  # type: ignore[union-attr,call-arg]  # `draw` gave it a constrained layout
        grid[0, 0].set_ylabel("share right")
        grid[1, 0].set_ylabel("images")
        figure.supxlabel("confidence in the answer", fontsize=8, color=INK)

    said = []
    for title, side in sides:
        filled = [b for b in side.bins if b.images]
        bins = ", ".join(f"{b.confidence:.0%} sure and {b.accuracy:.0%} right in {b.images:,} images" for b in filled)
        said.append(f"{title}, off by {100 * side.ece:.2f} points on average: {bins}")
    return draw("reliability", (6.4, 3.3), "; ".join(said), paint)


def _shares(axes: Axes, side: Reliability, column: int) -> None:
    n = len(side.bins)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
    for i, found in enumerate(side.bins):
        if found.images:
            gap = found.confidence - found.accuracy
            strength = 0.55 if found.images >= FEW else 0.18
            axes.bar(i / n, found.accuracy, 1 / n, align="edge", color=ACCENT, alpha=strength, edgecolor=PAPER)
            edges = [i / n + 0.1 / n, i / n + 0.9 / n]
            (tick,) = axes.plot(
                edges, [found.confidence] * 2, color=BAD if gap > 0 else GOOD, linewidth=2, solid_capstyle="butt"
            )
            tick.set_gid(f"sure-{column}-{i}")
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.tick_params(length=2)


def _counts(axes: Axes, side: Reliability, most: int) -> None:
    n = len(side.bins)
    axes.bar(np.arange(n) / n, [b.images for b in side.bins], 1 / n, align="edge", color=MUTED, alpha=0.6, edgecolor=PAPER)
    for i, found in enumerate(side.bins):
        if found.images:
            axes.text((i + 0.5) / n, found.images, f"{found.images:,}", ha="center", va="bottom", fontsize=6.5, color=INK)
    axes.set(ylim=(0, 1.35 * most))
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.locator_params(axis="y", nbins=2, integer=True)
    axes.tick_params(length=2)
