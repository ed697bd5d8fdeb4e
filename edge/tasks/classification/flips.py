"""Flips: images whose answer changed between right and wrong, or, without labels, changed at all. numpy alone."""

import numpy as np

from edge.tasks.classification.logit_metrics import Bools, Floats, Int64, confidences
from edge.tasks.classification.logits import answers


def truth(reference: Floats, labels: Int64 | None) -> Int64:
    """The answers (n,) taken as right: the labels, or without labels those of the reference."""
    return reference.argmax(axis=1) if labels is None else labels


def flipped(reference: Floats, engine: Floats, labels: Int64 | None) -> Bools:
    """Which of n images changed between right and wrong, bool (n,); without labels (n,), whose answer changed.

    Logits (n, classes); those of the reference are finite.
    """
    right = truth(reference, labels)
    return np.asarray((answers(reference) == right) != (answers(engine) == right))


def worst_flips(reference: Floats, engine: Floats, labels: Int64 | None) -> Int64:
    """Indices of the flips, sorted by loss of confidence in the right answer, the largest first.

    Arguments as for `flipped`. The loss is p_t - p'_t, t the right answer, p and p' the softmax of reference and engine; an
    image without an answer comes first.
    """
    rows, right = np.arange(len(reference)), truth(reference, labels)
    lost = confidences(reference)[rows, right] - confidences(engine)[rows, right]
    lost[answers(engine) < 0] = np.inf
    flips = np.flatnonzero(flipped(reference, engine, labels))
    return flips[np.argsort(-lost[flips], kind="stable")]
