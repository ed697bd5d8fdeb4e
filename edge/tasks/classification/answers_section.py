"""Which answers changed: how sure the reference was, what was taken for what, and the images themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge.tasks import report_parts as parts
from edge.tasks.classification.flips import flipped, truth
from edge.tasks.classification.logit_metrics import Float64, Int64, confidences
from edge.tasks.classification.logits import Logits, answers
from edge.tasks.task import Judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONFUSION_CLASSES = 24
"""Classes that a heatmap can name legibly; of more, those that changed most are shown."""
NO_ANSWER = "no answer"


def answers_section(drift: Judged, logits: Logits, kept: Int64 | None, labels: tuple[str, ...]) -> parts.Section:
    """Changed answers and flips; of drawn weights only that they mean nothing."""
    if drift.random_weights:
        text = "The answers of an untrained network mean nothing, so they are not compared by class."
        return parts.Section("Which answers changed?", (parts.Paragraph((text,)),))
    blocks = [*_changes(drift, logits, labels), parts.Heading("The images themselves"), *_flips(kept, logits, labels)]
    return parts.Section("Which answers changed?", tuple(blocks))


def _changes(drift: Judged, logits: Logits, labels: tuple[str, ...]) -> list[parts.Block]:
    changed, images = np.asarray(answers(logits.reference) != answers(logits.engine)), len(logits.reference)
    if not changed.any():
        return [parts.Paragraph((f"Not one of {images:,} answers changed.",))]
    margin = margins(logits)
    near = near_ties(margin, changed)
    text = (
        f"{int(changed.sum()):,} of {images:,} answers changed; {near:,} of these {'was' if near == 1 else 'were'} among the "
        "tenth of images of which the FP32 model itself was least sure. Changes there are near ties; many changes elsewhere "
        "point to a broken layer."
    )
    blocks: list[parts.Block] = [parts.Paragraph((text,)), margin_histogram(margin, changed)]
    change = confusion_change(drift)
    if change is not None and change.any():
        blocks.append(confusion(change, labels, not_finite=bool(drift.comparison.not_finite)))
    elif change is not None:
        blocks.append(parts.Paragraph(("The confusion counts did not change.",)))
    return blocks


def _flips(kept: Int64 | None, logits: Logits, labels: tuple[str, ...]) -> list[parts.Block]:
    labelled = logits.labels is not None
    count = int(flipped(logits.reference, logits.engine, logits.labels).sum())
    if not count:
        nothing = (
            "No image changed between a right and a wrong answer, so there is none to show."
            if labelled
            else "No answer changed, so there is no image to show."
        )
        return [parts.Paragraph((nothing,), "no-flips")]
    if kept is None:
        text = f"{count:,} answers flipped, but no pictures of these images were kept with this build."
        return [parts.Paragraph((text,), "no-pictures")]
    images, right = f"{count:,} image{'s' if count != 1 else ''}", "right" if labelled else "earlier"
    happened = (
        f"{images} changed between a right and a wrong answer."
        if labelled
        else f"{images} got another answer; nobody knows which one is right."
    )
    shown = len(kept)
    order = (
        f"Shown are the {shown} that lost most confidence in the {right} answer, the worst first."
        if count > shown
        else f"Those that lost most confidence in the {right} answer come first."
    )
    paragraph = parts.Paragraph((f"{happened} {order} Would you have known?",), "flips-shown")
    return [paragraph, parts.Gallery(cards(logits, labels, kept))]


def cards(logits: Logits, labels: tuple[str, ...], kept: Int64) -> tuple[parts.Card, ...]:
    """The flips of which pictures were kept, in that order, with both answers and how sure each side was."""
    answered, right = (answers(logits.reference), answers(logits.engine)), truth(logits.reference, logits.labels)
    sure = confidences(logits.reference).max(axis=1), confidences(logits.engine).max(axis=1)
    found = []
    for i in kept.tolist():
        before, after = (int(side[i]) for side in answered)
        rows = [("before", labels[before], f"{100 * float(sure[0][i]):.1f} %")]
        rows.append(("after", labels[after], f"{100 * float(sure[1][i]):.1f} %") if after >= 0 else ("after", NO_ANSWER, ""))
        turn = None
        if logits.labels is not None:
            turn = parts.Span("wrong → right", "good") if after == right[i] else parts.Span("right → wrong", "bad")
            rows.insert(0, ("is", labels[right[i]], ""))
        alt = f"image {i}" + (f": {labels[right[i]]}" if logits.labels is not None else "")
        found.append(parts.Card(i, alt, turn, tuple(rows)))
    return tuple(found)


def near_ties(margin: Float64, changed: npt.NDArray[np.bool_]) -> int:
    """How many changed answers are among the tenth of images of which the reference was least sure."""
    return int((changed & (margin <= np.quantile(margin, 0.1))).sum())


def margins(logits: Logits) -> Float64:
    """How sure the reference is of each image (n,): its largest logit minus its second largest."""
    top = np.sort(logits.reference.astype(np.float64), axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def margin_histogram(margin: Float64, changed: npt.NDArray[np.bool_]) -> parts.Drawing:
    """Distribution of `margin` (n,) over all images, and over those whose answer changed."""
    edges = np.linspace(0, max(float(margin.max()), 1e-6), 41)

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, values, colour, name in ((upper, margin, parts.MUTED, "all"), (lower, margin[changed], parts.BAD, "changed")):
            counts, _ = np.histogram(values, edges)
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, alpha=0.65)
            axes.set_ylabel(name)
            axes.tick_params(length=2)
            axes.locator_params(axis="y", nbins=3, integer=True)
        lower.set_xlabel("lead of the FP32 model's answer over its second choice (logits)")

    alt = "how sure the FP32 model was, for all images and for changed answers"
    caption = ("How sure the FP32 model was: above for all images, below for those whose answer changed.",)
    return parts.Drawing("margins", (5.4, 2.3), alt, paint, caption)


def confusion_change(drift: Judged) -> Int64 | None:
    """Confusion counts (classes, classes) as [label][answer], the engine's less the reference's; None without labels."""
    labelled = drift.comparison.labelled
    if labelled is None:
        return None
    after, before = (np.array(table, np.int64) for table in (labelled.confusion_engine, labelled.confusion_reference))
    return np.asarray(after - before)


def changed_classes(change: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the classes a heatmap shows: all, or the CONFUSION_CLASSES whose rows and columns changed most."""
    moved = np.abs(change).sum(0) + np.abs(change).sum(1)
    return np.sort(np.argsort(-moved, kind="stable")[:CONFUSION_CLASSES])


def confusion(change: Int64, labels: tuple[str, ...], *, not_finite: bool) -> parts.Drawing:
    """Confusion of the engine minus that of the reference, counts (classes, classes) as [label][answer]."""
    from matplotlib.patches import Rectangle

    shown = changed_classes(change)
    part, names = change[np.ix_(shown, shown)], [parts.shorten(labels[i]) for i in shown]
    n, largest = len(shown), max(1, int(np.abs(change).max()))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, column in np.ndindex(n, n):
            value = int(part[row, column])
            if value:
                better = value > 0 if row == column else value < 0
                tint = 0.15 + 0.55 * abs(value) / largest
                square = Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, color=parts.GOOD if better else parts.BAD, alpha=tint, linewidth=0
                )
                axes.add_patch(square)
                axes.text(column, row, f"{value:+d}", ha="center", va="center", fontsize=8 if n <= 12 else 6)
        _matrix_axes(axes, names)

    caption: parts.Text = (
        "Engine minus FP32 model, in images. ",
        parts.Span("Blue", "good"),
        " is better (more right answers on the diagonal, fewer mistakes beside it), ",
        parts.Span("orange", "bad"),
        " is worse.",
    )
    if n < len(labels):
        caption += (f" The {n} of {len(labels)} classes that changed most.",)
    if not_finite:
        caption += (" Outputs with NaN or Inf are in no column.",)
    side = min(7.0, 2.2 + 0.32 * n)
    return parts.Drawing("confusion", (side, side), f"change of the confusion counts between {n} classes", paint, caption)


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
