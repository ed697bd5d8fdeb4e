"""Engine against FP32 reference on the same labelled images.

Let n images; b of them right in the reference and wrong in the engine, c the other way round. The drop is (b - c) / n. The
images are paired, so that its uncertainty comes from the flips alone; the interval is Agresti and Min's (Statistics in
Medicine 24, 2005): Wald's with half a flip added to each cell,

    d = (b - c) / (n + 2),   s^2 = ((b + c + 1) - (b - c)^2 / (n + 2)) / (n + 2)^2,   d -+ z s

Verdict against a budget in points: pass when the whole interval lies within the budget, fail when the whole interval lies
beyond it, inconclusive otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from calib.errors import InputError
from calib.metrics import sqnr_db
from edge.tolerances import RANDOM_WEIGHTS_COSINE, SQNR_CAP_DB

Floats = npt.NDArray[np.floating]
Int64 = npt.NDArray[np.int64]
Verdict = Literal["pass", "fail", "inconclusive"]
LEVEL = 0.95


@dataclass(frozen=True)
class Source:
    """What produced one side of the comparison: an ONNX file or an engine by name and digest, and what ran it."""

    file: str
    sha256: str
    ran_on: str


@dataclass(frozen=True)
class Flips:
    """Images whose answer changed from right to wrong and from wrong to right."""

    right_to_wrong: int
    wrong_to_right: int


@dataclass(frozen=True)
class Interval:
    """Confidence interval of the drop in percentage points."""

    level: float
    low_points: float
    high_points: float


@dataclass(frozen=True)
class Comparison:
    """The numbers of a comparison, before they are judged.

    Shares are in [0, 1], `_points` are percentage points; `not_finite` counts engine rows with NaN or Inf; the confusions
    are counts [label][answer].
    """

    images: int
    top1_reference: float
    top1_engine: float
    drop_points: float
    agreement: float
    sqnr_db: float
    cosine_min: float
    flips: Flips
    interval: Interval
    not_finite: int
    confusion_reference: tuple[tuple[int, ...], ...]
    confusion_engine: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class DriftReport(Comparison):
    """`drift.json`: a comparison, what was compared on what, and the verdict.

    `judged_by` is "accuracy", or "numbers" for drawn weights, which have no accuracy to lose: then the smallest cosine
    between the two logit vectors of an image, each centred over the classes, decides.
    """

    reference: Source
    engine: Source
    data: str
    data_sha256: str
    preprocess_sha256: str
    budget_points: float
    judged_by: Literal["accuracy", "numbers"]
    random_weights: bool
    verdict: Verdict
    reason: str


def compare(reference: Floats, engine: Floats, labels: Int64) -> Comparison:
    """Compare logits (n, classes) of the same n images with labels (n,).

    A row of the engine that holds NaN or Inf counts as a wrong answer that agrees with nothing; the numerical measures are
    then taken over the finite rows. Raises InputError when shapes differ, a label is no class, or the
    reference is not finite.
    """
    if reference.shape != engine.shape or reference.ndim != 2 or labels.shape != reference.shape[:1] or not len(labels):
        raise InputError("logits and labels do not match", found=f"{reference.shape}, {engine.shape}, {labels.shape}")
    if labels.min() < 0 or labels.max() >= reference.shape[1]:
        found, allowed = f"classes {labels.min()} to {labels.max()}", f"0 to {reference.shape[1] - 1}"
        raise InputError("logits and labels do not match", found=found, allowed=allowed)
    if not np.isfinite(reference).all():
        raise InputError("the FP32 reference itself holds NaN or Inf", next_command="check the checkpoint and the images")
    finite = np.isfinite(engine).all(axis=1)
    classes = reference.shape[1]
    answer_reference = reference.argmax(1)
    answer_engine = np.where(finite, np.where(np.isfinite(engine), engine, 0).argmax(1), -1)
    right_reference, right_engine = answer_reference == labels, answer_engine == labels
    flips = Flips(int((right_reference & ~right_engine).sum()), int((~right_reference & right_engine).sum()))
    return Comparison(
        images=len(labels),
        top1_reference=float(right_reference.mean()),
        top1_engine=float(right_engine.mean()),
        drop_points=100.0 * (flips.right_to_wrong - flips.wrong_to_right) / len(labels),
        agreement=float((answer_reference == answer_engine).mean()),
        sqnr_db=min(sqnr_db(reference[finite], engine[finite]), SQNR_CAP_DB) if finite.any() else -SQNR_CAP_DB,
        cosine_min=float(centred_cosine(reference[finite], engine[finite]).min()) if finite.any() else -1.0,
        flips=flips,
        interval=drop_interval(flips, len(labels)),
        not_finite=int((~finite).sum()),
        confusion_reference=_confusion(labels, answer_reference, classes),
        confusion_engine=_confusion(labels[finite], answer_engine[finite], classes),
    )


def centred_cosine(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    """Cosine (n,) between the rows of two (n, classes) arrays after subtracting each row's mean; 1 where both vanish."""
    a64 = a.astype(np.float64) - a.mean(1, keepdims=True, dtype=np.float64)
    b64 = b.astype(np.float64) - b.mean(1, keepdims=True, dtype=np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    same = np.where((a64 == b64).all(1), 1.0, 0.0)
    cosine: npt.NDArray[np.float64] = np.divide((a64 * b64).sum(1), norms, out=same, where=norms > 0)
    return cosine


def drop_interval(flips: Flips, images: int, level: float = LEVEL) -> Interval:
    """Agresti-Min interval of the drop of paired answers, in points; formula at the top of this file."""
    b, c, n = flips.right_to_wrong, flips.wrong_to_right, images + 2
    centre = (b - c) / n
    spread = (((b + c + 1) - (b - c) ** 2 / n) / n**2) ** 0.5
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return Interval(level, 100.0 * (centre - z * spread), 100.0 * (centre + z * spread))


def judge(comparison: Comparison, budget_points: float, *, random_weights: bool) -> tuple[Verdict, str]:
    """The verdict and its reason in one sentence."""
    if comparison.not_finite:
        return "fail", f"{comparison.not_finite} of {comparison.images} engine outputs hold NaN or Inf"
    if random_weights:
        found, needed = comparison.cosine_min, RANDOM_WEIGHTS_COSINE
        sentence = f"random weights have no accuracy to lose; smallest cosine of the logits {found:.4f}, {needed:g} needed"
        return ("pass" if found >= needed else "fail"), sentence
    low, high = comparison.interval.low_points, comparison.interval.high_points
    sentence = (
        f"drop {comparison.drop_points:+.2f} points, {comparison.interval.level:.0%} interval [{low:+.2f}, {high:+.2f}], "
        f"budget {budget_points:g}"
    )
    if high <= budget_points:
        return "pass", sentence
    if low > budget_points:
        return "fail", sentence
    return "inconclusive", f"{sentence}: {comparison.images} images do not decide it"


def _confusion(labels: Int64, answers: Int64, classes: int) -> tuple[tuple[int, ...], ...]:
    """Counts [label][answer]."""
    table = np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)
    return tuple(tuple(int(v) for v in row) for row in table)
