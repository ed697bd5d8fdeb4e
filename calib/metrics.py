"""Compare two arrays: SQNR, top-1 agreement. numpy, float64 throughout.

What cannot be compared is refused, never skipped: every function raises DataError for different shapes, empty arrays, NaN and
infinities. A metric that drops the values it cannot handle reports the best figure on the worst results.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calib.errors import DataError

SQNR_CAP_DB = 300.0
"""Stands for an infinite SQNR in artifacts, where infinity cannot be written: beyond FP64's own 2^-53 per value."""


def power_ratio_db(signal: float, noise: float, cap_db: float = SQNR_CAP_DB) -> float:
    """10 log10(signal / noise) of two sums of squares, within +-cap_db.

    +cap_db for no noise, -cap_db for no signal and for sums that are NaN or infinite.
    """
    if noise == 0:
        return cap_db
    if signal <= 0 or not np.isfinite(noise) or not np.isfinite(signal):
        return -cap_db
    return float(np.clip(10 * (np.log10(signal) - np.log10(noise)), -cap_db, cap_db))


def sqnr_db(reference: ArrayLike, test: ArrayLike) -> float:
    """Signal to quantization noise ratio over all elements of two arrays of one shape, in dB.

        10 log10( sum reference^2 / sum (reference - test)^2 )

    Equal arrays give +inf, also where both are zero; an all-zero reference against another array gives -inf.
    """
    a, b = _comparable_pair(reference, test)
    peak = max(float(np.abs(a).max()), float(np.abs(b).max()))
    if peak > 0:  # squares of very large or very small numbers would leave float64; the ratio does not depend on scale
        a, b = a / peak, b / peak
    return power_ratio_db(float(np.sum(a**2)), float(np.sum((a - b) ** 2)), cap_db=float("inf"))


def top1_agreement(reference: ArrayLike, test: ArrayLike) -> float:
    """Fraction of rows of logits (B, classes) whose largest entry has the same index; ties go to the lower index."""
    a, b = _logits_pair(reference, test)
    return float(np.mean(a.argmax(axis=-1) == b.argmax(axis=-1)))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """log softmax over the last axis, shifted by the largest logit so that nothing overflows."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)), dtype=np.float64)


def _comparable_pair(reference: ArrayLike, test: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if a.shape != b.shape:
        raise DataError("arrays to compare differ in shape", found=b.shape, allowed=a.shape)
    if a.size == 0:
        raise DataError("nothing to compare", found=f"shape {a.shape}", allowed="at least one element")
    for name, values in (("reference", a), ("test", b)):
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            raise DataError("not a finite number", where=name, found=f"{bad} of {values.size} elements are NaN or infinite")
    return a, b


def _logits_pair(reference: ArrayLike, test: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = _comparable_pair(reference, test)
    if a.ndim != 2:
        raise DataError("not a batch of logits", found=f"shape {a.shape}", allowed="(B, classes)")
    return a, b
