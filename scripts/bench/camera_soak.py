#!/usr/bin/env python3
"""Measure memory growth and prediction age of long camera runs: looped videos through a build, like `ufovit camera`.

    python scripts/bench/camera_soak.py BUILD VIDEO [VIDEO ...] [--frames 10000] [--source-fps 60] [--runner auto]

For each video: `--frames` results, with the source at `--source-fps`, which should exceed the rate of the network, newest frame
only, no rate limit. Prints memory (resident set) after warm-up and at the end, and its slope; the age of the predictions and
its bound. For the prediction of frame n, taken from the source at t(n) and by the loop at p,

    age(n) = (done - p) + (p - t(n)) <= pre-processing, inference and post-processing + (t(n + 1) - t(n))

where the interval is the one after the same frame. Exit code 1 if memory grew by more than `--most-growth` MB, or a prediction
exceeded its bound.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edge.camera.camera_request import Limits
from edge.camera.capture import Capture, LatestFrameFeed
from edge.camera.frame import Frame, Result
from edge.camera.latest_frame import LatestFrame
from edge.camera.loop import Loop, Network, Summary
from edge.camera.reconnect import Reconnect
from edge.camera.session import warm_up
from edge.camera.sources.registry import open_source
from edge.runtime.open_build import OpenedBuild, open_runner
from edge.tasks.registry import task_of
from engines.build_folder.folder import BuildFolder

WARM_UP = 500
_SLACK_S = 1e-6  # for floating-point rounding
_REMEMBERED = 4096


class TimedSlot(LatestFrame):
    """A slot that records when the last frames were taken."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self._numbers, self._taken = np.full(_REMEMBERED, -1), np.zeros(_REMEMBERED)

    def on_put(self, frame: Frame) -> None:
        """Called under the lock, for every frame."""
        index = frame.number % _REMEMBERED
        self._taken[index] = frame.taken_s
        self._numbers[index] = frame.number

    def taken_s(self, number: int) -> float | None:
        """When a frame was taken; None if not yet, or too long ago."""
        index = number % _REMEMBERED
        taken = float(self._taken[index])
        return taken if self._numbers[index] == number else None


class Watch:
    """A sink that measures memory and compares the age of every prediction with its bound. Allocates its memory at the start.

    `ages` has a row per prediction whose next frame is known: (interval, wait for the network, age), milliseconds.
    """

    def __init__(self, slot: TimedSlot, frames: int) -> None:
        self._slot = slot
        self._rss, self._ages = np.ones(frames), np.ones((frames, 3))
        self._results = self._answers = self.late = 0
        self._previous: Result | None = None

    @property
    def rss_mb(self) -> NDArray[Any]:
        """Resident memory at every result, MB."""
        return self._rss[: self._results]

    @property
    def ages(self) -> NDArray[Any]:
        """Predictions compared with their bound, (n, 3)."""
        return self._ages[: self._answers]

    def __call__(self, result: Result, /) -> None:
        """Take one result. The frame after that of the previous result has arrived by now."""
        self._rss[self._results] = rss_mb()
        self._results += 1
        if self._previous is not None:
            self._check(self._previous)
        self._previous = result

    def close(self) -> None:
        """Nothing to release."""

    def _check(self, result: Result) -> None:
        latency, frame = result.latency, result.frame
        next_taken_s = self._slot.taken_s(frame.number + 1)
        if next_taken_s is None:
            return
        waited_ms = latency.age_ms - latency.preprocess_ms - latency.inference_ms - latency.postprocess_ms
        interval_ms = 1000.0 * (next_taken_s - frame.taken_s)
        self._ages[self._answers] = interval_ms, waited_ms, latency.age_ms
        self._answers += 1
        self.late += waited_ms > interval_ms + 1000.0 * _SLACK_S


def rss_mb() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(opened: OpenedBuild, video: str, frames: int, source_fps: float) -> tuple[Summary, Watch]:
    """Run one video."""
    source = open_source(video, loop=True)
    source.fps = source_fps
    slot = TimedSlot()
    about = Capture(lambda: source, slot, Reconnect(0.0), time.monotonic)
    network = Network(opened.runner, opened.preprocess, task_of(opened.manifest), opened.batch.min)
    watch, feed = Watch(slot, frames), LatestFrameFeed(about, source)
    try:
        summary = Loop(network, feed, [watch], Limits(frames=frames)).run()
    finally:
        feed.stop()
    if summary.error is not None:
        raise summary.error
    return summary, watch


def report(video: str, summary: Summary, watch: Watch) -> tuple[float, int]:
    """Print the figures of one video; returns (memory growth in MB, number of predictions beyond their bound)."""
    rss = watch.rss_mb[min(WARM_UP, len(watch.rss_mb) // 4) :]
    tenth = max(1, len(rss) // 10)
    growth = float(np.median(rss[-tenth:]) - np.median(rss[:tenth]))
    slope = float(np.polyfit(np.arange(len(rss)), rss, 1)[0] * 1000) if len(rss) > 1 else 0.0
    intervals, waits, ages = watch.ages.T

    def percentiles(values: NDArray[Any]) -> str:
        return " / ".join(f"{v:.1f}" for v in np.percentile(values, (50, 95, 99, 100)))

    rows = [
        ("results, frames of the source, dropped", f"{summary.results}, {summary.given}, {summary.dropped}"),
        ("results per second", f"{summary.fps:.1f}"),
        ("memory after warm-up, at the end, largest", f"{rss[0]:.1f}, {rss[-1]:.1f}, {rss.max():.1f} MB"),
        ("median of each tenth of the run", " ".join(f"{np.median(part):.1f}" for part in np.array_split(rss, 10)) + " MB"),
        ("growth (medians of tenths), slope", f"{growth:+.2f} MB, {slope:+.3f} MB per 1,000 results"),
        ("interval of the source, p50/p95/p99/max", f"{percentiles(intervals)} ms"),
        ("preprocessing to prediction", f"{percentiles(ages - waits)} ms"),
        ("wait for the network", f"{percentiles(waits)} ms"),
        ("age of the prediction", f"{percentiles(ages)} ms"),
        ("predictions compared with their bound, beyond it", f"{len(ages)}, {watch.late}"),
    ]
    print(f"\n{Path(video).name}")
    for name, text in rows:
        print(f"  {name:45s} {text}")
    return growth, watch.late


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure memory growth and prediction age of long camera runs.")
    parser.add_argument("build", type=Path)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--source-fps", type=float, default=60.0)
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--most-growth", type=float, default=5.0)
    arguments = parser.parse_args()
    opened = open_runner(BuildFolder(arguments.build), arguments.runner, threads=arguments.threads)
    warm_up(opened)
    print(f"{arguments.build}: {opened.manifest.model} {opened.manifest.precision}, {opened.ran_on}")
    failures = 0
    with opened.runner:
        for video in arguments.videos:
            growth, late = report(video, *soak(opened, video, arguments.frames, arguments.source_fps))
            failures += growth > arguments.most_growth or late > 0
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
