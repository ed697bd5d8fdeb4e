"""Choose the method of plain calibration by the quantized networks that its scales give.

Where one image carries most of the signal, it decides the SQNR on any number of them: methods are compared by
`held_out.Figures.weighted_db`, in which the image in the middle has a say.
"""

from collections.abc import Callable

from calib.held_out import CLEAR_DB, Figures

DEFAULT_METHOD, SAFE_METHOD, BETWEEN = "mse", "minmax", "weighted_mse"
"""The default is compared with the method that clips nothing; where that is better overall, clipping costs, and BETWEEN is
tried."""
RARE_METHOD = "percentile:99.999"
"""Compared, too: `mse` widens its range for a few values far beyond all others, however little the output depends on them."""


def best_method(measure: Callable[[str], Figures]) -> tuple[str, dict[str, Figures]]:
    """The default, or the last method that is better than the one kept before by CLEAR_DB; and the figures of all measured."""
    figures: dict[str, Figures] = {}
    kept = DEFAULT_METHOD
    for method in (DEFAULT_METHOD, SAFE_METHOD, RARE_METHOD, BETWEEN):
        if method == BETWEEN and figures[SAFE_METHOD].overall_db <= figures[DEFAULT_METHOD].overall_db:
            break
        figures[method] = measure(method)
        if figures[method].weighted_db > figures[kept].weighted_db + CLEAR_DB:
            kept = method
    return kept, figures
