"""Report section on accuracy per class: paired counts, the change with its confidence interval, and a figure of both.

The interval of a class is that of the drop (`drop_interval`) on its images alone, with the sign reversed. Of many intervals at
95 %, one in twenty misses the true value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.tasks import report_parts as parts
from edge.tasks.classification.drop_interval import drop_limits
from edge.tasks.classification.logits import Logits, answers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 40


@dataclass(frozen=True)
class ClassRow:
    """One class: accuracy in [0, 1] before and after, on so many images.

    Attributes:
        lost, won: images whose answer changed from right to wrong, and from wrong to right.
        change_points: percentage points, negative is worse; `low_points` and `high_points` are its 95 % interval.
    """

    name: str
    images: int
    before: float
    after: float
    lost: int
    won: int
    change_points: float
    low_points: float
    high_points: float

    @property
    def colour(self) -> str:
        """Better or worse where the whole interval is, else muted."""
        return parts.GOOD if self.low_points > 0 else parts.BAD if self.high_points < 0 else parts.MUTED


def classes_section(logits: Logits, labels: tuple[str, ...]) -> parts.Section | None:
    """All classes, or the LISTED with the largest net number of changed images; None for images without labels."""
    rows = class_rows(logits, labels)
    if not rows:
        return None
    shown = rows
    if len(rows) > LISTED:
        shown = tuple(sorted(rows, key=lambda row: (-abs(row.won - row.lost), -abs(row.change_points)))[:LISTED])
    values = {"rows": shown, "classes": len(rows), "drawing": change_drawing(shown), "few": parts.FEW}
    return parts.Section("Did some classes suffer more?", (parts.Fragment("tasks/classification/per_class.html", values),))


def class_rows(logits: Logits, labels: tuple[str, ...]) -> tuple[ClassRow, ...]:
    """Every class that has images, in the order of `labels`; none for images without labels."""
    if logits.labels is None:
        return ()
    right, still = answers(logits.reference) == logits.labels, answers(logits.engine) == logits.labels
    images, before, after, lost, won = (
        np.bincount(logits.labels[chosen], minlength=len(labels))
        for chosen in (np.ones_like(right), right, still, right & ~still, ~right & still)
    )
    rows = []
    for i in np.flatnonzero(images):
        n = int(images[i])
        low, high = (float(limit) for limit in drop_limits(lost[i], won[i], n))
        change = 100.0 * (int(won[i]) - int(lost[i])) / n
        shares = int(before[i]) / n, int(after[i]) / n
        rows.append(ClassRow(labels[i], n, *shares, int(lost[i]), int(won[i]), change, -100 * high, -100 * low))
    return tuple(rows)


def change_drawing(rows: tuple[ClassRow, ...]) -> parts.Drawing:
    """The change of each class and its interval, the first row on top; at least one row."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=parts.INK, linewidth=0.8)
        for y, row in enumerate(rows):
            pale = 0.5 if row.images < parts.FEW else 1.0
            ends = [row.low_points, row.high_points]
            (bar,) = axes.plot(ends, [y, y], color=row.colour, linewidth=4, solid_capstyle="butt", alpha=0.5 * pale)
            bar.set_gid(f"class-{y}")
            (dot,) = axes.plot([row.change_points], [y], marker="o", markersize=5, color=row.colour)
            if pale < 1.0:
                dot.set_markerfacecolor(parts.PAPER)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="change of the share of right answers, percentage points (left is worse)")
        axes.set_yticks(range(len(rows)), [f"{parts.shorten(row.name)} ({row.images:,})" for row in rows])
        axes.tick_params(length=0, axis="y", labelcolor=parts.INK)
        axes.grid(axis="x", color=parts.LINE)
        axes.spines["left"].set_visible(False)

    changes = (f"{r.name} {r.change_points:+.2f} points, from {r.low_points:+.2f} to {r.high_points:+.2f}" for r in rows)
    alt = "change by class: " + "; ".join(changes)
    return parts.Drawing("classes", (6.4, 0.8 + 0.22 * len(rows)), alt, paint)
