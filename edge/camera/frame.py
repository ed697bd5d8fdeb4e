"""A picture with the time at which it was taken, and what the network made of it. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge.images.preprocess import Float32, Uint8

Clock = Callable[[], float]
"""Seconds from any origin, never backwards: `time.monotonic`, or a test's own."""


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        pixels: uint8 (H, W, 3), red, green, blue; nobody writes to it.
        number: how many frames the source gave before this one, those that nobody looked at included.
        taken_s: clock time at which the source gave it away.
        capture_ms: how long the source took to read and decode it.
    """

    pixels: Uint8
    number: int
    taken_s: float
    capture_ms: float


@dataclass(frozen=True)
class Answer:
    """One class, and the softmax probability that the network gives it."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Latency:
    """Where the time of one frame went, milliseconds; `age_ms` is from `Frame.taken_s` until the result was there."""

    capture_ms: float
    preprocess_ms: float
    inference_ms: float
    postprocess_ms: float
    age_ms: float


@dataclass(frozen=True)
class Result:
    """What the network made of one frame.

    Attributes:
        frame: the frame.
        logits: float32 (classes,).
        probabilities: float32 (classes,), their softmax.
        top: the most probable classes, most probable first.
        latency: of this frame.
        number: results before this one.
        dropped: frames so far that a newer one replaced before the network was free.
        fps: results per second, over the last seconds.
    """

    frame: Frame
    logits: Float32
    probabilities: Float32
    top: tuple[Answer, ...]
    latency: Latency
    number: int
    dropped: int
    fps: float


class Sink(Protocol):
    """Somebody who is told every result: terminal, page, recorder, audit."""

    def __call__(self, result: Result, /) -> None:
        """Take note of a result. Called on the thread that infers: it returns at once, whatever becomes of the result."""

    def close(self) -> None:
        """Finish and give everything back; a second call does nothing."""
