"""Functions of one number, as far as bounds need them: where they rise, their smallest value, how steep they are from zero."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edge.stability.bounds.affine_ball import Float64
from edge.stability.bounds.operator import Operator

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Activation:
    """f, which falls as far as `turn` and rises from there.

    Attributes:
        apply: f on float64.
        turn: -inf for a function that never falls, inf for one that never rises.
        least: f(turn), or the smallest value at the edge of the domain; -inf for a function that rises everywhere.
        steepness: |f(x)| <= steepness |x|; None where none is known.
        gate: f(x) = g x with g between these two; None where none are known.
        domain: f is defined from here on; below, nothing is known.
        relative: FP32 computes it to some units in the last place, near zero too; else to as many of 1.
    """

    apply: Callable[[Float64], Float64]
    turn: float = -math.inf
    least: float = -math.inf
    steepness: float | None = None
    gate: tuple[float, float] | None = None
    domain: float = -math.inf
    relative: bool = False


def _sigmoid(x: Float64) -> Float64:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _softplus(x: Float64) -> Float64:
    return np.asarray(np.logaddexp(0, x))


def _gelu_tanh(x: Float64) -> Float64:
    near = np.clip(x, -1e9, 1e9)
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (near + 0.044715 * near**3))))


def _gelu(operator: Operator) -> Activation:
    if operator.attribute("approximate", "none") == "tanh":
        return Activation(_gelu_tanh, -0.7525, -0.17005, 1.0, (0.0, 1.0))
    return Activation(lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))), -0.7518, -0.16998, 1.0, (0.0, 1.0))


def _leaky(operator: Operator) -> Activation:
    slope = float(operator.attribute("alpha", 0.01))
    steepest = max(1.0, abs(slope))
    if slope < 0:
        return Activation(lambda x: np.where(x < 0, slope * x, x), 0.0, 0.0, steepest, (slope, 1.0))
    return Activation(lambda x: np.where(x < 0, slope * x, x), steepness=steepest, gate=(min(slope, 1.0), steepest))


def _elu(operator: Operator) -> Activation:
    alpha = abs(float(operator.attribute("alpha", 1.0)))
    return Activation(lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x), steepness=max(1.0, alpha))


def _celu(operator: Operator) -> Activation:
    alpha = max(float(operator.attribute("alpha", 1.0)), 1e-30)
    return Activation(lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0) / alpha), x), steepness=1.0)


def _hard_sigmoid(operator: Operator) -> Activation:
    slope, offset = float(operator.attribute("alpha", 0.2)), float(operator.attribute("beta", 0.5))
    rises = slope >= 0
    return Activation(lambda x: np.clip(slope * x + offset, 0.0, 1.0), -math.inf if rises else math.inf, 0.0)


def _hard_swish(x: Float64) -> Float64:
    return np.asarray(x * np.clip(x / 6 + 0.5, 0.0, 1.0))


SILU = Activation(lambda x: x * _sigmoid(x), -1.2785, -0.27848, 1.0, (0.0, 1.0))
_MISH = Activation(lambda x: x * np.tanh(_softplus(x)), -1.1925, -0.30885, 1.0, (0.0, 1.0))
_FIXED: Mapping[str, Activation] = {
    "Relu": Activation(lambda x: np.maximum(x, 0.0), steepness=1.0, gate=(0.0, 1.0), relative=True),
    "Sigmoid": Activation(_sigmoid),
    "Tanh": Activation(np.tanh, steepness=1.0, gate=(0.0, 1.0)),
    "Erf": Activation(_erf, steepness=2 / math.sqrt(math.pi)),
    "Softplus": Activation(_softplus),
    "Softsign": Activation(lambda x: x / (1 + np.abs(x)), steepness=1.0, gate=(0.0, 1.0)),
    "Exp": Activation(np.exp, relative=True),
    "Sqrt": Activation(np.sqrt, least=0.0, domain=0.0, relative=True),
    "Log": Activation(np.log, domain=1e-300),
    "Abs": Activation(np.abs, 0.0, 0.0, 1.0, (-1.0, 1.0), relative=True),
    "HardSwish": Activation(_hard_swish, -1.5, -0.375, 1.0, (0.0, 1.0)),
    "Mish": _MISH,
    "Swish": SILU,
    "Floor": Activation(np.floor),
    "Ceil": Activation(np.ceil),
    "Round": Activation(np.rint),
    "Sign": Activation(np.sign),
    "Selu": Activation(lambda x: 1.0507010 * np.where(x < 0, 1.6732632 * np.expm1(np.minimum(x, 0)), x), steepness=1.7581),
}


def _always(activation: Activation) -> Callable[[Operator], Activation]:
    return lambda _operator: activation


ACTIVATIONS: Mapping[str, Callable[[Operator], Activation]] = {
    **{name: _always(activation) for name, activation in _FIXED.items()},
    "Gelu": _gelu,
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "Celu": _celu,
    "HardSigmoid": _hard_sigmoid,
}
"""Operator -> its function, from a node's attributes."""
