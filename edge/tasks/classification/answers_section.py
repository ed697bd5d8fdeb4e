"""Report section on changed answers: margin of the reference, change of the confusion matrix, and the flipped images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge.tasks import report_parts as parts
from edge.tasks.classification.flips import flipped, truth
from edge.tasks.classification.logit_metrics import Bools, Float64, Int64, confidences, margin
from edge.tasks.classification.logits import Logits, answers
from edge.tasks.task import Judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONFUSION_CLASSES = 24
"""Classes that a heatmap can name legibly; of more, those that changed most are shown."""


def answers_section(drift: Judged, logits: Logits, kept: Int64 | None, labels: tuple[str, ...]) -> parts.Section:
    """Changed answers and flips; for random weights only the note that their answers mean nothing."""
    before = answers(logits.reference)
    changed = np.asarray(before != answers(logits.engine))
    margins, change = margin(logits.reference.astype(np.float64), before), confusion_change(drift)
    values = {
        "labelled": logits.labels is not None,
        "images": len(changed),
        "changed": int(changed.sum()),
        "near": int((changed & (margins <= np.quantile(margins, 0.1))).sum()),
        "margins": margin_histogram(margins, changed),
        "confusion": confusion(change, labels) if change is not None and change.any() else None,
        "classes": len(labels),
        "most_classes": CONFUSION_CLASSES,
        "flips": int(flipped(logits.reference, logits.engine, logits.labels).sum()),
        "cards": None if kept is None else cards(logits, labels, kept),
    }
    return parts.Section("Which answers changed?", (parts.Fragment("tasks/classification/answers_section.html", values),))


def cards(logits: Logits, labels: tuple[str, ...], kept: Int64) -> list[dict[str, Any]]:
    """Each flip whose picture was kept, in that order: both answers, each with its softmax confidence."""
    right, shown = truth(logits.reference, logits.labels), []
    sides = [(answers(side), confidences(side).max(axis=1)) for side in (logits.reference, logits.engine)]
    for i in kept.tolist():
        (before, sure_before), (after, sure_after) = ((int(answer[i]), float(sure[i])) for answer, sure in sides)
        card = {"index": i, "label": labels[right[i]], "better": after == right[i]}
        card |= {"before": labels[before], "sure_before": sure_before}
        shown.append(card | {"after": labels[after] if after >= 0 else None, "sure_after": sure_after})
    return shown


def margin_histogram(margins: Float64, changed: Bools) -> parts.Drawing:
    """Distribution of the reference's margins (n,) over all images, and over those whose answer changed."""
    edges = np.linspace(0, max(float(margins.max()), 1e-6), 41)

    def paint(figure: Figure) -> None:
        panels = ((margins, parts.MUTED, "all"), (margins[changed], parts.BAD, "changed"))
        rows = figure.subplots(2, 1, sharex=True)
        for axes, (values, colour, name) in zip(rows, panels, strict=True):
            counts, _ = np.histogram(values, edges)
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, alpha=0.65)
            axes.set_ylabel(name)
            axes.tick_params(length=2)
            axes.locator_params(axis="y", nbins=3, integer=True)
        rows[1].set_xlabel("lead of the FP32 model's answer over its second choice (logits)")

    alt = "how sure the FP32 model was, for all images and for changed answers"
    return parts.Drawing("margins", (5.4, 2.3), alt, paint)


def confusion_change(drift: Judged) -> Int64 | None:
    """Confusion counts int64 (classes, classes) as [label][answer], engine minus reference; None without labels."""
    before, after = drift.comparison.confusion_reference, drift.comparison.confusion_engine
    return None if before is None else np.asarray(np.array(after, np.int64) - np.array(before, np.int64))


def confusion(change: Int64, labels: tuple[str, ...]) -> parts.Drawing:
    """Heatmap of `confusion_change`: all classes, or the CONFUSION_CLASSES whose rows and columns changed most."""
    from matplotlib.patches import Rectangle

    moved = np.abs(change).sum(0) + np.abs(change).sum(1)
    shown = np.sort(np.argsort(-moved, kind="stable")[:CONFUSION_CLASSES])
    part, names = change[np.ix_(shown, shown)], [parts.shorten(labels[i]) for i in shown]
    n, largest = len(shown), max(1, int(np.abs(change).max()))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, column in np.ndindex(n, n):
            value = int(part[row, column])
            if value:
                colour = parts.GOOD if (value > 0) == (row == column) else parts.BAD
                tint = 0.15 + 0.55 * abs(value) / largest
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=tint, linewidth=0))
                axes.text(column, row, f"{value:+d}", ha="center", va="center", fontsize=8 if n <= 12 else 6)
        _matrix_axes(axes, names)

    side = min(7.0, 2.2 + 0.32 * n)
    return parts.Drawing("confusion", (side, side), f"change of the confusion counts between {n} classes", paint)


def _matrix_axes(axes: Axes, names: list[str]) -> None:
    n = len(names)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), xlabel="answer", ylabel="true class", aspect="equal")
    axes.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 6 or n > 12 else 0)
    axes.set_yticks(range(n), names)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=parts.LINE, linewidth=0.4)
    axes.tick_params(which="both", length=0, labelcolor=parts.INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
