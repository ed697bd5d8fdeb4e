"""All numbers of a comparison, for the table that a person unfolds: exact values, and what each means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.numeric_tolerances import SQNR_CAP_DB
from edge.report.summary_text import Value

if TYPE_CHECKING:
    from edge.drift.compare import DriftReport
    from edge.tasks.classification.logit_metrics import Distance, Reliability


@dataclass(frozen=True)
class NumberRow:
    """One line: name, value before quantization if it has one, value after it or of the change, and what it means."""

    name: str
    before: Value | None
    after: Value | None
    meaning: str


@dataclass(frozen=True)
class BinRow:
    """One bin of confidence, in [0, 1], and on each side images, mean confidence and share right; confidence None if empty."""

    low: float
    high: float
    before: tuple[int, float, float]
    after: tuple[int, float, float]


def number_rows(drift: DriftReport) -> tuple[NumberRow, ...]:
    """Every number that `drift.json` holds of this comparison; drawn weights have none of accuracy."""
    accuracy = _accuracy(drift) if drift.judged_by == "accuracy" else ()
    apart = _distance(drift.distance) if drift.distance is not None else ()
    return (*accuracy, *_answers(drift), *apart)


def bin_rows(before: Reliability, after: Reliability) -> tuple[BinRow, ...]:
    """The bins that hold an image on either side."""
    n = len(before.bins)
    rows = []
    for i, (old, new) in enumerate(zip(before.bins, after.bins, strict=True)):
        if old.images or new.images:
            sides = ((side.images, side.confidence, side.accuracy) for side in (old, new))
            rows.append(BinRow(i / n, (i + 1) / n, *sides))
    return tuple(rows)


def _accuracy(drift: DriftReport) -> tuple[NumberRow, ...]:
    labelled = drift.labelled
    if labelled is None:
        return ()
    rows = [
        NumberRow(
            "top-1",
            _percent("top1_reference", labelled.top1_reference),
            _percent("top1_engine", labelled.top1_engine),
            "share of images answered rightly",
        )
    ]
    if drift.top5_reference is not None and drift.top5_engine is not None:
        meaning = "share of images whose right class is among the five largest outputs"
        before, after = _percent("top5_reference", drift.top5_reference), _percent("top5_engine", drift.top5_engine)
        rows.append(NumberRow("top-5", before, after, meaning))
    if drift.reliability_reference is not None and drift.reliability_engine is not None:
        before = _percent("reliability_reference.ece", drift.reliability_reference.ece)
        after = _percent("reliability_engine.ece", drift.reliability_engine.ece)
        meaning = "calibration error (ECE): how far confidence and share right are apart, on average over the images"
        rows.append(NumberRow("ECE", before, after, meaning))
    p = labelled.mcnemar_p
    meaning = (
        "McNemar's exact test: how likely flips so lopsided would be, if they went either way alike. "
        "Below 0.05 there is a drop or a gain; it does not say whether that is too much"
    )
    rows.append(NumberRow("p of the flips", None, Value("mcnemar_p", p, f"{p:.3g}"), meaning))
    return tuple(rows)


def _answers(drift: DriftReport) -> tuple[NumberRow, ...]:
    interval, sqnr = drift.changed_interval, drift.sqnr_db
    changed = f"{100 * (1 - drift.agreement):.2f} [{interval.low_points:.2f}, {interval.high_points:.2f}]"
    return (
        NumberRow("agreement", None, _percent("agreement", drift.agreement), "share of images with the same answer"),
        NumberRow(
            "changed answers",
            None,
            Value("", 1 - drift.agreement, changed),
            f"percent of the images, and its {interval.level:.0%} interval",
        ),
        NumberRow(
            "SQNR of the logits",
            None,
            Value("sqnr_db", sqnr, "identical" if sqnr >= SQNR_CAP_DB else f"{sqnr:.2f} dB"),
            "energy of the logits over the energy of their change",
        ),
        NumberRow("smallest cosine", None, Value("cosine_min", drift.cosine_min, f"{drift.cosine_min:.6f}"), "of one image"),
    )


def _distance(apart: Distance) -> tuple[NumberRow, ...]:
    def row(name: str, field: str, text: str, meaning: str) -> NumberRow:
        return NumberRow(name, None, Value(f"distance.{field}", getattr(apart, field), text), meaning)

    before = _percent("distance.confidence_reference", apart.confidence_reference)
    after = _percent("distance.confidence_engine", apart.confidence_engine)
    shift = f"{apart.margin_shift_mean:+.4f}"
    return (
        row("mean cosine", "cosine_mean", f"{apart.cosine_mean:.6f}", "over the images; 1 is the same direction"),
        row("largest difference", "max_abs", f"{apart.max_abs:.4g}", "of any two logits of the same image and class"),
        row(
            "mean KL divergence", "kl_mean", f"{apart.kl_mean:.3g}", "nats: how much the probabilities changed; 0 is not at all"
        ),
        row("largest KL divergence", "kl_max", f"{apart.kl_max:.3g}", "nats, of one image"),
        row("shift of the lead", "margin_shift_mean", shift, "of the FP32 model's answer over the next class, logits, mean"),
        NumberRow("mean confidence", before, after, "probability that each side gives its own answer"),
    )


def _percent(key: str, raw: float) -> Value:
    return Value(key, raw, f"{raw:.2%}")
