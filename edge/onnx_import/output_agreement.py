"""Compare the outputs of two graphs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.metrics import sqnr_db
from edge.numeric_tolerances import IMPORT_ABS, IMPORT_EQUAL_SHARE, SQNR_CAP_DB


def agreement_db(reference: NDArray[Any], test: NDArray[Any]) -> float:
    """SQNR of an output in dB, within +-SQNR_CAP_DB.

    Values that differ by IMPORT_ABS at most count as equal. Where the reference is not finite, the other has to be the same;
    not finite where the reference is finite, or of another shape, is the worst figure. Whole numbers and truth values (classes,
    masks) count as equal when IMPORT_EQUAL_SHARE of them are.
    """
    if reference.shape != test.shape:
        return -SQNR_CAP_DB
    if not reference.size:
        return SQNR_CAP_DB
    if reference.dtype.kind not in "fc":
        return SQNR_CAP_DB if float(np.mean(reference == test)) >= IMPORT_EQUAL_SHARE else -SQNR_CAP_DB
    finite = np.isfinite(reference)
    if not np.isfinite(test[finite]).all() or not np.array_equal(reference[~finite], test[~finite], equal_nan=True):
        return -SQNR_CAP_DB
    if not finite.any() or float(np.abs(reference[finite] - test[finite]).max()) <= IMPORT_ABS:
        return SQNR_CAP_DB
    return float(np.clip(sqnr_db(reference[finite], test[finite]), -SQNR_CAP_DB, SQNR_CAP_DB))
