"""The answer to one frame: for every output its shape, length and range. numpy alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edge.tasks.frame_answer import FrameAnswer, Line, Panel
from edge.tasks.tensors.image_errors import Array

NO_FIGURE = "\N{EN DASH}"


@dataclass(frozen=True)
class OutputSummary:
    """One output of one image.

    Attributes:
        shape: without the axis of the images.
        length: root of the sum of squares; like `smallest` and `largest` None where a value is not finite.
        spread: root mean square over the largest magnitude, 1 where all values have one magnitude, 0 for a zero output.
    """

    name: str
    shape: tuple[int, ...]
    length: float | None
    smallest: float | None
    largest: float | None
    spread: float | None

    @classmethod
    def of(cls, name: str, output: Array) -> OutputSummary:
        """The summary of an output (1, ...)."""
        values, shape = output[0].ravel().astype(np.float64), tuple(output.shape[1:])
        if not np.isfinite(values).all():
            return cls(name, shape, None, None, None, None)
        length, most = float(np.linalg.norm(values)), float(np.abs(values).max())
        spread = length / math.sqrt(len(values)) / most if most else 0.0
        return cls(name, shape, length, float(values.min()), float(values.max()), min(1.0, spread))

    @property
    def text(self) -> str:
        """Length and range, as far as they are numbers."""
        if self.length is None:
            return "not a number"
        return f"length {self.length:.4g}, {self.smallest:.4g} to {self.largest:.4g}"

    @property
    def short(self) -> str:
        """The length."""
        return NO_FIGURE if self.length is None else f"{self.length:.4g}"


@dataclass(frozen=True)
class TensorAnswer(FrameAnswer):
    """The outputs shown, in the order of the network's."""

    outputs: tuple[OutputSummary, ...]

    def json_fields(self) -> dict[str, Any]:
        """See `FrameAnswer`; numbers have six significant digits."""
        return {"outputs": [{name: _rounded(value) for name, value in asdict(output).items()} for output in self.outputs]}

    def lines(self) -> tuple[Line, ...]:
        """See `FrameAnswer`."""
        return tuple(Line(f"{o.name} {_shape(o.shape)}", o.spread, o.text, o.short) for o in self.outputs)

    def panel(self) -> Panel:
        """See `FrameAnswer`."""
        first = self.outputs[0]
        bars = tuple(Line(f"{o.name} {_shape(o.shape)}", o.spread, o.short) for o in self.outputs)
        return Panel(first.name if first.length is not None else "No number", first.short, bars)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
