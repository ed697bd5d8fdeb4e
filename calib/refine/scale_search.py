"""The scale of a tensor by the error that it makes in the outputs of its readers, and what may be moved to help it.

A reader computes x W from patches x. Quantized, it sees, with factors a > 0 per channel, a step s and a zero z,

    q = clip(round(a x / s - z), -128, 127)        x' = s (q + z)        W' = Q(W / a)

and errs by x' W' - x W. The search looks for the (a, s, z) with the least mean squared error over a sample, the mean error of
each output left out, since a bias takes it back. Three things are tried, each of them optional:

    s alone        every calibration method is a rule for s; this compares candidates where it counts, behind the layer
    a              a_c = (r_c / max r)^-alpha, r_c the range of channel c: SmoothQuant (Xiao et al., arXiv 2211.10438); the
                   factors move into the weights. Rounded down to powers of two: that other images exceed r_c must cost little
    z              a range that does not lie around zero, such as GELU's, uses all 255 levels once it is shifted: the
                   channel-wise shift of Outlier Suppression+ (Wei et al., arXiv 2304.09145), one z per tensor here. z is an
                   integer first, so that zero stays exact; quarters are tried for tensors whose commonest value is another
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.refine.activation_sample import Sample
from calib.refine.linear_consumers import Float32, product
from calib.scales import QMAX, QMIN, SMALLEST_SCALE, activation_scale

ALPHAS = (0.0, 0.5, 1.0)
_COARSE = (1.0, 0.71, 0.5, 0.35)
_FINE = (0.84, 0.92, 1.09, 1.19)
_QUARTERS = (0.25, 0.5, 0.75)
_WIDEST = 64.0
"""Largest ratio of two factors of one tensor: beyond it the weights' own quantization suffers."""
FOLDED_GAIN, INSERTED_GAIN = 0.95, 0.8
"""What is folded into constants for nothing must take 5 % off the error, what inserts a node 20 % (1 dB)."""


@dataclass(frozen=True)
class Allowed:
    """What may be done to a tensor: factors and zeros, each at no run-time cost, by an inserted node, or not at all."""

    factors: bool = False
    zero: bool = False
    gain: float = FOLDED_GAIN


@dataclass(frozen=True)
class Choice:
    """The quantization of one tensor.

    Attributes:
        scale: the step s, exact in FP16.
        factors: a, (C,); all 1 when nothing is migrated.
        zero: z, in steps; 0 when nothing is shifted.
        error: mean squared error of the outputs, relative to their mean square, with factors made from half of the images.
        plain_error: the same of the best scale without factors and zero.
    """

    scale: float
    factors: NDArray[np.float64]
    zero: float
    error: float
    plain_error: float

    @property
    def plain(self) -> bool:
        """Whether there is nothing to move."""
        return self.zero == 0 and bool(np.all(self.factors == 1))

    @property
    def shift(self) -> float:
        """What is added to a x before it is quantized: -z s."""
        return -self.zero * self.scale


@dataclass(frozen=True)
class _Candidate:
    alpha: float
    scale: float
    zero: float


def choose(sample: Sample, matrix: NDArray[np.float32], channels: NDArray[np.intp], allowed: Allowed) -> Choice | None:
    """The best quantization of a tensor.

    Args:
        sample: of the tensor.
        matrix: (G, K, N) weights of all its readers, side by side along N.
        channels: (G, K) channel of each element of a patch.
        allowed: what may be moved.

    None for a tensor that is constant over the sample, whose error nothing can be said of.
    """
    if not np.any(sample.high > sample.low):
        return None
    trial = _Trial(sample, matrix, channels)
    plain = trial.best(_candidates(trial, Allowed()))
    best = plain
    if allowed.factors or allowed.zero:
        found = trial.best(_candidates(trial, allowed))
        if allowed.zero:
            shifted = (_Candidate(found[1].alpha, found[1].scale, found[1].zero + part) for part in _QUARTERS)
            found = min(found, trial.best(shifted), key=lambda f: f[0])
        if found[0] < allowed.gain * plain[0]:
            best = found
    error, candidate = best
    return Choice(candidate.scale, trial.factors(candidate.alpha, final=True), candidate.zero, error, plain[0])


class _Trial:
    """The error of candidates on one sample."""

    def __init__(self, sample: Sample, matrix: NDArray[np.float32], channels: NDArray[np.intp]) -> None:
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
        """(C,) a_c = 2^floor(-alpha log2(r_c / max r)): powers of two, which move between constants without a rounding.

        In the search, r_c is what the first half of the images shows, so that the patches, which are of the second, tell what
        it costs when other images exceed it. `final` ones are from all images, and never larger.
        """
        if alpha == 0:
            return np.ones(len(self.range))
        relative = np.maximum((self.range if final else self._early) / self.range.max(), 1 / _WIDEST)
        return np.asarray(np.exp2(np.floor(-alpha * np.log2(relative))))

    def best(self, candidates: Iterator[_Candidate]) -> tuple[float, _Candidate]:
        """The candidate with the least error; the first of equals."""
        return min(((self.error(c), c) for c in candidates), key=lambda found: found[0])

    def error(self, candidate: _Candidate) -> float:
        """Mean squared error of the outputs around their mean error, relative to the outputs' mean square."""
        if candidate not in self._errors:  # the plain ones are tried again among the others
            self._errors[candidate] = self._measured(candidate)
        return self._errors[candidate]

    def _measured(self, candidate: _Candidate) -> float:
        factors = self.factors(candidate.alpha)
        step = (factors / candidate.scale).astype(np.float32)[self._channels]
        levels = self.sample.patches * step
        levels -= np.float32(candidate.zero)
        np.rint(levels, out=levels)
        np.clip(levels, QMIN, QMAX, out=levels)
        levels += np.float32(candidate.zero)
        found = product(levels, self._quantized(candidate.alpha, factors))
        found *= np.float32(candidate.scale)
        found -= self._exact
        return float(np.mean(np.var(found, axis=0, dtype=np.float64))) / self._power

    def _quantized(self, alpha: float, factors: NDArray[np.float64]) -> Float32:
        """The weights divided by the factors and rounded to 8 bits per output channel."""
        if alpha not in self._weights:
            matrix = self._matrix / factors.astype(np.float32)[self._channels][:, :, None]
            steps = np.maximum(np.abs(matrix).max(axis=1, keepdims=True) / QMAX, SMALLEST_SCALE)
            self._weights[alpha] = (np.rint(matrix / steps) * steps).astype(np.float32)
        return self._weights[alpha]


def _candidates(trial: _Trial, allowed: Allowed) -> Iterator[_Candidate]:
    found = trial.best(_coarse(trial, allowed))[1]
    yield found
    for factor in _FINE:
        yield _scaled(found, factor)


def _coarse(trial: _Trial, allowed: Allowed) -> Iterator[_Candidate]:
    for alpha in ALPHAS if allowed.factors else ALPHAS[:1]:
        yield from _symmetric(trial, alpha, _COARSE)
        if allowed.zero:
            yield from _shifted(trial, alpha, _COARSE)


def _symmetric(trial: _Trial, alpha: float, shares: Sequence[float]) -> Iterator[_Candidate]:
    factors = trial.factors(alpha, final=True)
    largest = float(np.max(trial.range * factors))
    for share in shares:
        yield _Candidate(alpha, activation_scale(max(largest * share, SMALLEST_SCALE * QMAX), "in a search"), 0.0)


def _shifted(trial: _Trial, alpha: float, shares: Sequence[float]) -> Iterator[_Candidate]:
    """Ranges from the shorter end to a share of the longer one, zero among them."""
    factors = trial.factors(alpha, final=True)
    low, high = min(float(np.min(trial.sample.low * factors)), 0.0), max(float(np.max(trial.sample.high * factors)), 0.0)
    for share in shares:
        short, long = (low, high * share) if high >= -low else (low * share, high)
        scale = activation_scale(max((long - short) / 2, SMALLEST_SCALE * QMAX), "in a search")
        yield _Candidate(alpha, scale, float(round((long + short) / 2 / scale)))


def _scaled(candidate: _Candidate, factor: float) -> _Candidate:
    scale = activation_scale(max(candidate.scale * factor, SMALLEST_SCALE) * QMAX, "in a search")
    return _Candidate(candidate.alpha, scale, float(round(candidate.zero * candidate.scale / scale)))
