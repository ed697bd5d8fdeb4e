"""Measures of logits: KL divergence, cosine, margin, top-5 accuracy, confidence and expected calibration error.

    z, z'        logits (n, classes) of the reference and of the engine
    p            softmax(z) over the classes
    KL           sum_c p_c (log p_c - log p'_c) per image, nats
    margin       z_a - max_{c != a} z_c, with a the reference's answer: how far an image is from another answer
    confidence   max_c p_c
    ECE          sum over BINS equal bins of confidence of (images in the bin / n) |their accuracy - their mean confidence|
                 (Guo et al., On Calibration of Modern Neural Networks, 2017)

Computed in float64. numpy alone: this also runs on a device.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calib.metrics import log_softmax

Floats = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
BINS = 10
TOP = 5


@dataclass(frozen=True)
class Distance:
    """Distances between the logits of both sides over the finite rows.

    KL in nats; `max_abs` is the largest difference of two logits; `cosine_mean` is over rows centred over the classes;
    `margin_shift_mean` is the engine's margin minus the reference's, in logits; the confidences are means.
    """

    kl_mean: float
    kl_max: float
    max_abs: float
    cosine_mean: float
    margin_shift_mean: float
    confidence_reference: float
    confidence_engine: float


@dataclass(frozen=True)
class Bin:
    """One bin of confidence: number of images, their mean confidence, their accuracy."""

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """Expected calibration error in [0, 1] and its bins in order of confidence; empty bins are zeros."""

    ece: float
    bins: tuple[Bin, ...]


def distance(reference: Floats, engine: Floats, cosines: Float64) -> Distance:
    """Measure finite logits (n, classes), n > 0; `cosines` (n,) are those of their rows, centred."""
    a, b = reference.astype(np.float64), engine.astype(np.float64)
    log_p, log_q = log_softmax(a), log_softmax(b)
    kl = np.maximum(0.0, (np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    answers = a.argmax(1)
    return Distance(
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        max_abs=float(np.abs(a - b).max()),
        cosine_mean=float(cosines.mean()),
        margin_shift_mean=float((margin(b, answers) - margin(a, answers)).mean()),
        confidence_reference=float(np.exp(log_p.max(axis=1)).mean()),
        confidence_engine=float(np.exp(log_q.max(axis=1)).mean()),
    )


def margin(logits: Float64, answers: Int64) -> Float64:
    """Logit of `answers` (n,) minus the largest other one, (n,); 0 where there is no other class."""
    if logits.shape[1] == 1:
        return np.zeros(len(logits))
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, answers] = -np.inf
    return np.asarray(logits[rows, answers] - others.max(axis=1))


def reliability(logits: Floats, labels: Int64) -> Reliability:
    """Expected calibration error of finite logits (n, classes) with labels (n,), n > 0."""
    probability = np.exp(log_softmax(logits.astype(np.float64)))
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == labels
    index = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    bins = []
    for i in range(BINS):
        inside = index == i
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (0.0, 0.0)
        bins.append(Bin(count, *means))
    ece = sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / len(labels)
    return Reliability(ece, tuple(bins))


def top_share(logits: Floats, labels: Int64, finite: Bools) -> float:
    """Share of images whose label (n,) is among the TOP largest logits; a row that is not finite is wrong."""
    ranks = np.argsort(-np.where(finite[:, None], logits, 0), axis=1, kind="stable")[:, :TOP]
    return float(((ranks == labels[:, None]).any(axis=1) & finite).mean())


def confidences(logits: Floats) -> Float64:
    """Softmax (n, classes) of logits in float64; zeros for a row that holds NaN or infinity."""
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    probabilities: Float64 = np.exp(log_softmax(np.where(finite[:, None], logits, 0).astype(np.float64)))
    return np.where(finite[:, None], probabilities, 0.0)
