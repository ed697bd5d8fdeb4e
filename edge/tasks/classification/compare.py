"""Engine against FP32 reference on the same images: what differs between their logits, and whether it may.

Labelled images are judged by the drop in top-1 and its interval, images without labels by the share of changed answers, which
bounds the drop either way, drawn weights by numbers alone. The statistics are those of `drop_interval`, the measures those of
`logit_metrics`. A row of the engine that holds NaN or infinity is a wrong answer that agrees with nothing, and fails; what was
therefore not compared stands in `not_compared`. numpy alone: a device judges with this too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calib.errors import InputError
from calib.metrics import sqnr_db
from edge.numeric_tolerances import RANDOM_WEIGHTS_COSINE, SQNR_CAP_DB
from edge.tasks.classification.drop_interval import Flips, Paired, drop_interval, images_to_decide, mcnemar_p
from edge.tasks.classification.logit_metrics import TOP, Distance, Floats, Int64, Reliability, distance, reliability, top_share
from edge.tasks.classification.logits import answers
from edge.tasks.interval import Interval, Verdict, decide, share_interval
from edge.tasks.task import Comparison

JudgedBy = Literal["accuracy", "agreement", "numbers"]


@dataclass(frozen=True)
class LogitComparison(Comparison):
    """The numbers of a comparison, before they are judged. Shares are in [0, 1], `_points` are percentage points.

    What needs labels is None without them.

    Attributes:
        top1_reference, top1_engine: share answered rightly.
        top5_reference, top5_engine: share whose label is among the five largest logits; None with five classes or fewer.
        drop_points: of top-1; positive is worse.
        interval: of the drop.
        flips: answers that changed between right and wrong.
        mcnemar_p: exact two-sided test of whether right and wrong flips are alike.
        agreement: share with the same answer on both sides.
        changed_interval: of the share of changed answers.
        sqnr_db: of the logits.
        cosine_min: smallest of the images', logits centred over the classes.
        distance: how far the logits are apart otherwise; None where no row of the engine is finite.
        reliability_reference, reliability_engine: how honest each side's confidence is, over the finite rows.
        confusion_reference, confusion_engine: counts [label][answer].
    """

    top1_reference: float | None
    top1_engine: float | None
    top5_reference: float | None
    top5_engine: float | None
    drop_points: float | None
    interval: Interval | None
    flips: Flips | None
    mcnemar_p: float | None
    agreement: float
    changed_interval: Interval
    sqnr_db: float
    cosine_min: float
    distance: Distance | None
    reliability_reference: Reliability | None
    reliability_engine: Reliability | None
    confusion_reference: tuple[tuple[int, ...], ...] | None
    confusion_engine: tuple[tuple[int, ...], ...] | None

    @property
    def labelled(self) -> Labelled | None:
        """What needed labels, None without them."""
        values = [getattr(self, f.name) for f in fields(Labelled)]
        return None if any(value is None for value in values) else Labelled(*values)

    @property
    def with_truth(self) -> bool:
        """Whether the images came with labels."""
        return self.labelled is not None


@dataclass(frozen=True)
class Labelled:
    """The fields of a comparison that are there if and only if the images have labels; see `Comparison`."""

    top1_reference: float
    top1_engine: float
    drop_points: float
    interval: Interval
    flips: Flips
    mcnemar_p: float
    confusion_reference: tuple[tuple[int, ...], ...]
    confusion_engine: tuple[tuple[int, ...], ...]


def compare(reference: Floats, engine: Floats, labels: Int64 | None) -> LogitComparison:
    """Compare logits (n, classes) of the same n images with labels (n,), or without.

    A row of the engine that holds NaN or Inf counts as a wrong answer that agrees with nothing; the numerical measures are
    then taken over the finite rows. Raises InputError when shapes differ, a label is out of range, or the
    reference is not finite.
    """
    _check(reference, engine, labels)
    finite = np.isfinite(engine).all(axis=1)
    answer_reference = reference.argmax(1)
    answer_engine = answers(engine)
    changed = int((answer_reference != answer_engine).sum())
    some, n = bool(finite.any()), len(reference)
    cosines = centred_cosine(reference[finite], engine[finite])
    missing = []
    if not finite.all():
        missing.append(
            f"{int((~finite).sum())} of {n} images: the engine's logits hold NaN or infinity, so that only answers count"
        )
    if labels is None:
        missing.append("accuracy, top-5, flips and calibration error: the images have no labels")
    elif reference.shape[1] <= TOP:
        missing.append(f"top-5: there are {reference.shape[1]} classes")
    return LogitComparison(
        images=n,
        agreement=(n - changed) / n,
        changed_interval=share_interval(changed, n),
        sqnr_db=min(sqnr_db(reference[finite], engine[finite]), SQNR_CAP_DB) if some else -SQNR_CAP_DB,
        cosine_min=float(cosines.min()) if some else -1.0,
        distance=distance(reference[finite], engine[finite], cosines) if some else None,
        not_finite=int((~finite).sum()),
        not_compared=tuple(missing),
        **_answers(reference, engine, labels, answer_engine),
    )


def _check(reference: Floats, engine: Floats, labels: Int64 | None) -> None:
    shapes = f"{reference.shape}, {engine.shape}, {None if labels is None else labels.shape}"
    fits = reference.shape == engine.shape and reference.ndim == 2 and len(reference) and reference.shape[1]
    if not fits or (labels is not None and labels.shape != reference.shape[:1]):
        raise InputError("logits and labels do not match", found=shapes)
    if labels is not None and (labels.min() < 0 or labels.max() >= reference.shape[1]):
        found, allowed = f"classes {labels.min()} to {labels.max()}", f"0 to {reference.shape[1] - 1}"
        raise InputError("logits and labels do not match", found=found, allowed=allowed)
    if not np.isfinite(reference).all():
        raise InputError("the FP32 reference itself holds NaN or Inf", next_command="check the checkpoint and the images")


def _answers(reference: Floats, engine: Floats, labels: Int64 | None, answer_engine: Int64) -> dict[str, Any]:
    """The fields of a comparison that need labels; all None without."""
    found: dict[str, Any] = dict.fromkeys(f.name for f in fields(Labelled))
    found |= dict.fromkeys(("top5_reference", "top5_engine", "reliability_reference", "reliability_engine"))
    if labels is None:
        return found
    finite, answer_reference, classes = answer_engine >= 0, reference.argmax(1), reference.shape[1]
    right, still = answer_reference == labels, answer_engine == labels
    paired = Paired.of(right, still)
    found |= {
        "top1_reference": float(right.mean()),
        "top1_engine": float(still.mean()),
        "drop_points": 100.0 * (paired.right_to_wrong - paired.wrong_to_right) / len(labels),
        "interval": drop_interval(paired),
        "flips": paired.flips,
        "mcnemar_p": mcnemar_p(paired.flips),
        "confusion_reference": _confusion(labels, answer_reference, classes),
        "confusion_engine": _confusion(labels[finite], answer_engine[finite], classes),
    }
    if classes > TOP:
        everything = np.ones(len(labels), bool)
        found["top5_reference"] = top_share(reference, labels, everything)
        found["top5_engine"] = top_share(engine, labels, finite)
    if finite.any():
        found["reliability_reference"] = reliability(reference[finite], labels[finite])
        found["reliability_engine"] = reliability(engine[finite], labels[finite])
    return found


def centred_cosine(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    """Cosine (n,) between the rows of two (n, classes) arrays after subtracting each row's mean; 1 where both vanish."""
    a64 = a.astype(np.float64) - a.mean(1, keepdims=True, dtype=np.float64)
    b64 = b.astype(np.float64) - b.mean(1, keepdims=True, dtype=np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    same = np.where((a64 == b64).all(1), 1.0, 0.0)
    cosine: npt.NDArray[np.float64] = np.divide((a64 * b64).sum(1), norms, out=same, where=norms > 0)
    return cosine


def judge(comparison: LogitComparison, budget_points: float, *, random_weights: bool) -> tuple[JudgedBy, Verdict, str]:
    """By what a comparison is judged, the verdict, and its reason in one sentence."""
    judged_by: JudgedBy = "numbers" if random_weights else "accuracy" if comparison.interval is not None else "agreement"
    if comparison.not_finite:
        return judged_by, "fail", f"{comparison.not_finite} of {comparison.images} engine outputs hold NaN or Inf"
    if random_weights:
        found, needed = comparison.cosine_min, RANDOM_WEIGHTS_COSINE
        sentence = f"random weights have no accuracy to lose; smallest cosine of the logits {found:.4f}, {needed:g} needed"
        return judged_by, ("pass" if found >= needed else "fail"), sentence
    labelled = comparison.labelled
    what = "changed answers, which bound the drop," if labelled is None else "drop"
    points = 100 * (1 - comparison.agreement) if labelled is None else labelled.drop_points
    interval = comparison.changed_interval if labelled is None else labelled.interval
    ends = f"[{interval.low_points:+.2f}, {interval.high_points:+.2f}]"
    sentence = f"{what} {points:+.2f} points, {interval.level:.0%} interval {ends}, budget {budget_points:g}"
    verdict = decide(interval, budget_points)
    if verdict == "inconclusive":
        sentence += f": {comparison.images} images do not decide it, {_needed(comparison, budget_points)}"
    return judged_by, verdict, sentence


def _needed(comparison: LogitComparison, budget_points: float) -> str:
    labelled = comparison.labelled
    if labelled is None:
        return "more images would, or labelled ones"
    right = round(labelled.top1_reference * comparison.images)
    lost, won = labelled.flips.right_to_wrong, labelled.flips.wrong_to_right
    paired = Paired(right - lost, lost, won, comparison.images - right - won)
    images = images_to_decide(paired, budget_points)
    return "and no number would: the drop is the budget" if images is None else f"about {images:,} would"


def _confusion(labels: Int64, answers: Int64, classes: int) -> tuple[tuple[int, ...], ...]:
    """Counts [label][answer]."""
    table = np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)
    return tuple(tuple(int(v) for v in row) for row in table)
