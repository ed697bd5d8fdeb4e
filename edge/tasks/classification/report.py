"""What a report says of a classification: verdict in words, key figures, and the sections on answers, classes, confidence."""

from __future__ import annotations

from edge.tasks import report_parts as parts
from edge.tasks.classification.answers_section import answers_section
from edge.tasks.classification.compare import Labelled, LogitComparison
from edge.tasks.classification.confidence_section import confidence_section
from edge.tasks.classification.logits import Logits
from edge.tasks.classification.number_rows import number_rows, percent, sqnr_text
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
    """The report's share; equal inputs give equal text."""
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
        numbers=number_rows(drift),
        sections=tuple(section for section in shown if section is not None),
        words=WORDS,
        outputs="logits",
    )


def _headline(drift: Judged, engine: str) -> str:
    """What the verdict means, in one plain sentence."""
    if drift.comparison.not_finite:
        return f"The {engine} gives outputs that are no numbers."
    if drift.judged_by == "numbers":
        return {
            "pass": f"The {engine} computes nearly the same numbers as the FP32 network; accuracy could not be judged.",
            "fail": f"The {engine} does not compute what the FP32 network computes.",
            "inconclusive": f"Nothing can be said of the {engine}.",
        }[drift.verdict]
    if drift.judged_by == "agreement":
        return {
            "pass": f"The {engine} changes so few answers that it keeps within the budget, whatever the right ones are.",
            "fail": f"The {engine} changes more answers than the accuracy budget allows.",
            "inconclusive": f"These images are too few to say whether the {engine} changes more answers than allowed.",
        }[drift.verdict]
    return {
        "pass": f"The {engine} answers as well as the FP32 model, within the accuracy budget.",
        "fail": f"The {engine} loses more accuracy than the budget allows.",
        "inconclusive": f"These images are too few to say whether the {engine} keeps within the accuracy budget.",
    }[drift.verdict]


def _advice(drift: Judged) -> str:
    """What to do next, empty after a pass."""
    blind = drift.judged_by == "agreement"
    if blind and drift.verdict == "fail" and not drift.comparison.not_finite:
        return (
            "Do not deploy this engine on this evidence. Without labels every changed answer counts as a loss, though some may "
            "be gains: judge it on labelled images (--data). See below which layers and ranges stand out."
        )
    if blind and drift.verdict == "inconclusive":
        return (
            "Judge it on labelled images (--data), on more images, or allow a larger drop (--max-drop) if that is acceptable."
        )
    return {
        "pass": "",
        "fail": "Do not deploy this engine. See below which classes, layers and ranges stand out; compare with FP16.",
        "inconclusive": "Judge it on more labelled images (--data), or allow a larger drop (--max-drop) if that is acceptable.",
    }[drift.verdict]


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
            "Weights drawn at random have no accuracy to lose, so the numbers themselves were compared: the smallest cosine "
            "between the logits of the FP32 network and of what was judged.",
        )
    blind = comparison.interval is None
    interval = comparison.changed_interval if comparison.interval is None else comparison.interval
    what, short = ("share of changed answers", "share") if blind else ("drop", "drop")
    start = (
        f"The dot is the measured {what}, the bar the {100 * interval.level:g} % interval: where the true {short} lies, "
        f"judged from {comparison.images:,} images."
    )
    caution = parts.Span(
        "These images have no labels, so that nobody knows which answers are right. But accuracy cannot drop by more than the "
        "share of answers that changed.",
        id="unlabelled",
    )
    end = (
        " It passes if the whole bar lies left of the budget, fails if the whole bar lies right of it; otherwise the images "
        "do not decide."
    )
    return (f"{start} ", caution, end) if blind else (start, end)


def _figures(drift: Judged) -> tuple[parts.Figure, ...]:
    """The figures at the top of the report; drawn weights have none of accuracy, whatever chance gave."""
    found: LogitComparison = drift.comparison
    budget = parts.Value("budget_points", drift.budget_points, f"{drift.budget_points:g} points")
    allowed = parts.Figure("Budget", (budget,), "largest drop allowed")
    accuracy: tuple[parts.Figure, ...] = ()
    if drift.judged_by == "accuracy" and found.labelled is not None:
        accuracy = _accuracy_figures(found.labelled, allowed)
    elif drift.judged_by == "agreement":
        low, high = _ends("changed_interval", found.changed_interval, "")
        meaning = "where the true share of changed answers lies; no more accuracy than that can be lost"
        title = f"{found.changed_interval.level:.0%} interval of the changed answers"
        accuracy = parts.Figure(title, (low, high), meaning, " to "), allowed
    agreement = percent("agreement", found.agreement)
    sqnr = parts.Value("sqnr_db", found.sqnr_db, sqnr_text(found.sqnr_db, 1))
    cosine = parts.Value("cosine_min", found.cosine_min, f"{found.cosine_min:.4f}")
    return (
        *accuracy,
        parts.Figure("Agreement", (agreement,), "share of images with the same answer before and after"),
        parts.Figure("SQNR of the logits", (sqnr,), "signal to quantization noise; 6 dB more halve the error"),
        parts.Figure("Smallest cosine", (cosine,), "the image whose logits turned most; 1 is the same direction"),
    )


def _accuracy_figures(labelled: Labelled, allowed: parts.Figure) -> tuple[parts.Figure, ...]:
    top1 = percent("top1_reference", labelled.top1_reference), percent("top1_engine", labelled.top1_engine)
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
