"""Search the scale of an activation by the error in the outputs of its readers, with SmoothQuant factors and a shift.

A reader computes x W from patches x. Quantized, with factors a > 0 per channel, a step s and a zero z, it computes x' W',

    q = clip(round(a x / s - z), -128, 127)        x' = s (q + z)        W' = Q(W / a)

with the error x' W' - x W. The search minimizes the mean squared error over a sample in (a, s, z); the mean error of each
output is left out, since the bias compensates it. Three things are tried, each of them optional:

    s alone        every calibration method is a rule for s; this compares candidates where it matters, after the layer
    a              a_c = (r_c / max r)^-alpha, r_c the range of channel c: SmoothQuant (Xiao et al., arXiv 2211.10438); the
                   factors move into the weights. Rounded down to powers of two: other images exceeding r_c must cost little
    z              a range not centred on zero, such as GELU's, uses all 255 levels once it is shifted: the channel-wise
                   shift of Outlier Suppression+ (Wei et al., arXiv 2304.09145), one z per tensor here. z is an integer
                   first, so that zero stays exact; quarters are tried for tensors whose most frequent value is another
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calib.refine.activation_sample import ActivationSample
from calib.refine.linear_consumers import Float32, product
from calib.scales import QMAX, QMIN, SMALLEST_SCALE, activation_scale

ALPHAS = (0.0, 0.5, 1.0)
_COARSE = (1.0, 0.71, 0.5, 0.35)
_FINE = (0.84, 0.92, 1.09, 1.19)
_QUARTERS = (0.25, 0.5, 0.75)
_WIDEST = 64.0
"""Largest ratio of two factors of one tensor: beyond it the quantization of the weights suffers."""
FOLDED_GAIN, INSERTED_GAIN = 0.95, 0.8
"""Error ratio required: a change folded into constants must reduce the error by 5 %, an inserted node by 20 % (1 dB)."""


@dataclass(frozen=True)
class ScaleChoice:
    """The quantization chosen for one tensor.

    Attributes:
        scale: the step s, exact in FP16.
        factors: a, (C,); all 1 without migration.
        zero: z, in steps; 0 without a shift.
        error: mean squared error of the outputs, relative to their mean square, with factors made from half of the images.
    """

    scale: float
    factors: NDArray[np.float64]
    zero: float
    error: float

    @property
    def plain(self) -> bool:
        """Whether there are neither factors nor a shift."""
        return self.zero == 0 and bool(np.all(self.factors == 1))

    @property
    def shift(self) -> float:
        """-z s, to be added to a x before it is quantized."""
        return -self.zero * self.scale


@dataclass(frozen=True)
class _Candidate:
    alpha: float
    scale: float
    zero: float


def search_scale(
    sample: ActivationSample,
    matrix: NDArray[np.float32],
    channels: NDArray[np.intp],
    *,
    factors: bool = False,
    zero: bool = False,
    gain: float = FOLDED_GAIN,
    clip: bool = True,
) -> ScaleChoice | None:
    """The quantization of a tensor with the least output error; None for a tensor that is constant over the sample.

    `matrix` (G, K, N) holds the weights of all readers, concatenated along N; `channels` (G, K) is the channel of each element
    of a patch. `factors` and `zero` allow these, where they reach the error ratio `gain`; without `clip` every range covers all
    values of the sample.
    """
    if not np.any(sample.high > sample.low):
        return None
    trial = _Trial(sample, matrix, channels)
    error, candidate = trial.best(_candidates(trial, factors=False, zero=False, clip=clip))
    if factors or zero:
        changed_error, changed = trial.best(_candidates(trial, factors=factors, zero=zero, clip=clip))
        if zero:
            shifted = (replace(changed, zero=changed.zero + part) for part in (0.0, *_QUARTERS))
            changed_error, changed = trial.best(shifted)
        if changed_error < gain * error:
            error, candidate = changed_error, changed
    return ScaleChoice(candidate.scale, trial.factors(candidate.alpha, final=True), candidate.zero, error)


class _Trial:
    """Evaluates candidates on one sample."""

    def __init__(self, sample: ActivationSample, matrix: NDArray[np.float32], channels: NDArray[np.intp]) -> None:
        self.sample = sample
        self._matrix = matrix
        self._channels = channels
        self._exact = product(sample.patches, matrix)
        self._power = float(np.mean(np.square(self._exact, dtype=np.float64))) or 1.0
        self.range = np.maximum(np.abs(sample.low), np.abs(sample.high)).astype(np.float64)
        self._early = sample.early.astype(np.float64)
        self._weights: dict[float, Float32] = {}
        self._errors: dict[_Candidate, float] = {}

    def factors(self, alpha: float, *, final: bool = False) -> NDArray[np.float64]:
        """(C,) a_c = 2^floor(-alpha log2(r_c / max r)): powers of two, which move between constants without rounding.

        In the search, r_c is the range in the first half of the images, so that the patches, of the second half, include the
        cost of other images exceeding it. `final` factors are from all images, and never larger.
        """
        if alpha == 0:
            return np.ones(len(self.range))
        relative = np.maximum((self.range if final else self._early) / self.range.max(), 1 / _WIDEST)
        return np.asarray(np.exp2(np.floor(-alpha * np.log2(relative))))

    def best(self, candidates: Iterator[_Candidate]) -> tuple[float, _Candidate]:
        """The least error and its candidate; the first of equals."""
        return min(((self.error(c), c) for c in candidates), key=lambda pair: pair[0])

    def error(self, candidate: _Candidate) -> float:
        """Mean squared error of the outputs around their mean error, relative to the outputs' mean square."""
        if candidate in self._errors:  # candidates without factors and zero are tried twice
            return self._errors[candidate]
        factors = self.factors(candidate.alpha)
        step = (factors / candidate.scale).astype(np.float32)[self._channels]
        levels = self.sample.patches * step
        levels -= np.float32(candidate.zero)
        np.rint(levels, out=levels)
        np.clip(levels, QMIN, QMAX, out=levels)
        levels += np.float32(candidate.zero)
        errors = product(levels, self._quantized(candidate.alpha, factors))
        errors *= np.float32(candidate.scale)
        errors -= self._exact
        self._errors[candidate] = float(np.mean(np.var(errors, axis=0, dtype=np.float64))) / self._power
        return self._errors[candidate]

    def _quantized(self, alpha: float, factors: NDArray[np.float64]) -> Float32:
        """The weights divided by the factors and rounded to 8 bits per output channel."""
        if alpha not in self._weights:
            matrix = self._matrix / factors.astype(np.float32)[self._channels][:, :, None]
            steps = np.maximum(np.abs(matrix).max(axis=1, keepdims=True) / QMAX, SMALLEST_SCALE)
            self._weights[alpha] = (np.rint(matrix / steps) * steps).astype(np.float32)
        return self._weights[alpha]


def _candidates(trial: _Trial, *, factors: bool, zero: bool, clip: bool) -> Iterator[_Candidate]:
    """The best coarse candidate and, where values may be clipped, finer steps around it."""
    coarse = trial.best(_coarse(trial, factors, zero, _COARSE if clip else _COARSE[:1]))[1]
    yield coarse
    for factor in _FINE if clip else ():
        scale = _scale(coarse.scale * factor * QMAX)
        yield _Candidate(coarse.alpha, scale, float(round(coarse.zero * coarse.scale / scale)))


def _coarse(trial: _Trial, factors: bool, zero: bool, shares: Sequence[float]) -> Iterator[_Candidate]:
    """Symmetric ranges; where a zero is allowed, also ranges from the shorter end to a share of the longer one, with zero."""
    for alpha in ALPHAS if factors else ALPHAS[:1]:
        by_channel = trial.factors(alpha, final=True)
        largest = float(np.max(trial.range * by_channel))
        for share in shares:
            yield _Candidate(alpha, _scale(largest * share), 0.0)
        if not zero:
            continue
        low = min(float(np.min(trial.sample.low * by_channel)), 0.0)
        high = max(float(np.max(trial.sample.high * by_channel)), 0.0)
        for share in shares:
            bottom, top = (low, high * share) if high >= -low else (low * share, high)
            scale = _scale((top - bottom) / 2)
            yield _Candidate(alpha, scale, float(round((top + bottom) / 2 / scale)))


def _scale(amax: float) -> float:
    return activation_scale(max(amax, SMALLEST_SCALE * QMAX), "in a search")
