"""Report of a classification: verdict in words, key figures, all figures, and the sections on answers, classes, confidence."""

from collections.abc import Iterator
from functools import partial, reduce

from markupsafe import Markup

from edge.numeric_tolerances import SQNR_CAP_DB
from edge.tasks import report_parts as parts
from edge.tasks.classification.answers_section import answers_section
from edge.tasks.classification.compare import LogitComparison
from edge.tasks.classification.confidence_section import confidence_section
from edge.tasks.classification.logits import Logits
from edge.tasks.classification.per_class import classes_section
from edge.tasks.interval import level_text
from edge.tasks.interval_drawing import interval_drawing
from edge.tasks.task import Int64, Judged

WORDS = {
    "logits": "the network's raw outputs, one number per class; the largest is the answer",
    "top-1": "share of images whose answer is the right class",
    "top-5": "share of images whose right class is among the five largest logits",
    "confidence": "the probability that the network gives its answer: the softmax of its logits",
    "flip": "an answer that changed between right and wrong",
    "ECE": "expected calibration error: how far confidence and share of right answers are apart, on average",
    "cosine": "direction of an image's logits before and after, each centred over the classes: 1 is unchanged",
}


def task_report(drift: Judged, logits: Logits, kept: Int64 | None, judged: str, labels: tuple[str, ...]) -> parts.TaskReport:
    """The classification's part of the report; equal inputs give equal text."""
    comparison: LogitComparison = drift.comparison
    what = "drop in top-1, percentage points" if comparison.with_truth else "changed answers, percent of the images"
    shown: list[parts.Section | None] = [answers_section(drift, logits, kept, labels)]
    if not drift.random_weights:
        shown += [classes_section(logits, labels), confidence_section(drift)]
    headline = _HEADLINES[drift.judged_by, drift.verdict]
    if comparison.not_finite or comparison.constant_reference:
        headline = _NOT_FINITE if comparison.not_finite else _CONSTANT
    evidence = None
    if drift.judged_by != "numbers":
        evidence = interval_drawing(what, *comparison.budgeted, drift.budget.points, drift.verdict)
    return parts.TaskReport(
        headline=headline.format(judged),
        advice=_advice(drift),
        evidence=evidence,
        basis=_basis(drift),
        figures=_figures(drift),
        truth="labelled" if comparison.with_truth else "without labels",
        numbers=tuple(_all_figures(drift)),
        sections=tuple(section for section in shown if section is not None),
        words=WORDS,
        outputs="logits",
    )


_CONSTANT = "The FP32 network gives no answers that the {} could be compared with."
_NOT_FINITE = "The {} gives NaN or infinity as outputs."
_HEADLINES = {
    ("numbers", "pass"): "The {} computes nearly the same numbers as the FP32 network; accuracy could not be judged.",
    ("numbers", "fail"): "The {} does not compute what the FP32 network computes.",
    ("numbers", "inconclusive"): "These images allow no statement on the {}.",
    ("agreement", "pass"): "The {} changes so few answers that it keeps within the budget, whatever the right ones are.",
    ("agreement", "fail"): "The {} changes more answers than the accuracy budget allows.",
    ("agreement", "inconclusive"): "These images are too few to say whether the {} changes more answers than allowed.",
    ("accuracy", "pass"): "The {} answers as well as the FP32 model, within the accuracy budget.",
    ("accuracy", "fail"): "The {} loses more accuracy than the budget allows.",
    ("accuracy", "inconclusive"): "These images are too few to say whether the {} keeps within the accuracy budget.",
}
"""Basis of the verdict, verdict -> headline, for what was judged."""


def _advice(drift: Judged) -> str:
    """What to do next, empty after a pass."""
    unlabelled = drift.judged_by == "agreement"
    if drift.verdict == "pass":
        return ""
    if drift.comparison.constant_reference and not drift.comparison.not_finite:
        return "The weights of the network or of its last layer were not trained, or not loaded: check the FP32 network."
    if drift.verdict == "inconclusive":
        images = "on labelled images (--data), on more images," if unlabelled else "on more labelled images (--data),"
        return f"Judge it {images} or allow a larger drop (--max-drop) if that is acceptable."
    if unlabelled and not drift.comparison.not_finite:
        return (
            "Do not deploy this engine on this evidence. Without labels every changed answer counts as a loss, though some may "
            "be gains: judge it on labelled images (--data). See below which layers and ranges stand out."
        )
    return "Do not deploy this engine. See below which classes, layers and ranges stand out; compare with FP16."


def _basis(drift: Judged) -> parts.Text:
    comparison: LogitComparison = drift.comparison
    if drift.judged_by == "numbers":
        return (
            "Random weights have no accuracy to lose, so the numbers themselves were compared: the smallest cosine "
            "between the logits of the FP32 network and of what was judged.",
        )
    _, interval = comparison.budgeted
    what, short = ("drop", "drop") if comparison.with_truth else ("share of changed answers", "share")
    start = (
        f"The dot is the measured {what}, the bar the {level_text(interval.level)} interval: where the true {short} lies, "
        f"judged from {comparison.images:,} images."
    )
    caution = Markup(
        '<span id="unlabelled">These images have no labels, so that it is unknown which answers are right. But accuracy cannot '
        "drop by more than the share of answers that changed.</span>"
    )
    end = (
        " It passes if the whole bar lies left of the budget, fails if the whole bar lies right of it; otherwise the images "
        "do not decide."
    )
    return (start, end) if comparison.with_truth else (f"{start} ", caution, end)


def _value(comparison: LogitComparison, key: str, text: str) -> parts.Value:
    """The figure at a dotted key of the comparison, in the format `text`."""
    raw = reduce(getattr, key.split("."), comparison)
    return parts.Value(key, raw, text.format(raw))


def _figures(drift: Judged) -> tuple[parts.Figure, ...]:
    """The figures at the top of the report; random weights have none of accuracy."""
    comparison: LogitComparison = drift.comparison
    value, figure = partial(_value, comparison), parts.Figure
    _, interval = comparison.budgeted
    budget = parts.Value("budget_points", drift.budget.points, f"{drift.budget.points:g} points")
    allowed = figure("Budget", (budget,), "largest drop allowed")
    accuracy: tuple[parts.Figure, ...] = ()
    if drift.judged_by == "accuracy" and comparison.with_truth:
        top1 = value("top1_reference", "{:.2%}"), value("top1_engine", "{:.2%}")
        ends = value("interval.low_points", "{:+.2f}"), value("interval.high_points", "{:+.2f} points")
        flips = value("flips.right_to_wrong", "{:,} to wrong"), value("flips.wrong_to_right", "{:,} to right")
        right = "share of images answered rightly by the FP32 model and by what was judged"
        drop, title = value("drop_points", "{:+.2f} points"), f"{level_text(interval.level)} interval of the drop"
        accuracy = (
            figure("Top-1 accuracy, before and after", top1, right),
            figure("Drop", (drop,), "percentage points lost; negative means better answers than before"),
            figure(title, ends, "where the true drop lies, given this many images", " to "),
            allowed,
            figure("Answers that flipped", flips, "images whose answer turned wrong, and turned right", ", "),
        )
    elif drift.judged_by == "agreement":
        ends = value("changed_interval.low_points", "{:.2f}"), value("changed_interval.high_points", "{:.2f} points")
        meaning = "where the true share of changed answers lies; no more accuracy than that can be lost"
        accuracy = figure(f"{level_text(interval.level)} interval of the changed answers", ends, meaning, " to "), allowed
    agreement, cosine = value("agreement", "{:.2%}"), value("cosine_min", "{:.4f}")
    sqnr = value("sqnr_db", "identical" if comparison.sqnr_db >= SQNR_CAP_DB else "{:.1f} dB")
    return (
        *accuracy,
        figure("Agreement", (agreement,), "share of images with the same answer before and after"),
        figure("SQNR of the logits", (sqnr,), "signal to quantization noise; 6 dB more halve the error"),
        figure("Smallest cosine", (cosine,), "the image whose logits turned most; 1 is the same direction"),
    )


def _all_figures(drift: Judged) -> Iterator[parts.NumberRow]:
    """Every figure that `drift.json` holds of this comparison; random weights have none of accuracy."""
    comparison: LogitComparison = drift.comparison
    interval, value, row = comparison.changed_interval, partial(_value, comparison), parts.NumberRow
    if drift.judged_by == "accuracy" and comparison.with_truth:
        yield from _accuracy_rows(comparison)
    changed = f"{100 * (1 - comparison.agreement):.2f} [{interval.low_points:.2f}, {interval.high_points:.2f}]"
    sqnr = value("sqnr_db", "identical" if comparison.sqnr_db >= SQNR_CAP_DB else "{:.2f} dB")
    yield row("agreement", None, value("agreement", "{:.2%}"), "share of images with the same answer")
    yield row("changed answers", None, changed, f"percent of the images, and its {level_text(interval.level)} interval")
    yield row("SQNR of the logits", None, sqnr, "energy of the logits over the energy of their change")
    yield row("smallest cosine", None, value("cosine_min", "{:.6f}"), "of one image")
    if comparison.distance is None:
        return
    for name, key, text, meaning in _DISTANCES:
        yield row(name, None, value(f"distance.{key}", text), meaning)
    confidence = value("distance.confidence_reference", "{:.2%}"), value("distance.confidence_engine", "{:.2%}")
    yield row("mean confidence", *confidence, "probability that each side gives its own answer")


def _accuracy_rows(comparison: LogitComparison) -> Iterator[parts.NumberRow]:
    def sides(key: str, field: str = "") -> tuple[parts.Value, parts.Value]:
        before, after = (_value(comparison, f"{key}_{side}{field}", "{:.2%}") for side in ("reference", "engine"))
        return before, after

    row = parts.NumberRow
    yield row("top-1", *sides("top1"), "share of images answered rightly")
    if comparison.top5_reference is not None:
        yield row("top-5", *sides("top5"), "share of images whose right class is among the five largest outputs")
    if comparison.reliability_reference is not None:
        meaning = "calibration error (ECE): how far confidence and share right are apart, on average over the images"
        yield row("ECE", *sides("reliability", ".ece"), meaning)
    meaning = (
        "McNemar's exact test: how likely flips so unequal would be if both directions were equally likely. "
        "Below 0.05 there is a drop or a gain; it does not say whether that is too much"
    )
    yield row("p of the flips", None, _value(comparison, "mcnemar_p", "{:.3g}"), meaning)


_DISTANCES = (
    ("mean cosine", "cosine_mean", "{:.6f}", "over the images; 1 is the same direction"),
    ("largest difference", "max_abs", "{:.4g}", "of any two logits of the same image and class"),
    ("mean KL divergence", "kl_mean", "{:.3g}", "nats: change of the probabilities; 0 is unchanged"),
    ("largest KL divergence", "kl_max", "{:.3g}", "nats, of one image"),
    ("shift of the lead", "margin_shift_mean", "{:+.4f}", "of the FP32 model's answer over the next class, logits, mean"),
)
