"""Report of a classification: verdict in words, key figures, all figures, and the sections on answers, classes, confidence."""

from __future__ import annotations

from edge.numeric_tolerances import SQNR_CAP_DB
from edge.tasks import report_parts as parts
from edge.tasks.classification.answers_section import answers_section
from edge.tasks.classification.compare import Labelled, LogitComparison
from edge.tasks.classification.confidence_section import confidence_section
from edge.tasks.classification.logit_metrics import Distance
from edge.tasks.classification.logits import Logits
from edge.tasks.classification.per_class import classes_section
from edge.tasks.interval import Interval
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
    shown: list[parts.Section | None] = [answers_section(drift, logits, kept, labels)]
    if not drift.random_weights:
        shown += [classes_section(logits, labels), confidence_section(drift)]
    return parts.TaskReport(
        headline=_headline(drift, judged),
        advice=_advice(drift),
        budgeted=None if drift.judged_by == "numbers" else _budgeted(comparison),
        basis=_basis(drift),
        figures=_figures(drift),
        truth="without labels" if comparison.labelled is None else "labelled",
        numbers=_all_figures(drift),
        sections=tuple(section for section in shown if section is not None),
        words=WORDS,
        outputs="logits",
    )


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
"""Basis of the verdict, verdict -> headline."""


def _headline(drift: Judged, engine: str) -> str:
    """What the verdict means, in one plain sentence."""
    if drift.comparison.not_finite:
        return f"The {engine} gives NaN or infinity as outputs."
    return _HEADLINES[drift.judged_by, drift.verdict].format(engine)


def _advice(drift: Judged) -> str:
    """What to do next, empty after a pass."""
    unlabelled = drift.judged_by == "agreement"
    if drift.verdict == "pass":
        return ""
    if drift.verdict == "inconclusive":
        images = "on labelled images (--data), on more images," if unlabelled else "on more labelled images (--data),"
        return f"Judge it {images} or allow a larger drop (--max-drop) if that is acceptable."
    if unlabelled and not drift.comparison.not_finite:
        return (
            "Do not deploy this engine on this evidence. Without labels every changed answer counts as a loss, though some may "
            "be gains: judge it on labelled images (--data). See below which layers and ranges stand out."
        )
    return "Do not deploy this engine. See below which classes, layers and ranges stand out; compare with FP16."


def _budgeted(comparison: LogitComparison) -> parts.Budgeted:
    """The drop, or without labels the changed answers."""
    labelled = comparison.labelled
    if labelled is None:
        points = 100 * (1 - comparison.agreement)
        return parts.Budgeted(points, comparison.changed_interval, "changed answers, percent of the images")
    return parts.Budgeted(labelled.drop_points, labelled.interval, "drop in top-1, percentage points")


def _basis(drift: Judged) -> parts.Text:
    comparison: LogitComparison = drift.comparison
    if drift.judged_by == "numbers":
        return (
            "Random weights have no accuracy to lose, so the numbers themselves were compared: the smallest cosine "
            "between the logits of the FP32 network and of what was judged.",
        )
    interval = comparison.interval or comparison.changed_interval
    what, short = ("drop", "drop") if comparison.interval else ("share of changed answers", "share")
    start = (
        f"The dot is the measured {what}, the bar the {100 * interval.level:g} % interval: where the true {short} lies, "
        f"judged from {comparison.images:,} images."
    )
    caution = parts.Span(
        "These images have no labels, so that it is unknown which answers are right. But accuracy cannot drop by more than the "
        "share of answers that changed.",
        id="unlabelled",
    )
    end = (
        " It passes if the whole bar lies left of the budget, fails if the whole bar lies right of it; otherwise the images "
        "do not decide."
    )
    return (start, end) if comparison.interval else (f"{start} ", caution, end)


def _figures(drift: Judged) -> tuple[parts.Figure, ...]:
    """The figures at the top of the report; random weights have none of accuracy."""
    comparison: LogitComparison = drift.comparison
    budget = parts.Value("budget_points", drift.budget_points, f"{drift.budget_points:g} points")
    allowed = parts.Figure("Budget", (budget,), "largest drop allowed")
    accuracy: tuple[parts.Figure, ...] = ()
    if drift.judged_by == "accuracy" and comparison.labelled is not None:
        accuracy = _accuracy_figures(comparison.labelled, allowed)
    elif drift.judged_by == "agreement":
        interval = comparison.changed_interval
        meaning = "where the true share of changed answers lies; no more accuracy than that can be lost"
        title = f"{interval.level:.0%} interval of the changed answers"
        accuracy = parts.Figure(title, _ends("changed_interval", interval, ""), meaning, " to "), allowed
    agreement, sqnr = _percent("agreement", comparison.agreement), _sqnr(comparison.sqnr_db, 1)
    cosine = parts.Value("cosine_min", comparison.cosine_min, f"{comparison.cosine_min:.4f}")
    return (
        *accuracy,
        parts.Figure("Agreement", (agreement,), "share of images with the same answer before and after"),
        parts.Figure("SQNR of the logits", (sqnr,), "signal to quantization noise; 6 dB more halve the error"),
        parts.Figure("Smallest cosine", (cosine,), "the image whose logits turned most; 1 is the same direction"),
    )


def _accuracy_figures(labelled: Labelled, allowed: parts.Figure) -> tuple[parts.Figure, ...]:
    top1 = _percent("top1_reference", labelled.top1_reference), _percent("top1_engine", labelled.top1_engine)
    drop = parts.Value("drop_points", labelled.drop_points, f"{labelled.drop_points:+.2f} points")
    lost, won = labelled.flips.right_to_wrong, labelled.flips.wrong_to_right
    flips = (
        parts.Value("flips.right_to_wrong", lost, f"{lost:,} to wrong"),
        parts.Value("flips.wrong_to_right", won, f"{won:,} to right"),
    )
    right = "share of images answered rightly by the FP32 model and by what was judged"
    ends, title = _ends("interval", labelled.interval, "+"), f"{labelled.interval.level:.0%} interval of the drop"
    return (
        parts.Figure("Top-1 accuracy, before and after", top1, right),
        parts.Figure("Drop", (drop,), "percentage points lost; negative means better answers than before"),
        parts.Figure(title, ends, "where the true drop lies, given this many images", " to "),
        allowed,
        parts.Figure("Answers that flipped", flips, "images whose answer turned wrong, and turned right", ", "),
    )


def _ends(field: str, interval: Interval, sign: str) -> tuple[parts.Value, parts.Value]:
    low, high = (f"{points:{sign}.2f}" for points in (interval.low_points, interval.high_points))
    return (
        parts.Value(f"{field}.low_points", interval.low_points, low),
        parts.Value(f"{field}.high_points", interval.high_points, f"{high} points"),
    )


def _all_figures(drift: Judged) -> tuple[parts.NumberRow, ...]:
    """Every figure that `drift.json` holds of this comparison; random weights have none of accuracy."""
    comparison: LogitComparison = drift.comparison
    labelled, interval = comparison.labelled, comparison.changed_interval
    accuracy = _accuracy_rows(comparison, labelled) if drift.judged_by == "accuracy" and labelled is not None else []
    changed = f"{100 * (1 - comparison.agreement):.2f} [{interval.low_points:.2f}, {interval.high_points:.2f}]"
    agreement, sqnr = _percent("agreement", comparison.agreement), _sqnr(comparison.sqnr_db, 2)
    cosine = parts.Value("cosine_min", comparison.cosine_min, f"{comparison.cosine_min:.6f}")
    return (
        *accuracy,
        parts.NumberRow("agreement", None, agreement, "share of images with the same answer"),
        parts.NumberRow("changed answers", None, changed, f"percent of the images, and its {interval.level:.0%} interval"),
        parts.NumberRow("SQNR of the logits", None, sqnr, "energy of the logits over the energy of their change"),
        parts.NumberRow("smallest cosine", None, cosine, "of one image"),
        *(_distance_rows(comparison.distance) if comparison.distance is not None else ()),
    )


def _accuracy_rows(comparison: LogitComparison, labelled: Labelled) -> list[parts.NumberRow]:
    def sides(key: str, before: float, after: float, field: str = "") -> tuple[parts.Value, parts.Value]:
        return _percent(f"{key}_reference{field}", before), _percent(f"{key}_engine{field}", after)

    top1 = sides("top1", labelled.top1_reference, labelled.top1_engine)
    rows = [parts.NumberRow("top-1", *top1, "share of images answered rightly")]
    if comparison.top5_reference is not None and comparison.top5_engine is not None:
        top5 = sides("top5", comparison.top5_reference, comparison.top5_engine)
        rows.append(parts.NumberRow("top-5", *top5, "share of images whose right class is among the five largest outputs"))
    if comparison.reliability_reference is not None and comparison.reliability_engine is not None:
        ece = sides("reliability", comparison.reliability_reference.ece, comparison.reliability_engine.ece, ".ece")
        meaning = "calibration error (ECE): how far confidence and share right are apart, on average over the images"
        rows.append(parts.NumberRow("ECE", *ece, meaning))
    p = parts.Value("mcnemar_p", labelled.mcnemar_p, f"{labelled.mcnemar_p:.3g}")
    meaning = (
        "McNemar's exact test: how likely flips so unequal would be if both directions were equally likely. "
        "Below 0.05 there is a drop or a gain; it does not say whether that is too much"
    )
    return [*rows, parts.NumberRow("p of the flips", None, p, meaning)]


def _distance_rows(distance: Distance) -> tuple[parts.NumberRow, ...]:
    def row(name: str, field: str, text: str, meaning: str) -> parts.NumberRow:
        return parts.NumberRow(name, None, parts.Value(f"distance.{field}", getattr(distance, field), text), meaning)

    before = _percent("distance.confidence_reference", distance.confidence_reference)
    after = _percent("distance.confidence_engine", distance.confidence_engine)
    shift = f"{distance.margin_shift_mean:+.4f}"
    return (
        row("mean cosine", "cosine_mean", f"{distance.cosine_mean:.6f}", "over the images; 1 is the same direction"),
        row("largest difference", "max_abs", f"{distance.max_abs:.4g}", "of any two logits of the same image and class"),
        row("mean KL divergence", "kl_mean", f"{distance.kl_mean:.3g}", "nats: change of the probabilities; 0 is unchanged"),
        row("largest KL divergence", "kl_max", f"{distance.kl_max:.3g}", "nats, of one image"),
        row("shift of the lead", "margin_shift_mean", shift, "of the FP32 model's answer over the next class, logits, mean"),
        parts.NumberRow("mean confidence", before, after, "probability that each side gives its own answer"),
    )


def _sqnr(sqnr_db: float, digits: int) -> parts.Value:
    return parts.Value("sqnr_db", sqnr_db, "identical" if sqnr_db >= SQNR_CAP_DB else f"{sqnr_db:.{digits}f} dB")


def _percent(key: str, share: float) -> parts.Value:
    return parts.Value(key, share, f"{share:.2%}")
