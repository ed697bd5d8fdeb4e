"""Speed over the last minutes. Oracle: percentiles of the standard library, counts by hand."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from edge.camera.frame import Latency
from edge.camera.latency_stats import KEPT_S, PARTS, WINDOW_S, LatencyHistory


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_rows_hold_the_percentiles_of_their_window() -> None:
    clock = Clock()
    history = LatencyHistory(clock)
    generator = np.random.default_rng(1)
    given: list[tuple[float, Latency]] = []
    for second in range(1, 12):
        for _ in range(int(generator.integers(20, 40))):
            latency = Latency(*generator.gamma(2.0, 3.0, 5))
            given.append((clock.now, latency))
            history.add(latency)
            clock.now += 0.02
        clock.now = 50.0 + second
        row = history.close_second()
        assert row is not None and row[0] == second  # noqa: PT018  # narrowing
        window = [latency for time_s, latency in given if time_s >= clock.now - WINDOW_S]
        assert row[1] == pytest.approx(len(window) / min(WINDOW_S, second), abs=0.01)
        for place, part in enumerate(PARTS):
            cuts = statistics.quantiles([getattr(latency, part) for latency in window], n=20, method="inclusive")
            assert row[2 + 2 * place] == pytest.approx(cuts[9], abs=1e-3)
            assert row[3 + 2 * place] == pytest.approx(cuts[18], abs=1e-3)
    assert history.close_second() is None, "one row a second"


def test_a_pause_of_the_camera_leaves_a_gap_and_a_rate_of_zero() -> None:
    clock = Clock()
    history = LatencyHistory(clock)
    history.add(Latency(1, 1, 1, 1, 1))
    for _ in range(10):
        clock.now += 1
        row = history.close_second()
    assert row == [10, 0.0, *[None] * 10]


def test_rows_and_samples_are_bounded() -> None:
    clock = Clock()
    history = LatencyHistory(clock)
    for _ in range(KEPT_S + 100):
        for _ in range(30):
            history.add(Latency(1, 1, 1, 1, 1))
        clock.now += 1
        history.close_second()
    for _ in range(100_000):
        history.add(Latency(1, 1, 1, 1, 1))
    assert len(history.rows) == KEPT_S
    assert (1 + len(PARTS)) * len(history._stats._kept) + len(history._counts) < 10_000
