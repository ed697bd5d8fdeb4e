"""The inference loop: frame, preprocessing, network, the task's answer, sinks.

The frame taken is the newest (`latest_frame`), so not older than the frame interval i of the source, and nothing waits between
taking and answering, which lasts d: `--max-fps` waits before, and sinks return at once. Hence age <= i + d. `preprocess_ms`
starts when the frame is taken, so that the parts of d and the wait for the network add up to the age.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edge.camera.camera_request import NO_LIMITS, Limits
from edge.camera.capture import FrameFeed
from edge.camera.frame import Clock, Frame, Latency, Result, Sink
from edge.camera.latency_stats import LatencyStats, Percentiles, Rate
from edge.camera.reconnect import Pacer, Sleep
from edge.images.preprocess import Preprocess
from edge.runtime.runner import Runner
from edge.tasks.task import Task

_POLL_S = 0.25
"""Longest wait for a frame before limits and stop requests are checked again."""


@dataclass(frozen=True)
class Network:
    """The network, (B, ...) -> (B, ...) per output, with what turns a frame into its input and its output into an answer.

    Copies of a frame fill the smallest batch of the engine, `batch_min`; a result lists at most `top_k` parts of an answer.
    """

    runner: Runner
    preprocess: Preprocess
    task: Task
    batch_min: int = 1
    top_k: int = 3


@dataclass(frozen=True)
class Summary:
    """The totals of a run; see `FeedStats`.

    Attributes:
        given: frames of the source.
        not_finite: frames for which the network output NaN or infinity; they are not counted as results.
        fps: results per second, over the whole run.
        latency: field of `Latency` -> percentiles of the last results.
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
    """One run. `sinks` receive every result, in the thread that calls `run`; the caller closes them and stops the feed."""

    def __init__(
        self,
        network: Network,
        feed: FrameFeed,
        sinks: Iterable[Sink] = (),
        limits: Limits = NO_LIMITS,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._network, self._feed, self._sinks = network, feed, tuple(sinks)
        self._limits, self._clock, self._sleep = limits, clock, sleep
        self._pacer = Pacer(limits.max_fps, clock, sleep)
        self._latency_stats, self._rate = LatencyStats(), Rate()
        self._results = self._not_finite = 0

    def run(self, stop: Callable[[], str | None] = lambda: None) -> Summary:
        """Run until the source ends, a limit is reached, `stop` returns a reason, or Ctrl-C: all of these are clean ends.

        A failure of the source is returned in the summary, so that the totals until then are shown too.
        """
        started = self._clock()
        error: Exception | None = None
        try:
            while (ended := self._end_reason(started, stop)) is None:
                try:
                    frame = self._next_frame(started)
                except Exception as raised:  # noqa: BLE001  # returned in the summary; the command raises it
                    ended, error = "the source failed", raised
                    break
                if frame is not None:
                    self._answer(frame)
        except KeyboardInterrupt:
            ended = "interrupted"
        seconds, stats = self._clock() - started, self._feed.stats
        return Summary(
            ended=ended,
            seconds=seconds,
            given=stats.captured,
            results=self._results,
            dropped=stats.dropped,
            bad=stats.bad,
            not_finite=self._not_finite,
            lost=stats.lost,
            reconnected=stats.reconnected,
            fps=self._results / seconds if seconds > 0 else 0.0,
            latency=self._latency_stats.percentiles(),
            error=error,
        )

    def _end_reason(self, started: float, stop: Callable[[], str | None]) -> str | None:
        limits = self._limits
        if limits.frames is not None and self._results + self._not_finite >= limits.frames:
            return f"{limits.frames} frames, as asked for"
        if limits.duration_s is not None and self._clock() - started >= limits.duration_s:
            return f"{limits.duration_s:g} s, as asked for"
        return stop() or ("end of the source" if self._feed.ended else None)

    def _next_frame(self, started: float) -> Frame | None:
        """The next frame. The wait for `max_fps` comes first, so that it does not age the frame."""
        wait_s = _POLL_S
        if self._limits.duration_s is not None:
            wait_s = min(wait_s, max(0.0, started + self._limits.duration_s - self._clock()))
        if (early_s := self._pacer.remaining_s()) > 0:
            self._sleep(min(early_s, wait_s))
            if early_s > wait_s:
                return None
        frame = self._feed.next(wait_s)
        if frame is not None:
            self._pacer.advance()
        return frame

    def _answer(self, frame: Frame) -> None:
        network = self._network
        tensor = network.preprocess(frame.pixels)
        prepared = self._clock()
        outputs = tuple(output[:1] for output in network.runner(np.repeat(tensor[None], network.batch_min, axis=0)))
        inferred = self._clock()
        if not all(np.isfinite(output).all() for output in outputs):
            self._not_finite += 1
            return
        answer = network.task.answer(outputs, network.top_k)
        done = self._clock()
        latency = Latency(
            capture_ms=frame.capture_ms,
            preprocess_ms=1000.0 * (prepared - self._feed.stats.dequeued_s),
            inference_ms=1000.0 * (inferred - prepared),
            postprocess_ms=1000.0 * (done - inferred),
            age_ms=1000.0 * (done - frame.taken_s),
        )
        self._latency_stats.add(latency)
        fps = self._rate.add(done)
        result = Result(frame, outputs, answer, latency, self._results, self._feed.stats.dropped, fps)
        self._results += 1
        for sink in self._sinks:
            sink(result)
