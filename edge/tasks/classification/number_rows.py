"""All numbers of a comparison, for the table that a person unfolds: exact values, and what each means."""

from __future__ import annotations

from edge.numeric_tolerances import SQNR_CAP_DB
from edge.tasks.classification.compare import Labelled, LogitComparison
from edge.tasks.classification.logit_metrics import Distance
from edge.tasks.report_parts import NumberRow, Value
from edge.tasks.task import Judged


def number_rows(drift: Judged) -> tuple[NumberRow, ...]:
    """Every number that `drift.json` holds of this comparison; drawn weights have none of accuracy."""
    found: LogitComparison = drift.comparison
    labelled = found.labelled
    accuracy = _accuracy(found, labelled) if drift.judged_by == "accuracy" and labelled is not None else []
    interval = found.changed_interval
    changed = f"{100 * (1 - found.agreement):.2f} [{interval.low_points:.2f}, {interval.high_points:.2f}]"
    agreement = percent("agreement", found.agreement)
    sqnr = Value("sqnr_db", found.sqnr_db, sqnr_text(found.sqnr_db, 2))
    cosine = Value("cosine_min", found.cosine_min, f"{found.cosine_min:.6f}")
    return (
        *accuracy,
        NumberRow("agreement", None, agreement, "share of images with the same answer"),
        NumberRow("changed answers", None, changed, f"percent of the images, and its {interval.level:.0%} interval"),
        NumberRow("SQNR of the logits", None, sqnr, "energy of the logits over the energy of their change"),
        NumberRow("smallest cosine", None, cosine, "of one image"),
        *(_distance(found.distance) if found.distance is not None else ()),
    )


def _accuracy(found: LogitComparison, labelled: Labelled) -> list[NumberRow]:
    def sides(key: str, before: float, after: float, field: str = "") -> tuple[Value, Value]:
        return percent(f"{key}_reference{field}", before), percent(f"{key}_engine{field}", after)

    top1 = sides("top1", labelled.top1_reference, labelled.top1_engine)
    rows = [NumberRow("top-1", *top1, "share of images answered rightly")]
    if found.top5_reference is not None and found.top5_engine is not None:
        top5 = sides("top5", found.top5_reference, found.top5_engine)
        rows.append(NumberRow("top-5", *top5, "share of images whose right class is among the five largest outputs"))
    if found.reliability_reference is not None and found.reliability_engine is not None:
        ece = sides("reliability", found.reliability_reference.ece, found.reliability_engine.ece, ".ece")
        meaning = "calibration error (ECE): how far confidence and share right are apart, on average over the images"
        rows.append(NumberRow("ECE", *ece, meaning))
    p = Value("mcnemar_p", labelled.mcnemar_p, f"{labelled.mcnemar_p:.3g}")
    meaning = (
        "McNemar's exact test: how likely flips so lopsided would be, if they went either way alike. "
        "Below 0.05 there is a drop or a gain; it does not say whether that is too much"
    )
    return [*rows, NumberRow("p of the flips", None, p, meaning)]


def _distance(apart: Distance) -> tuple[NumberRow, ...]:
    def row(name: str, field: str, text: str, meaning: str) -> NumberRow:
        return NumberRow(name, None, Value(f"distance.{field}", getattr(apart, field), text), meaning)

    before = percent("distance.confidence_reference", apart.confidence_reference)
    after = percent("distance.confidence_engine", apart.confidence_engine)
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


def sqnr_text(sqnr_db: float, digits: int) -> str:
    """An SQNR for a person."""
    return "identical" if sqnr_db >= SQNR_CAP_DB else f"{sqnr_db:.{digits}f} dB"


def percent(key: str, raw: float) -> Value:
    """A share, exact and as a person reads it."""
    return Value(key, raw, f"{raw:.2%}")
