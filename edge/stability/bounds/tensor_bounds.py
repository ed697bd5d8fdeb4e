"""The bounds of a network's tensors, and of what a site needs to know of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edge.stability.bounds.affine_ball import SLACK
from edge.stability.bounds.value import Value, length_of
from edge.stability.site import Probe, Quantity

_FP32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Bounds:
    """What holds for every input.

    Attributes:
        values: float tensor -> facts; no constants.
        partial_sums: the two tensors of a product -> bound on the sum of |a b|.
    """

    values: Mapping[str, Value]
    partial_sums: Mapping[tuple[str, str], float]

    def __iter__(self) -> Iterator[str]:
        """The float tensors of the graph, in its order, bounded or not."""
        return iter(self.values)

    def largest(self, tensor: str) -> float | None:
        """Bound on |x|; None where nothing is proven."""
        return _finite(self.values[tensor].largest) if tensor in self.values else None

    def of(self, probe: Probe) -> float | None:
        """Bound on the quantity of a probe; None where nothing is proven."""
        if len(probe.tensors) == 2:
            found = self.partial_sums.get((probe.tensors[0], probe.tensors[1]))
            return None if found is None else _finite(found)
        value = self.values.get(probe.tensors[0])
        if value is None or value.shape is None:
            return None
        axes = value.axes(probe.axes)
        count = float(np.prod([value.shape[axis] for axis in axes]))
        with np.errstate(all="ignore"):
            return _finite(_QUANTITIES[probe.quantity](value, axes) * (1 + SLACK * (count + 4)))


def _finite(bound: float) -> float | None:
    """The bound; None where FP32 may overflow, and rounding is not what the bounds were widened by."""
    return float(bound) if bound <= _FP32_MAX else None


def _sum_of_squares(value: Value, axes: tuple[int, ...]) -> float:
    return float(length_of(value, axes).max()) ** 2


def _deviation(value: Value, axes: tuple[int, ...]) -> float:
    """|x - mean|: no more than the spread of the vector, and than its length."""
    spread = value.high.max(axis=axes, keepdims=True) - value.low.min(axis=axes, keepdims=True)
    return float(np.fmin(spread, length_of(value, axes)).max())


def _sum(value: Value, axes: tuple[int, ...]) -> float:
    return float(length_of(value, axes, 1).max())


_QUANTITIES: Mapping[Quantity, Callable[[Value, tuple[int, ...]], float]] = {
    "value": lambda value, _axes: value.largest,
    "square": lambda value, _axes: value.largest**2,
    "sum": _sum,
    "partial sum": _sum,
    "sum of squares": _sum_of_squares,
    "deviation": _deviation,
    "squared deviation": lambda value, axes: _deviation(value, axes) ** 2,
    "sum of squared deviations": _sum_of_squares,  # the mean is the point from which it is smallest
}
