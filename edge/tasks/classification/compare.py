"""Compare the logits of an engine with those of the FP32 reference on the same images, and judge the difference.

A row of the engine that holds NaN or infinity is a wrong answer that agrees with nothing, and fails. Statistics:
`drop_interval`; measures: `logit_metrics`. numpy alone: this also runs on a device.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from calib.errors import DataError
from calib.metrics import sqnr_db
from edge.numeric_tolerances import RANDOM_WEIGHTS_COSINE, RECOMPUTED, SQNR_CAP_DB
from edge.tasks.classification.drop_interval import Flips, Paired, drop_interval, images_to_decide, mcnemar_p
from edge.tasks.classification.logit_metrics import (
    BINS,
    TOP,
    Distance,
    Floats,
    Int64,
    Reliability,
    distance,
    reliability,
    top_share,
)
from edge.tasks.classification.logits import answers
from edge.tasks.constant_outputs import why_constant
from edge.tasks.interval import LEVEL, Float64, Interval, Verdict, decide, level_text, share_interval
from edge.tasks.task import Comparison

JudgedBy = Literal["accuracy", "agreement", "numbers"]


@dataclass(frozen=True)
class LogitComparison(Comparison):
    """The figures of a comparison, before they are judged. Shares are in [0, 1], `_points` are percentage points.

    Figures that need labels are None without them.

    Attributes:
        top5_reference, top5_engine: share whose label is among the five largest logits; None with five classes or fewer.
        drop_points: drop in top-1, positive is worse, and its `interval`.
        flips: answers that changed between right and wrong.
        agreement: share with the same answer on both sides; `changed_interval` is that of the share of changed answers.
        constant_reference: "zero for every image" or "the same for every image" where the reference's logits are so.
        cosine_min: smallest over the images, logits centred over the classes.
        distance: other distances between the logits; None where no row of the engine is finite.
        reliability_reference, reliability_engine: calibration error of each side's confidence, over the finite rows.
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
    constant_reference: str = ""

    @property
    def level(self) -> float:
        """See `Comparison`."""
        return self.changed_interval.level

    @property
    def with_truth(self) -> bool:
        """Whether the images have labels."""
        return all(getattr(self, name) is not None for name in _LABELLED)

    @property
    def budgeted(self) -> tuple[float, Interval]:
        """What the budget is on, in points: the drop, or without labels the share of changed answers, which bounds it."""
        if self.drop_points is None or self.interval is None:
            return 100 * (1 - self.agreement), self.changed_interval
        return self.drop_points, self.interval


_LABELLED = (
    "top1_reference", "top1_engine", "drop_points", "interval", "flips", "mcnemar_p", "confusion_reference", "confusion_engine",
)  # fmt: skip
"""The figures that are set if and only if the images have labels."""
_LABELLED_OR_NONE = ("top5_reference", "top5_engine", "reliability_reference", "reliability_engine")


def compare(reference: Floats, engine: Floats, labels: Int64 | None, level: float = LEVEL) -> LogitComparison:
    """Compare logits (n, classes) of the same n images, with labels (n,) or without; intervals of `level`.

    Numerical measures are taken over the rows of the engine that are finite. Raises DataError when shapes differ, a label is
    out of range, or the reference is not finite.
    """
    _check(reference, engine, labels)
    finite = np.isfinite(engine).all(axis=1)
    answer_reference = reference.argmax(1)
    answer_engine = answers(engine)
    changed = int((answer_reference != answer_engine).sum())
    some, n = bool(finite.any()), len(reference)
    cosines = centred_cosine(reference[finite], engine[finite])
    not_finite, missing = int((~finite).sum()), []
    if constant := why_constant(reference):
        missing.append(f"SQNR and agreement: the reference's logits are {constant}, so that neither is defined")
    if not_finite:
        missing.append(f"{not_finite} of {n} images: the engine's logits hold NaN or infinity, so that only answers count")
    if labels is None:
        missing.append("accuracy, top-5, flips and calibration error: the images have no labels")
    elif reference.shape[1] <= TOP:
        missing.append(f"top-5: there are {reference.shape[1]} classes")
    return LogitComparison(
        images=n,
        agreement=(n - changed) / n,
        changed_interval=share_interval(changed, n, level),
        sqnr_db=min(sqnr_db(reference[finite], engine[finite]), SQNR_CAP_DB) if some else -SQNR_CAP_DB,
        cosine_min=float(cosines.min()) if some else -1.0,
        distance=distance(reference[finite], engine[finite], cosines) if some else None,
        not_finite=not_finite,
        not_compared=tuple(missing),
        constant_reference=constant,
        **_labelled_figures(reference, engine, labels, level),
    )


def _check(reference: Floats, engine: Floats, labels: Int64 | None) -> None:
    shapes = f"{reference.shape}, {engine.shape}, {None if labels is None else labels.shape}"
    fits = reference.shape == engine.shape and reference.ndim == 2 and len(reference) and reference.shape[1]
    if not fits or (labels is not None and labels.shape != reference.shape[:1]):
        raise DataError("logits and labels do not match", found=shapes)
    if labels is not None and (labels.min() < 0 or labels.max() >= reference.shape[1]):
        found, allowed = f"classes {labels.min()} to {labels.max()}", f"0 to {reference.shape[1] - 1}"
        raise DataError("logits and labels do not match", found=found, allowed=allowed)
    if not np.isfinite(reference).all():
        broken = np.flatnonzero(~np.isfinite(reference).all(axis=1))
        raise DataError(
            "the FP32 reference itself holds NaN or Inf",
            where=f"image {broken[0]}",
            found=f"{len(broken)} of {len(reference)} images",
            next_command="check the checkpoint and the images",
        )


def _labelled_figures(reference: Floats, engine: Floats, labels: Int64 | None, level: float) -> dict[str, Any]:
    """The fields of a comparison that need labels; all None without."""
    figures: dict[str, Any] = dict.fromkeys(_LABELLED + _LABELLED_OR_NONE)
    if labels is None:
        return figures
    answer_reference, answer_engine, classes = reference.argmax(1), answers(engine), reference.shape[1]
    finite = answer_engine >= 0
    right, still = answer_reference == labels, answer_engine == labels
    paired = Paired.of(right, still)
    figures |= {
        "top1_reference": float(right.mean()),
        "top1_engine": float(still.mean()),
        "drop_points": 100.0 * (paired.right_to_wrong - paired.wrong_to_right) / len(labels),
        "interval": drop_interval(paired, level),
        "flips": paired.flips,
        "mcnemar_p": mcnemar_p(paired.flips),
        "confusion_reference": _confusion(labels, answer_reference, classes),
        "confusion_engine": _confusion(labels[finite], answer_engine[finite], classes),
    }
    if classes > TOP:
        figures["top5_reference"] = top_share(reference, labels, np.ones_like(finite))
        figures["top5_engine"] = top_share(engine, labels, finite)
    if finite.any():
        figures["reliability_reference"] = reliability(reference[finite], labels[finite])
        figures["reliability_engine"] = reliability(engine[finite], labels[finite])
    return figures


def centred_cosine(a: Floats, b: Floats) -> Float64:
    """Cosine (n,) between the rows of two (n, classes) arrays after subtracting each row's mean; 1 where both vanish."""
    a64 = a.astype(np.float64) - a.mean(1, keepdims=True, dtype=np.float64)
    b64 = b.astype(np.float64) - b.mean(1, keepdims=True, dtype=np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    same = np.where((a64 == b64).all(1), 1.0, 0.0)
    cosine: Float64 = np.divide((a64 * b64).sum(1), norms, out=same, where=norms > 0)
    return cosine


def judge(comparison: LogitComparison, budget_points: float, *, random_weights: bool) -> tuple[JudgedBy, Verdict, str]:
    """Return the basis of the verdict, the verdict, and its reason in one sentence."""
    judged_by: JudgedBy = "numbers" if random_weights else "accuracy" if comparison.with_truth else "agreement"
    if comparison.not_finite:
        return judged_by, "fail", f"{comparison.not_finite} of {comparison.images} engine outputs hold NaN or Inf"
    if comparison.constant_reference:
        return judged_by, "inconclusive", f"the FP32 network cannot be judged: its logits are {comparison.constant_reference}"
    if random_weights:
        cosine, needed = comparison.cosine_min, RANDOM_WEIGHTS_COSINE
        sentence = f"random weights have no accuracy to lose; smallest cosine of the logits {cosine:.4f}, {needed:g} needed"
        return judged_by, ("pass" if cosine >= needed else "fail"), sentence
    what = "drop" if comparison.with_truth else "changed answers, which bound the drop,"
    points, interval = comparison.budgeted
    ends = f"[{interval.low_points:+.2f}, {interval.high_points:+.2f}]"
    sentence = f"{what} {points:+.2f} points, {level_text(interval.level)} interval {ends}, budget {budget_points:g}"
    verdict = decide(interval, budget_points)
    if verdict == "inconclusive":
        sentence += f": {comparison.images} images do not decide it, {_images_needed(comparison, budget_points)}"
    return judged_by, verdict, sentence


def contradiction(comparison: LogitComparison) -> str:
    """Why the figures that a verdict rests on cannot be of one comparison; "" when they can.

    Drop and interval are computed again from the counts that they follow from. Raises DataError for impossible counts.
    """
    images, flips = comparison.images, comparison.flips
    present = {getattr(comparison, name) is not None for name in _LABELLED}
    if images < 1 or not 0 <= comparison.not_finite <= images or len(present) > 1:
        return f"{images} images, {comparison.not_finite} not finite; figures that need labels: some but not all"
    sides = (comparison.reliability_reference, comparison.reliability_engine)
    if any(side is not None and len(side.bins) != BINS for side in sides):
        return f"reliability in other than {BINS} bins"
    if flips is None:
        changed = round(images * (1 - comparison.agreement))
        points, counts = 100.0 * changed / images, f"{changed} changed answers"
        interval = share_interval(changed, images, comparison.level)
    else:
        lost, won = flips.right_to_wrong, flips.wrong_to_right
        points, counts = 100.0 * (lost - won) / images, f"{lost} answers lost, {won} won"
        interval = drop_interval(Paired(images - lost - won, lost, won, 0), comparison.level)
    stated_points, stated = comparison.budgeted
    pairs = ((stated_points, points), *zip(vars(stated).values(), vars(interval).values(), strict=True))
    if all(math.isclose(*pair, rel_tol=0.0, abs_tol=RECOMPUTED) for pair in pairs):
        return ""
    return f"{stated_points:+.2f} points {stated}; {counts} of {images} images give {points:+.2f} points {interval}"


def _images_needed(comparison: LogitComparison, budget_points: float) -> str:
    if comparison.top1_reference is None or comparison.flips is None:
        return "more images would, or labelled ones"
    right = round(comparison.top1_reference * comparison.images)
    lost, won = comparison.flips.right_to_wrong, comparison.flips.wrong_to_right
    paired = Paired(right - lost, lost, won, comparison.images - right - won)
    images = images_to_decide(paired, budget_points, comparison.level)
    return "and no number of images would: the drop equals the budget" if images is None else f"about {images:,} would"


def _confusion(labels: Int64, answers: Int64, classes: int) -> tuple[tuple[int, ...], ...]:
    """Counts [label][answer]."""
    table = np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)
    return tuple(tuple(int(v) for v in row) for row in table)
