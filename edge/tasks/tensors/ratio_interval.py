"""Confidence interval of a ratio of two sums over images: SQNR, mean cosine.

SQNR over all images is 10 log10(S / E), S and E the sums of the images' signal and noise. Images differ much in both, and both
vary together, so that the images are left out in pairs (signal, noise): with

    v      = ln(E / S)                      v_i = ln((E - e_i) / (S - s_i)), without image i
    d^2    = (n - 1) / n sum_i (v_i - mean v)^2        (jackknife: Tukey 1958; Efron, The Jackknife, 1982)

the interval is v -+ t d, t Student's quantile with n - 1 degrees of freedom: symmetric in decibels, and the same on every
machine, which a bootstrap is not. It takes the images for a fair sample of those that the network will see.

Coverage at nominal 95 %, in brackets the share of intervals that lie entirely on the good side of the true value (nominal
2.5 %), 20,000 simulated runs each (a test repeats some of them):

    noise of an image, signal                      16 images         64 images         256 images
    gamma, shape 2; gamma, shape 4                 94.8 % (3.1 %)    94.9 % (2.9 %)    95.8 % (2.2 %)
    exponential; constant                          94.4 % (4.0 %)    94.5 % (3.6 %)    95.0 % (2.3 %)
    lognormal, sigma 0.5; lognormal, sigma 0.5     94.4 % (2.9 %)    95.0 % (2.6 %)    94.7 % (2.5 %)
    lognormal, sigma 1 (a tail of 20 dB)           92.0 % (6.8 %)    93.6 % (5.1 %)    94.0 % (4.1 %)
    one image in 20 has ten times the noise        63.4 % (36 %)     87.1 % (12 %)     94.0 % (5.0 %)

No interval shows what no image showed: rare failures need hundreds of images. Fewer than MIN_IMAGES give no interval at all.
numpy and the standard library alone: this also runs on a device.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from edge.tasks.interval import LEVEL
from edge.tasks.tensors.image_errors import Float64

MIN_IMAGES = 16
"""Fewer show no spread that could be relied on."""
MOST_IMAGES = 10_000_000
"""More are not run to settle a verdict."""


def half_width(noise: Float64, signal: Float64, level: float = LEVEL) -> float | None:
    """Half of the interval of ln(sum noise / sum signal), t d of the formula; arrays (n,), noise not zero everywhere.

    None for fewer than MIN_IMAGES images. Where one image has all of the noise or signal, v is not defined without it, and d is
    that of the first order, the standard error of the mean of n (e_i / E - s_i / S).
    """
    n = len(noise)
    if n < MIN_IMAGES:
        return None
    if np.count_nonzero(noise) > 1 and np.count_nonzero(signal) > 1:
        left_out = np.log(noise.sum() - noise) - np.log(signal.sum() - signal)
        deviation = math.sqrt((n - 1) * float(left_out.var()))
    else:
        relative = n * (noise / noise.sum() - signal / signal.sum())
        deviation = float(relative.std(ddof=1)) / math.sqrt(n)
    return t_quantile(n - 1, level) * deviation


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t by its expansion around the normal's, right to 1e-5 from 15 degrees of freedom on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    x, v = NormalDist().inv_cdf(0.5 + level / 2), freedom
    return (
        x
        + (x**3 + x) / (4 * v)
        + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * v**2)
        + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * v**3)
        + (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / (92160 * v**4)
    )


def images_to_decide(images: int, width: float, margin: float) -> int | None:
    """Number of images that decide if the spread stays as it is, rounded up to two digits; None above MOST_IMAGES.

    The interval's half-width, `width` on `images` images, shrinks as 1 / sqrt(n); `margin` is the distance from the budget in
    the same unit.
    """
    if not margin or (needed := images * (width / margin) ** 2) > MOST_IMAGES:
        return None
    step: int = 10 ** max(0, len(str(math.ceil(needed))) - 2)
    return -(-math.ceil(needed) // step) * step
