"""Flips: images whose answer changed between right and wrong, or, without labels, changed at all. numpy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.tasks.classification.logit_metrics import Floats, Int64, confidences
from edge.tasks.classification.logits import answers


def truth(reference: Floats, labels: Int64 | None) -> Int64:
    """What the right answer (n,) is taken to be: the label, and without labels what the reference answers."""
    return reference.argmax(axis=1) if labels is None else labels


def flipped(reference: Floats, engine: Floats, labels: Int64 | None) -> npt.NDArray[np.bool_]:
    """Which of n images changed between right and wrong (n,); without labels, whose answer changed.

    Args:
        reference, engine: logits (n, classes); the reference's are finite.
        labels: (n,), or None.
    """
    right = truth(reference, labels)
    return np.asarray((answers(reference) == right) != (answers(engine) == right))


def worst_flips(reference: Floats, engine: Floats, labels: Int64 | None) -> Int64:
    """Indices of the flips by how much confidence in the right answer they lost, the worst first.

    Arguments as of `flipped`. What a flip lost is p_t - p'_t, t the right answer, p and p' the two sides' softmax; an image
    that got no answer lost everything.
    """
    rows, right = np.arange(len(reference)), truth(reference, labels)
    lost = confidences(reference)[rows, right] - confidences(engine)[rows, right]
    lost[answers(engine) < 0] = np.inf
    found = np.flatnonzero(flipped(reference, engine, labels))
    return found[np.argsort(-lost[found], kind="stable")]
