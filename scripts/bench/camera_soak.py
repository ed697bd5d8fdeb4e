#!/usr/bin/env python3
"""Does a camera run leak, and how old are its answers? Looped videos through a build, as `ufovit camera` runs them.

    python scripts/bench/camera_soak.py BUILD VIDEO [VIDEO ...] [--frames 10000] [--source-fps 60] [--runner auto]

For each video: `--frames` results, the source played at `--source-fps`, which should be faster than the network, newest frame
only, no limit of the rate. Printed: memory (resident set) after warm-up and at its end, and its slope; the age of the answers
against its bound. For the answer to frame n, taken from the source at t(n) and by the loop at p,

    age(n) = (done - p) + (p - t(n)) <= inference and what stands around it + (t(n + 1) - t(n))

and every answer is held against the interval that was behind its own frame. Exit code 1 where memory grew by more than
`--most-growth` MB, or an answer was older than its bound.
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
from edge.camera.capture import CaptureContext
from edge.camera.frame import Frame, Result
from edge.camera.frame_feed import LatestFrameFeed
from edge.camera.frame_source import PlaybackOptions
from edge.camera.latest_frame import LatestFrame
from edge.camera.loop import Loop, Network, Summary
from edge.camera.reconnect import Reconnect
from edge.camera.session import warm_up
from edge.camera.sources.registry import open_source
from edge.runtime.open_build import OpenedBuild, open_runner
from edge.tasks.registry import task_of
from engines.build_folder.folder import BuildFolder

WARM_UP = 500
_SLACK_S = 1e-6  # of adding floats
_REMEMBERED = 4096


class TimedSlot(LatestFrame):
    """A slot that remembers when the last frames were taken."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self._numbers, self._taken = np.full(_REMEMBERED, -1), np.zeros(_REMEMBERED)

    def on_put(self, frame: Frame) -> None:
        """Called under the lock, for every frame."""
        place = frame.number % _REMEMBERED
        self._taken[place] = frame.taken_s
        self._numbers[place] = frame.number

    def taken_s(self, number: int) -> float | None:
        """When a frame was taken; None if it was not yet, or too long ago."""
        place = number % _REMEMBERED
        taken = float(self._taken[place])
        return taken if self._numbers[place] == number else None


class Watch:
    """A sink that measures memory and holds every answer against its bound; its own memory is taken at the start.

    `held` has a row per answer whose next frame is known: its interval, its wait for the network, its age, milliseconds.
    """

    def __init__(self, slot: TimedSlot, frames: int) -> None:
        self._slot = slot
        self._rss, self._held = np.ones(frames), np.ones((frames, 3))
        self._results = self._answers = self.late = 0
        self._before: Result | None = None

    @property
    def rss_mb(self) -> NDArray[Any]:
        """Resident memory at every result, MB."""
        return self._rss[: self._results]

    @property
    def held(self) -> NDArray[Any]:
        """Answers held against their bound, (n, 3)."""
        return self._held[: self._answers]

    def __call__(self, result: Result, /) -> None:
        """One result. The frame behind the one before is there by now."""
        self._rss[self._results] = rss_mb()
        self._results += 1
        if self._before is not None:
            self._check(self._before)
        self._before = result

    def close(self) -> None:
        """Nothing to give back."""

    def _check(self, result: Result) -> None:
        latency, frame = result.latency, result.frame
        behind = self._slot.taken_s(frame.number + 1)
        if behind is None:
            return
        waited_ms = latency.age_ms - latency.preprocess_ms - latency.inference_ms - latency.postprocess_ms
        interval_ms = 1000.0 * (behind - frame.taken_s)
        self._held[self._answers] = interval_ms, waited_ms, latency.age_ms
        self._answers += 1
        self.late += waited_ms > interval_ms + 1000.0 * _SLACK_S


def rss_mb() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(opened: OpenedBuild, video: str, frames: int, source_fps: float) -> tuple[Summary, Watch]:
    """One video."""
    source = open_source(video, PlaybackOptions(loop=True))
    source.fps = source_fps
    slot = TimedSlot()
    about = CaptureContext(lambda: source, slot, Reconnect(0.0), time.monotonic)
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
    """Print one video's figures; (growth of memory in MB, answers older than their bound)."""
    rss = watch.rss_mb[min(WARM_UP, len(watch.rss_mb) // 4) :]
    tenth = max(1, len(rss) // 10)
    growth = float(np.median(rss[-tenth:]) - np.median(rss[:tenth]))
    slope = float(np.polyfit(np.arange(len(rss)), rss, 1)[0] * 1000) if len(rss) > 1 else 0.0
    intervals, waits, ages = watch.held.T

    def percentiles(values: NDArray[Any]) -> str:
        return " / ".join(f"{v:.1f}" for v in np.percentile(values, (50, 95, 99, 100)))

    rows = [
        ("results, frames of the source, dropped", f"{summary.results}, {summary.given}, {summary.dropped}"),
        ("results per second", f"{summary.fps:.1f}"),
        ("memory after warm-up, at the end, largest", f"{rss[0]:.1f}, {rss[-1]:.1f}, {rss.max():.1f} MB"),
        ("median of each tenth of the run", " ".join(f"{np.median(part):.1f}" for part in np.array_split(rss, 10)) + " MB"),
        ("growth (medians of tenths), slope", f"{growth:+.2f} MB, {slope:+.3f} MB per 1,000 results"),
        ("interval of the source, p50/p95/p99/max", f"{percentiles(intervals)} ms"),
        ("preprocessing to answer", f"{percentiles(ages - waits)} ms"),
        ("wait for the network", f"{percentiles(waits)} ms"),
        ("age of the answer", f"{percentiles(ages)} ms"),
        ("answers held against their bound, beyond it", f"{len(ages)}, {watch.late}"),
    ]
    print(f"\n{Path(video).name}")
    for name, text in rows:
        print(f"  {name:45s} {text}")
    return growth, watch.late


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory and age of a long camera run")
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
    bad = 0
    with opened.runner:
        for video in arguments.videos:
            growth, late = report(video, *soak(opened, video, arguments.frames, arguments.source_fps))
            bad += growth > arguments.most_growth or late > 0
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
