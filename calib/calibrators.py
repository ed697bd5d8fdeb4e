"""Calibration methods: reduce a histogram of |x| to amax, the largest magnitude that INT8 is to represent.

    minmax        max|x|: nothing is clipped
    percentile    the smallest bin edge below which 99.99 % of all |x| lie
    entropy       minimises the KL divergence between the clipped distribution and its 128-level version (Migacz, "8-bit
                  inference with TensorRT", GTC 2017)
    mse           minimises E[(x - dequantized(x))^2], rounding and clipping together
    weighted_mse  the same, the error of clipped values counted CLIPPED_WEIGHT times. Roundings have both signs and average out
                  in the sums of the layers that follow; what is clipped has one sign, and adds up

To add a method: a function Histogram -> float, an entry in METHODS, a test with an oracle.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.errors import UsageError
from calib.histogram import BINS, Histogram
from calib.scales import QMAX

DEFAULT_PERCENTILE = 99.99
CLIPPED_WEIGHT = 16.0
"""Of the weights 1, 4, 16 and 64, the one whose results were best over the networks tried; 1 is `mse`, infinity `minmax`."""
_LEVELS = 128
_ENTROPY_BINS = 2048
_ENTROPY_STRIDE = 16
_MSE_STEPS_PER_OCTAVE = 16
_MSE_OCTAVES = 6


def minmax(histogram: Histogram) -> float:
    """The exact max|x|."""
    return histogram.amax


def percentile(histogram: Histogram, percent: float = DEFAULT_PERCENTILE) -> float:
    """Upper edge of the first bin at which `percent` of all values are covered, at most max|x|.

    Within one bin width, at most 2 max|x| / BINS, of the exact percentile.
    """
    covered = np.cumsum(histogram.counts)
    rank = math.ceil(percent / 100 * int(covered[-1]))
    edge = (int(np.searchsorted(covered, rank)) + 1) * histogram.width
    return min(edge, histogram.amax)


def entropy(histogram: Histogram) -> float:
    """KL-optimal amax over 2048 bins, candidates 16 bins apart, as in TensorRT's entropy calibrator.

    For a threshold of i bins: P is the histogram up to i with everything beyond added to its last bin, Q is the histogram up
    to i averaged over 128 equal levels, on its non-empty bins only. The bin at zero takes its neighbour's count, since
    exact zeros and tiny values have no rounding error worth a level. Ties go to the larger amax.
    """
    counts = histogram.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1).astype(np.float64)
    counts[0] = counts[1]
    width = histogram.width * (BINS // _ENTROPY_BINS)
    last = int(histogram.amax / width) + 1  # bins up to and including that of max|x|
    if last <= _LEVELS or not counts.any():
        return histogram.amax
    thresholds = np.arange(last, _LEVELS - 1, -_ENTROPY_STRIDE)
    best = int(thresholds[np.argmin(_divergences(counts[:last], thresholds))])
    return min(best * width, histogram.amax)


def mse(histogram: Histogram, clipped_weight: float = 1.0) -> float:
    """amax with the least expected squared error, 127 steps of size s = amax / 127, among 97 candidates 4.4 % apart.

    Within a bin the values are taken as uniformly distributed, with density d. The values nearest to n s, with edges t_n, then
    add M2 - 2 n s M1 + (n s)^2 M0 to the error, where

        t_0 = 0, t_n = (n - 1/2) s        Mk = integral of d(x) x^k from t_n to t_n+1, to infinity for n = 127

    The error of values beyond amax + s / 2, which are clipped, counts `clipped_weight` times. Ties go to the larger amax.
    """
    last = min(BINS, int(histogram.amax / histogram.width) + 1)
    edges = np.arange(last + 1, dtype=np.float64)  # in units of the bin width
    edges[-1] = max(edges[-2] + 1e-9, histogram.amax / histogram.width)
    density = histogram.counts[:last] / np.diff(edges)
    candidates = np.exp2(-np.arange(_MSE_OCTAVES * _MSE_STEPS_PER_OCTAVE + 1) / _MSE_STEPS_PER_OCTAVE)
    steps = edges[-1] * candidates / QMAX
    errors = _expected_errors(edges, density, steps)
    if clipped_weight != 1:
        errors += (clipped_weight - 1) * _clipping_errors(edges, density, steps)
    return float(histogram.amax * candidates[int(np.argmin(errors))])


Method = Callable[[Histogram], float]

METHODS: dict[str, Method] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "weighted_mse": partial(mse, clipped_weight=CLIPPED_WEIGHT),
}


def range_method(name: str) -> Method:
    """The method of a name; "percentile:99.9" sets the percentage. Raises UsageError, listing the known names."""
    base, _, argument = name.partition(":")
    if base == "percentile" and argument:
        try:
            percent = float(argument)
        except ValueError:
            percent = math.nan
        if not 0 < percent <= 100:
            raise UsageError("not a percentage", where=f"calibration method {name!r}", found=argument, allowed="(0, 100]")
        return partial(percentile, percent=percent)
    if name not in METHODS:
        raise UsageError(
            f"unknown calibration method {name!r}", where="--method", allowed=", ".join([*METHODS, "percentile:P"])
        )
    return METHODS[name]


def _divergences(counts: NDArray[np.float64], thresholds: NDArray[np.intp]) -> NDArray[np.float64]:
    """KL(P || Q) in nats of each threshold, up to a constant; inf where Q is zero and P is not.

    Q is constant within a level: with p_b the shares of the bins, P_l and Q_l sums over the n_l bins of level l that are not
    empty, KL = sum_b p_b log p_b - sum_l P_l log(Q_l / n_l). Sums over bins are differences of cumulative ones.
    """
    total, occupied, entropies = (_cumulative(v) for v in (counts, counts > 0, _times_log(counts)))
    edges = -(-np.arange(_LEVELS + 1) * thresholds[:, None] // _LEVELS)  # (thresholds, levels + 1): first bin of each level
    level, filled = np.diff(total[edges]), np.diff(occupied[edges])
    within, last = total[thresholds], counts[thresholds - 1]
    beyond = total[-1] - within
    logs = np.log(np.where(filled > 0, level / np.maximum(filled, 1), 1.0))
    p_log_p = entropies[thresholds] - _times_log(last) + _times_log(last + beyond)
    p_log_q = (level * logs).sum(axis=1) + beyond * logs[:, -1] - total[-1] * np.log(np.maximum(within, 1))
    return np.where((beyond > 0) & (last == 0), math.inf, p_log_p - p_log_q)


def _cumulative(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, 2, ... values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _times_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """v log v, 0 at 0."""
    return np.asarray(values * np.log(np.where(values > 0, values, 1.0)))


def _expected_errors(
    edges: NDArray[np.float64], density: NDArray[np.float64], steps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The squared error of each step size, summed over all values; see `mse`. All edges but the last are 0, 1, 2, ..."""
    levels = np.arange(QMAX + 1)
    nearest = levels * steps[:, None]
    starts = np.maximum(levels - 0.5, 0.0) * steps[:, None]
    bins = np.minimum(starts.astype(np.intp), len(density) - 1)
    errors = np.zeros(nearest.shape)
    edge_power: NDArray[np.float64] = np.ones(len(edges))
    start_power: NDArray[np.float64] = np.ones(starts.shape)
    for power, weight in ((1, nearest * nearest), (2, -2 * nearest), (3, 1.0)):
        edge_power, start_power = edge_power * edges, start_power * starts  # x^k+1, whose derivative is (k + 1) x^k
        below_bins = _cumulative(density * np.diff(edge_power))
        below = below_bins[bins] + density[bins] * (start_power - edge_power[bins])
        errors += weight / power * np.diff(below, axis=1, append=below_bins[-1])
    return np.asarray(errors.sum(axis=1))


def _clipping_errors(
    edges: NDArray[np.float64], density: NDArray[np.float64], steps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The part of `_expected_errors` that values beyond (127 + 1/2) s add: the integral of d(x) (x - 127 s)^2."""
    beyond = np.maximum(edges, (QMAX + 0.5) * steps[:, None]) - QMAX * steps[:, None]
    return np.asarray((density * np.diff(beyond**3, axis=1)).sum(axis=1) / 3)
