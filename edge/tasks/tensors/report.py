"""Report of outputs that were compared as numbers: verdict in words, figures, and the section on the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.numeric_tolerances import SQNR_CAP_DB
from edge.tasks import report_parts as parts
from edge.tasks.budget import Budget
from edge.tasks.interval import level_text
from edge.tasks.interval_drawing import VERDICT_COLOURS
from edge.tasks.task import Int64, Judged
from edge.tasks.tensors.compare import OutputFigures, TensorComparison
from edge.tasks.tensors.image_errors import Float64
from edge.tasks.tensors.verdict import judge_output, least_sqnr_db

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6
"""Outputs in key figures and drawings; of more, those furthest beyond the budget or nearest to it. The tables have all."""
DRAWN_DB = (-10.0, 100.0)
"""Ends of the axes: beyond the first nothing of the signal is left, beyond the second FP32 itself has no more digits."""
WORDS = {
    "output": "one array of numbers that the network gives for an image: an embedding, a map, a list of scores",
    "cosine": "direction of an image's output before and after: 1 is the same direction, 0.995 a turn by a tenth of a radian",
    "integers": "outputs that name things, such as classes; compared by the share of equal values, 0.5 % unequal being 20 dB",
}
_HEADLINES = {
    "pass": "The {} computes what the FP32 network computes, within the budget, at every output.",
    "fail": "The {} does not compute what the FP32 network computes.",
    "inconclusive": "These images do not show whether the {} computes what the FP32 network computes.",
}


def task_report(drift: Judged, images_db: dict[str, Float64], kept: Int64 | None, words: tuple[str, str]) -> parts.TaskReport:
    """The task's part of the report; equal inputs give equal text.

    Args:
        images_db: output -> SQNR (n,) of every image.
        kept: indices (k,) of the images whose pictures were kept.
        words: what was judged, and the budget.
    """
    judged, budget = words
    comparison: TensorComparison = drift.comparison
    shown = _shown(comparison, drift.budget)
    headline = "The {} gives NaN or infinity as outputs." if comparison.not_finite else _HEADLINES[drift.verdict]
    return parts.TaskReport(
        headline=headline.format(judged),
        advice=_advice(drift),
        evidence=_evidence(drift, shown),
        basis=_basis(comparison, budget),
        figures=tuple(_key_figures(comparison, shown, budget)),
        truth="compared as numbers",
        numbers=tuple(row for i, figures in enumerate(comparison.outputs) for row in _rows(i, figures)),
        sections=(_section(drift, {figures.name: images_db[figures.name] for figures in shown}, kept),),
        words=WORDS,
    )


def _shown(comparison: TensorComparison, budget: Budget) -> tuple[OutputFigures, ...]:
    """The outputs that decide the verdict, in the network's order."""
    margins = [judge_output(figures, budget, comparison).margin for figures in comparison.outputs]
    chosen = sorted(np.argsort(margins, kind="stable")[:SHOWN].tolist())
    return tuple(comparison.outputs[i] for i in chosen)


def _advice(drift: Judged) -> str:
    if drift.verdict == "pass":
        return ""
    if drift.verdict == "fail":
        return "Do not deploy this engine. See below which layers and ranges stand out; compare with FP16."
    if any(figures.constant for figures in drift.comparison.outputs):
        return (
            "An output that is the same for every image cannot show whether the engine is right: check that the weights were "
            "loaded and that the images differ, or remove that output from the network."
        )
    return "Judge it on more images (--data), or allow a larger error (--min-sqnr, --min-cosine) if that is acceptable."


def _basis(comparison: TensorComparison, budget: str) -> parts.Text:
    return (
        f"Per output the measured figure (dot) and its {level_text(comparison.level)} interval (bar): where the figure of all "
        f"images like these {comparison.images:,} lies. The budget is a {budget}. It passes "
        "if every whole bar lies right of the budget, fails if one lies left of it; otherwise the images do not decide.",
    )


def _evidence(drift: Judged, shown: tuple[OutputFigures, ...]) -> parts.Drawing | None:
    """The intervals of the figure that the budget is on, of the SQNR where it is on both; None without any."""
    needed, key, cap = least_sqnr_db(drift.budget), "sqnr{}_db", DRAWN_DB
    if needed is None:
        needed, key, cap = drift.budget.cosine, "cosine{}", (-1.0, 1.0)
    middle = "_mean" if key == "cosine{}" else ""
    rows = []
    for figures in shown:
        ends = [getattr(figures, key.format(part)) for part in ("_low", middle, "_high")]
        if ends[1] is not None:
            low, value, high = (float(np.clip(ends[1] if end is None else end, *cap)) for end in ends)
            rows.append((figures, low, value, high))
    if not rows or needed is None:
        return None
    what = "SQNR, dB" if middle == "" else "mean cosine"

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        values = [needed, *(end for _, *ends in rows for end in ends)]
        margin = 0.1 * (max(values) - min(values)) or 1.0
        left, right = min(values) - margin, max(values) + 1.6 * margin
        axes.axvspan(left, needed, color=parts.BAD, alpha=0.12, linewidth=0)
        axes.axvline(needed, color=parts.BAD, linewidth=1.4)
        for y, (figures, low, value, high) in enumerate(rows):
            colour = VERDICT_COLOURS[judge_output(figures, drift.budget, drift.comparison).verdict]
            axes.plot([low, high], [y, y], color=colour, linewidth=7, solid_capstyle="butt", alpha=0.55)
            axes.plot([value], [y], marker="o", markersize=7, color=colour, markeredgecolor=parts.PAPER)
            text = "equal" if figures.equal else f"{value:.4f}" if middle else f"{value:.1f}"
            axes.text(value, y - 0.34, text, ha="center", va="bottom", fontweight="bold")
        axes.set(xlim=(left, right), ylim=(len(rows) - 0.5, -0.85), xlabel=f"{what} (left is worse; budget {needed:g})")
        axes.set_yticks(range(len(rows)), [parts.shorten(figures.name) for figures, *_ in rows])
        axes.tick_params(length=0, axis="y", labelcolor=parts.INK)
        axes.spines["left"].set_visible(False)

    texts = (f"{figures.name} {value:.4g}, from {low:.4g} to {high:.4g}" for figures, low, value, high in rows)
    alt = f"{what} by output, {needed:g} needed: " + "; ".join(texts)
    return parts.Drawing("interval", (5.4, 0.9 + 0.42 * len(rows)), alt, paint)


def _key_figures(comparison: TensorComparison, shown: tuple[OutputFigures, ...], budget: str) -> Iterator[parts.Figure]:
    if len(comparison.outputs) > len(shown):
        yield parts.Figure("Outputs", (_value(("outputs",), len(comparison.outputs), "{:,}"),), f"{len(shown)} of them here")
    for figures in shown:
        at = ("outputs", str(comparison.outputs.index(figures)))
        if figures.sqnr_db is None:
            yield parts.Figure(figures.name, (_value((*at, "sqnr_db"), None, "undefined"),), figures.text())
            continue
        if figures.sqnr_low_db is None:
            meaning = "too few images for an interval"
        else:
            meaning = f"between {figures.sqnr_low_db:.1f} and {figures.sqnr_high_db:.1f} dB for images like these"
        value = _value((*at, "sqnr_db"), figures.sqnr_db, _decibels(figures.sqnr_db))
        yield parts.Figure(f"SQNR of {parts.shorten(figures.name)}", (value,), "equal" if figures.equal else meaning)
        if figures.sqnr_worst_db is not None and not figures.equal:
            worst = _value((*at, "sqnr_worst_db"), figures.sqnr_worst_db, _decibels(figures.sqnr_worst_db))
            yield parts.Figure(f"Its worst image, {parts.shorten(figures.name)}", (worst,), "the image with the smallest SQNR")
    yield parts.Figure("Budget", (_value(("",), budget, "{}"),), "what the interval of every output must meet")


def _decibels(value: float) -> str:
    return "equal" if value >= SQNR_CAP_DB else "{:.1f} dB"


def _value(key: tuple[str, ...], raw: Any, text: str) -> parts.Value:
    return parts.Value(".".join(key), raw, text.format(raw))


_MEANINGS = (
    ("sqnr_db", "SQNR", "{:.2f} dB", "energy of the output over the energy of its change, all images together"),
    ("sqnr_low_db", "lower end", "{:.2f} dB", "of its interval"),
    ("sqnr_high_db", "upper end", "{:.2f} dB", "of its interval"),
    ("sqnr_median_db", "median image", "{:.2f} dB", "SQNR of the image in the middle"),
    ("sqnr_worst_db", "worst image", "{:.2f} dB", "smallest SQNR of one image"),
    ("cosine_mean", "mean cosine", "{:.6f}", "over the images; 1 is the same direction"),
    ("cosine_worst", "worst cosine", "{:.6f}", "of one image"),
    ("max_abs", "largest difference", "{:.4g}", "of two values of the same image and place"),
    ("equal_share", "equal values", "{:.3%}", "share of the integers that are equal"),
    ("not_finite", "not finite", "{:,}", "images for which the engine gave NaN or infinity"),
)


def _rows(index: int, figures: OutputFigures) -> Iterator[parts.NumberRow]:
    """Every figure of an output that is defined."""
    for key, name, text, meaning in _MEANINGS:
        raw = getattr(figures, key)
        if raw is not None:
            shown = "equal" if key.startswith("sqnr") and figures.equal else text
            yield parts.NumberRow(f"{figures.name}: {name}", None, _value(("outputs", str(index), key), raw, shown), meaning)


def _section(drift: Judged, images_db: dict[str, Float64], kept: Int64 | None) -> parts.Section:
    """SQNR of the images: its distribution by output, and the worst of them."""
    worst = np.min(list(images_db.values()), axis=0)
    cards = None if kept is None else [{"index": i, "outputs": _card(images_db, i)} for i in kept.tolist()]
    values = {
        "images": len(worst),
        "outputs": len(images_db),
        "all": len(drift.comparison.outputs),
        "changed": int((worst < SQNR_CAP_DB).sum()),
        "drawing": image_histogram(images_db, least_sqnr_db(drift.budget)),
        "cards": cards,
    }
    return parts.Section("How far apart are the outputs?", (parts.Fragment("tasks/tensors/images_section.html", values),))


def _card(images_db: dict[str, Float64], image: int) -> list[tuple[str, str]]:
    """Name and SQNR of every output of one image."""
    pairs = ((name, float(values[image])) for name, values in images_db.items())
    return [(parts.shorten(name, 16), "no number" if db <= -SQNR_CAP_DB else _decibels(db).format(db)) for name, db in pairs]


def image_histogram(images_db: dict[str, Float64], needed: float | None) -> parts.Drawing:
    """Distribution of the images' SQNR (n,) by output, beside the budget; values beyond DRAWN_DB at its ends."""
    clipped = {name: np.clip(values, *DRAWN_DB) for name, values in images_db.items()}
    every = np.concatenate([*clipped.values(), [] if needed is None else [needed]])
    edges = np.linspace(float(every.min()) - 1, float(every.max()) + 1, 41)

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(clipped), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(rows, clipped.items(), strict=True):
            counts, _ = np.histogram(values, edges)
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=parts.ACCENT, alpha=0.65)
            if needed is not None:
                axes.axvline(needed, color=parts.BAD, linewidth=1.4)
            axes.set_title(parts.shorten(name, 40), loc="left", fontsize=8, color=parts.INK)
            axes.set_ylabel("images")
            axes.tick_params(length=2)
            axes.locator_params(axis="y", nbins=3, integer=True)
        rows[-1].set_xlabel("SQNR of an image by itself, dB (left is worse)")

    medians = "; ".join(f"{name}: median {np.median(v):.1f} dB, worst {v.min():.1f} dB" for name, v in clipped.items())
    return parts.Drawing("images", (5.4, 0.6 + 1.1 * len(clipped)), f"SQNR of the images by output: {medians}", paint)
