"""A frame with its capture time, and the result that the network gives for it. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge.images.preprocess import Uint8
from edge.tasks.frame_answer import FrameAnswer
from edge.tasks.task import Outputs

Clock = Callable[[], float]
"""Monotonic seconds from any origin: `time.monotonic`, or a fake clock in tests."""

Notify = Callable[[str], None]
"""Shows a message to a person."""


def ignore(_text: str) -> None:
    """The `Notify` that shows nothing."""


@dataclass(frozen=True)
class Frame:
    """One frame of a source.

    Attributes:
        pixels: uint8 (H, W, 3) RGB; read-only by convention.
        number: how many frames the source delivered before this one, dropped ones included.
        taken_s: clock time at which the source delivered it.
        capture_ms: how long the source took to read and decode it.
    """

    pixels: Uint8
    number: int
    taken_s: float
    capture_ms: float


@dataclass(frozen=True)
class Latency:
    """Time spent on one frame, milliseconds; `age_ms` is from `Frame.taken_s` until its result is complete."""

    capture_ms: float
    preprocess_ms: float
    inference_ms: float
    postprocess_ms: float
    age_ms: float


@dataclass(frozen=True)
class Result:
    """The network's result for one frame.

    Attributes:
        frame: the frame.
        outputs: of the network, (1, ...) each.
        answer: what they mean.
        latency: of this frame.
        number: how many results came before this one.
        dropped: frames so far that a newer one replaced before the network was free.
        fps: results per second over the last seconds.
    """

    frame: Frame
    outputs: Outputs
    answer: FrameAnswer
    latency: Latency
    number: int
    dropped: int
    fps: float


class Sink(Protocol):
    """Receives every result: terminal, page, recorder, audit."""

    def __call__(self, result: Result, /) -> None:
        """Accept a result. Called on the inference thread, so it must return at once."""

    def close(self) -> None:
        """Finish and release everything; a second call does nothing."""
