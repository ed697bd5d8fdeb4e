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
POOR_DB = 20.0
"""Below it, an error of a tenth of the signal and the default budget of networks without classes, every gain counts."""


def best_method(measure: Callable[[str], Figures]) -> tuple[str, dict[str, Figures]]:
    """The method to keep, and the figures of all that were measured.

    That is the default, or the last method that is better than the one kept before by CLEAR_DB; the best of all where the
    default is below POOR_DB.
    """
    figures = {DEFAULT_METHOD: measure(DEFAULT_METHOD)}
    poor, kept = figures[DEFAULT_METHOD].overall_db < POOR_DB, DEFAULT_METHOD
    for method in (SAFE_METHOD, RARE_METHOD, BETWEEN):
        if method == BETWEEN and not poor and figures[SAFE_METHOD].overall_db <= figures[DEFAULT_METHOD].overall_db:
            break
        figures[method] = measure(method)
        if figures[method].weighted_db > figures[kept].weighted_db + (0.0 if poor else CLEAR_DB):
            kept = method
    return kept, figures
