"""The loop: a frame, preprocessing, network, softmax, whoever looks.

How old an answer is. Let d be the time from taking a frame until its answer is there, and i the interval of the source. The
frame that is taken is the newest of all (`slot`), so that it is no older than i, and nothing is waited for between taking and
answering: neither for `--max-fps`, which waits before it takes, nor for those who look, who return at once. Hence age <= i + d.
`preprocess_ms` begins when the frame is taken, so that the parts of d and the wait for the network make up the age.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from calib.errors import InputError
from calib.metrics import log_softmax
from edge.camera.frame import Answer, Clock, Frame, Latency, Result, Sink
from edge.camera.frame_feed import Frames
from edge.camera.latency_stats import Percentiles, Rate, Timings
from edge.camera.reconnect import Pacer, Sleep
from edge.images.preprocess import Float32, Preprocess
from edge.runtime.runner import Runner

_TURN_S = 0.25
"""Longest wait for a frame before limits and stops are looked at again."""


@dataclass(frozen=True)
class Network:
    """What makes answers of frames.

    Attributes:
        runner: (B, 3, S, S) -> (B, classes).
        preprocess: of the manifest.
        labels: one per class.
        batch_min: smallest batch of the engine; copies of the frame fill it.
        top_k: answers that a result names; no more than there are classes.
    """

    runner: Runner
    preprocess: Preprocess
    labels: tuple[str, ...]
    batch_min: int = 1
    top_k: int = 3


@dataclass(frozen=True)
class Limits:
    """When the loop ends, and how fast it goes at most; None: no limit. Raises InputError for what is not above 0."""

    duration_s: float | None = None
    frames: int | None = None
    max_fps: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("--duration", self.duration_s), ("--frames", self.frames), ("--max-fps", self.max_fps)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError("a limit has to be above 0", where=option, found=value, allowed="above 0")


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        ended: why, in a phrase.
        seconds: of the clock.
        given, results, dropped: frames of the source, answers, frames that a newer one replaced.
        bad: pictures that were none.
        not_finite: frames that the network answered with NaN or infinity; they are no results.
        lost, reconnected: how often the source went away and came back.
        fps: results per second, over the whole run.
        latency: field of `Latency` -> percentiles of the last results.
        error: what ended the source, where it did not end cleanly.
    """

    ended: str
    seconds: float
    given: int
    results: int
    dropped: int
    bad: int
    not_finite: int
    lost: int
    reconnected: int
    fps: float
    latency: dict[str, Percentiles]
    error: Exception | None = None


class Loop:
    """One run.

    Args:
        network: what answers.
        frames: what gives frames; the caller stops it.
        sinks: told every result, on the thread that calls `run`; the caller closes them.
        limits: when it ends.
        clock, sleep: seconds, and waiting; a test has its own.
    """

    def __init__(
        self,
        network: Network,
        frames: Frames,
        sinks: Iterable[Sink] = (),
        limits: Limits | None = None,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._network, self._frames, self._sinks = network, frames, tuple(sinks)
        self._limits = limits or Limits()
        self._clock, self._sleep = clock, sleep
        self._pacer = Pacer(self._limits.max_fps, clock, sleep) if self._limits.max_fps is not None else None
        self._timings, self._rate = Timings(), Rate()
        self._results = self._not_finite = 0

    def run(self, stop: Callable[[], str | None] = lambda: None) -> Summary:
        """Until the source ends, a limit is reached, `stop` gives a reason, or Ctrl-C: all of these are clean ends.

        What ends the source otherwise is in the summary, so that what was seen until then is shown too. Raises UfovitError for
        what the runner refuses.
        """
        started = self._clock()
        error: Exception | None = None
        try:
            while (ended := self._why_end(started, stop)) is None:
                try:
                    frame = self._next_frame(started)
                except Exception as raised:  # noqa: BLE001  # told in the summary, raised by whoever prints it
                    ended, error = "the source failed", raised
                    break
                if frame is not None:
                    self._answer(frame)
        except KeyboardInterrupt:
            ended = "interrupted"
        return self._summary(ended, self._clock() - started, error)

    def _why_end(self, started: float, stop: Callable[[], str | None]) -> str | None:
        limits = self._limits
        if limits.frames is not None and self._results + self._not_finite >= limits.frames:
            return f"{limits.frames} frames, as asked for"
        if limits.duration_s is not None and self._clock() - started >= limits.duration_s:
            return f"{limits.duration_s:g} s, as asked for"
        return stop() or ("end of the source" if self._frames.ended else None)

    def _next_frame(self, started: float) -> Frame | None:
        """The next frame; the wait for `max_fps` comes first, so that the frame is not older for it."""
        left = _TURN_S
        if self._limits.duration_s is not None:
            left = min(left, max(0.0, started + self._limits.duration_s - self._clock()))
        if self._pacer is not None and (early := self._pacer.left_s()) > 0:
            self._sleep(min(early, left))
            if early > left:
                return None
        frame = self._frames.next(left)
        if frame is not None and self._pacer is not None:
            self._pacer.go()
        return frame

    def _answer(self, frame: Frame) -> None:
        network = self._network
        tensor = network.preprocess(frame.pixels)
        prepared = self._clock()
        logits = network.runner(np.repeat(tensor[None], network.batch_min, axis=0))[0]
        inferred = self._clock()
        if not np.isfinite(logits).all():
            self._not_finite += 1
            return
        probabilities = softmax(logits)
        top = best(probabilities, network.labels, network.top_k)
        done = self._clock()
        latency = Latency(
            capture_ms=frame.capture_ms,
            preprocess_ms=1000.0 * (prepared - self._frames.took_s),
            inference_ms=1000.0 * (inferred - prepared),
            postprocess_ms=1000.0 * (done - inferred),
            age_ms=1000.0 * (done - frame.taken_s),
        )
        self._timings.add(latency)
        fps = self._rate.add(done)
        result = Result(frame, logits, probabilities, top, latency, self._results, self._frames.dropped, fps)
        self._results += 1
        for sink in self._sinks:
            sink(result)

    def _summary(self, ended: str, seconds: float, error: Exception | None) -> Summary:
        counts = self._frames.counts
        return Summary(
            ended=ended,
            seconds=seconds,
            given=self._frames.given,
            results=self._results,
            dropped=self._frames.dropped,
            bad=counts.bad,
            not_finite=self._not_finite,
            lost=counts.lost,
            reconnected=counts.reconnected,
            fps=self._results / seconds if seconds > 0 else 0.0,
            latency=self._timings.percentiles(),
            error=error,
        )


def softmax(logits: Float32) -> Float32:
    """exp(l - max l) / its sum, float32 (classes,), computed in float64."""
    probabilities: Float32 = np.exp(log_softmax(logits.astype(np.float64))).astype(np.float32)
    return probabilities


def best(probabilities: Float32, labels: tuple[str, ...], count: int) -> tuple[Answer, ...]:
    """The `count` most probable classes, most probable first; of equals the first one first."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return tuple(Answer(int(i), labels[i], float(probabilities[i])) for i in order)
