"""The answer to one frame: the most probable classes. numpy alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calib.metrics import log_softmax
from edge.images.preprocess import Float32
from edge.tasks.frame_answer import FrameAnswer, Line, Panel

NO_FIGURE = "\N{EN DASH}"
ALL_CLASSES = 12
"""Up to so many classes the page shows all, each at a fixed place; of more classes, the most probable."""


@dataclass(frozen=True)
class ClassAnswer:
    """One class, and the softmax probability that the network gives it."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class TopK(FrameAnswer):
    """The softmax float32 (classes,) of the logits, and the most probable classes, most probable first."""

    labels: tuple[str, ...]
    probabilities: Float32
    top: tuple[ClassAnswer, ...]

    @classmethod
    def of(cls, logits: Float32, labels: tuple[str, ...], most: int) -> TopK:
        """The answer of logits (classes,) with the `most` most probable classes, or all of fewer."""
        probabilities = softmax(logits)
        return cls(labels, probabilities, best(probabilities, labels, most))

    def json_fields(self) -> dict[str, Any]:
        """See `FrameAnswer`."""
        return {"top": [{**asdict(answer), "probability": round(answer.probability, 6)} for answer in self.top]}

    def lines(self) -> tuple[Line, ...]:
        """See `FrameAnswer`."""
        return tuple(Line(a.label, a.probability, f"{a.probability:.1%}", f"{a.probability:.0%}") for a in self.top)

    def panel(self) -> Panel:
        """See `FrameAnswer`."""
        first = self.top[0]
        if len(self.labels) <= ALL_CLASSES:
            pairs = list(zip(self.labels, map(float, self.probabilities), strict=True))
            leader = first.index if math.isfinite(first.probability) else -1
        else:
            pairs, leader = [(answer.label, answer.probability) for answer in self.top], 0
        bars = tuple(Line(name, share if math.isfinite(share) else None, percent(share)) for name, share in pairs)
        title = first.label if math.isfinite(first.probability) else "No number"
        return Panel(title, percent(first.probability), bars, leader)


def softmax(logits: Float32) -> Float32:
    """exp(l - max l) / its sum, float32 (classes,), computed in float64."""
    probabilities: Float32 = np.exp(log_softmax(logits.astype(np.float64))).astype(np.float32)
    return probabilities


def best(probabilities: Float32, labels: tuple[str, ...], count: int) -> tuple[ClassAnswer, ...]:
    """The `count` most probable classes, most probable first; ties in the order of the classes."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return tuple(ClassAnswer(int(i), labels[i], float(probabilities[i])) for i in order)


def percent(share: float) -> str:
    """Format a probability in whole percent, but not as 0 % when it is positive, nor as 100 % when it is less than 1."""
    if not math.isfinite(share):
        return NO_FIGURE
    share = round(share, 5)
    if 0 < share < 0.01:
        return "<1 %"
    return f"{math.floor(share * 1000) / 10:g} %" if 0.99 < share < 1 else f"{math.floor(100 * share + 0.5)} %"
