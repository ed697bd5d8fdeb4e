"""The loop: how old an answer is, at most; limits, faults, figures. By a clock of the test's own, and by the real one."""

import itertools
import math
import threading
import time

import numpy as np
import pytest
from camera_fakes import (
    LABELS,
    PREPROCESS,
    ClockedCamera,
    FakeClock,
    ListSource,
    banded,
    capturing,
    gone,
    network,
    picture,
    slow_runner,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.errors import InputError
from edge.camera.camera_request import Limits
from edge.camera.capture import EveryFrameFeed, LatestFrameFeed
from edge.camera.frame import Latency, SourceLost
from edge.camera.latency_stats import LatencyStats, Rate
from edge.camera.loop import Loop
from edge.runtime.runner import FakeRunner
from edge.tasks.classification.top_k import best, softmax


class Told(list):
    """A sink that remembers."""

    def __call__(self, result, /):
        self.append(result)

    def close(self):
        pass


def run_clocked(interval, inference, count=200, times=None, **limits):
    """A camera that fires every `interval` s and a network of `inference` s: (results, times of the frames, summary)."""
    clock = FakeClock()
    times = times if times is not None else [clock.now + interval * (i + 1) for i in range(count)]
    told = Told()
    loop = Loop(
        network(slow_runner(clock, inference)),
        ClockedCamera(clock, times),
        [told],
        Limits(**limits),
        clock=clock,
        sleep=clock.sleep,
    )
    return told, times, loop.run()


def waited(result):
    """Seconds from the source giving the frame away until the loop took it."""
    latency = result.latency
    return (latency.age_ms - latency.preprocess_ms - latency.inference_ms - latency.postprocess_ms) / 1000


@pytest.mark.parametrize(("interval", "inference"), [(0.01, 0.035), (0.01, 0.01), (0.033, 0.2), (0.001, 0.05)])
def test_age_is_bounded_by_one_inference_and_one_interval(interval, inference):
    told, _, summary = run_clocked(interval, inference)
    assert len(told) > 3
    steady = told[:-1]  # after the last frame there is not a newer one
    ages = [result.latency.age_ms / 1000 for result in steady]
    assert max(ages) <= inference + interval + 1e-9
    assert summary.given == 200
    assert summary.given - 1 <= summary.results + summary.dropped <= summary.given
    assert [r.latency.inference_ms for r in told] == pytest.approx([1000 * inference] * len(told))


def test_the_bound_is_reached():
    """The negative control of the bound: a queue instead of a slot, or another frame than the newest, would be far beyond."""
    told, _, _ = run_clocked(0.01, 0.0351)
    assert max(r.latency.age_ms for r in told[:-1]) > 35.1 + 8.0


def test_an_older_frame_than_the_newest_breaks_the_bound():
    class Oldest(ClockedCamera):
        """A queue: what a program that reads and infers in turns gets out of a driver's buffer."""

        def __init__(self, clock, times):
            super().__init__(clock, times)
            self.queue, put = [], self.about.latest.put

            def keep(pixels, capture_ms):
                put(pixels, capture_ms)
                self.queue.append(self.about.latest.take())

            self.about.latest.put = keep

        def next(self, _wait_s):
            while not self.queue:
                self._clock.next_event()
            return self.queue.pop(0)

    clock, told = FakeClock(), Told()
    camera = Oldest(clock, [clock.now + 0.01 * (i + 1) for i in range(200)])
    Loop(network(slow_runner(clock, 0.035)), camera, [told], Limits(frames=50), clock=clock, sleep=clock.sleep).run()
    assert max(r.latency.age_ms for r in told) > 1000


def test_a_source_slower_than_the_network_is_answered_at_once():
    told, times, summary = run_clocked(0.1, 0.02, count=30)
    assert [r.latency.age_ms for r in told] == pytest.approx([20.0] * 30)
    assert [r.frame.taken_s for r in told] == times
    assert summary.dropped == 0


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0.001, 0.3), min_size=3, max_size=60),
    inference=st.floats(0.0005, 0.5),
    max_fps=st.one_of(st.none(), st.floats(0.5, 100)),
)
def test_no_answer_is_older_than_its_own_inference_and_the_gap_after_its_frame(gaps, inference, max_fps):
    times = list(1000.0 + np.cumsum(gaps))
    told, _, _ = run_clocked(0, inference, times=times, max_fps=max_fps)
    following = dict(itertools.pairwise(times))
    for result in told:
        if result.frame.taken_s in following:
            assert waited(result) <= following[result.frame.taken_s] - result.frame.taken_s + 1e-6
    assert [r.frame.taken_s for r in told] == sorted({r.frame.taken_s for r in told})  # none twice, none backwards


def test_a_limit_of_the_rate_makes_no_answer_older():
    told, _, summary = run_clocked(0.01, 0.02, count=300, max_fps=5.0)
    assert max(r.latency.age_ms for r in told[:-1]) <= 20.0 + 10.0 + 1e-6
    starts = [r.frame.taken_s + waited(r) for r in told]
    assert min(np.diff(starts)) >= 0.2 - 0.011
    assert summary.results == pytest.approx(3.0 * 5, abs=2)


class Ticking(ListSource):
    """A camera of 200 pictures a second by the real clock."""

    def read(self):
        time.sleep(0.005)
        return super().read()


def test_the_bound_holds_by_the_real_clock_too():
    """What was waited is less than the time until the next frame, on whatever machine: both are read under one lock."""
    source = Ticking([picture(i % 250) for i in range(120)])
    about = capturing(lambda: None, time.monotonic)
    times = {}
    about.latest.on_put = lambda frame: times.update({frame.number: frame.taken_s})
    fake = FakeRunner((3, 12, 12), 3)

    def slow(images):
        time.sleep(0.02)
        return fake(images)

    told = Told()
    frames = LatestFrameFeed(about, source)
    summary = Loop(network(FakeRunner((3, 12, 12), 3, answer=slow)), frames, [told]).run()
    frames.stop()
    assert summary.ended == "end of the source"
    assert summary.dropped > len(told) > 3
    assert len(times) == 120
    for result in told[:-1]:
        assert waited(result) <= times[result.frame.number + 1] - result.frame.taken_s + 1e-6


def test_answers_are_those_of_the_network():
    told = Told()
    frames = EveryFrameFeed(ListSource([banded(0), banded(2), banded(1)], live=False))
    summary = Loop(network(top_k=2), frames, [told]).run()
    assert [r.answer.top[0].label for r in told] == ["top", "bottom", "middle"]
    expected = FakeRunner((3, 12, 12), 3)(PREPROCESS(banded(2))[None])[0][0]
    exact = np.exp(expected.astype(np.float64)) / np.exp(expected.astype(np.float64)).sum()
    np.testing.assert_array_equal(told[1].outputs[0][0], expected)
    np.testing.assert_allclose(told[1].answer.probabilities, exact, rtol=1e-6)
    assert [a.probability for a in told[1].answer.top] == pytest.approx(sorted(exact, reverse=True)[:2])
    assert [r.number for r in told] == [0, 1, 2]
    assert (summary.results, summary.given, summary.ended, summary.error) == (3, 3, "end of the source", None)


def test_the_smallest_batch_of_an_engine_is_filled():
    runner = FakeRunner((3, 12, 12), 3)
    Loop(network(runner, batch_min=4), EveryFrameFeed(ListSource([banded(1)], live=False)), [told := Told()]).run()
    assert runner.batches == [4]
    assert told[0].answer.top[0].label == "middle"


def test_answers_that_are_no_numbers_are_no_results():
    fake = FakeRunner((3, 12, 12), 3)

    def sometimes(images):
        (logits,) = fake(images)
        return (logits * np.nan if images.mean() > 0.5 else logits,)

    items = [banded(0), picture(255), banded(1)]
    told = Told()
    frames = EveryFrameFeed(ListSource(items, live=False))
    summary = Loop(network(FakeRunner((3, 12, 12), 3, answer=sometimes)), frames, [told]).run()
    assert [r.frame.number for r in told] == [0, 2]
    assert (summary.results, summary.not_finite) == (2, 1)


@pytest.mark.parametrize(
    ("limits", "ended", "results"),
    [({"frames": 7}, "7 frames, as asked for", 7), ({"duration_s": 1.0}, "1 s, as asked for", 10)],
)
def test_limits(limits, ended, results):
    told, _, summary = run_clocked(0.1, 0.001, count=50, **limits)
    assert summary.ended == ended
    assert len(told) == pytest.approx(results, abs=1)


@pytest.mark.parametrize("option", ["duration_s", "frames", "max_fps"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_limits_have_bounds(option, value):
    with pytest.raises(InputError, match="out of range"):
        Limits(**{option: value})


def test_a_duration_ends_also_without_any_frame():
    silent = threading.Event()
    source = ListSource([])
    source.read = lambda: silent.wait(60)
    frames = LatestFrameFeed(capturing(lambda: None, time.monotonic), source)
    summary = Loop(network(), frames, limits=Limits(duration_s=0.05)).run()
    silent.set()
    frames.stop()
    assert (summary.results, summary.ended) == (0, "0.05 s, as asked for")


def test_somebody_else_can_end_it():
    clock, told = FakeClock(), Told()
    camera = ClockedCamera(clock, [clock.now + i for i in range(1, 50)])
    loop = Loop(network(), camera, [told], clock=clock, sleep=clock.sleep)
    assert loop.run(lambda: "enough" if len(told) == 3 else None).ended == "enough"
    assert len(told) == 3


def test_ctrl_c_is_a_clean_end():
    class Interrupts(Told):
        def __call__(self, result, /):
            super().__call__(result)
            if len(self) == 2:
                raise KeyboardInterrupt

    told = Interrupts()
    summary = Loop(network(), EveryFrameFeed(ListSource([banded(0)] * 5, live=False)), [told]).run()
    assert (summary.ended, summary.results, summary.error) == ("interrupted", 2, None)


def test_what_was_seen_before_a_loss_is_in_the_summary():
    about = capturing(lambda: None, time.monotonic, for_s=0)
    told = Told()
    frames = LatestFrameFeed(about, ListSource([picture(), gone()]))
    summary = Loop(network(), frames, [told]).run()
    frames.stop()
    assert isinstance(summary.error, SourceLost)
    assert (summary.results, summary.lost, summary.ended) == (1, 1, "the source failed")


def test_percentiles_are_those_of_numpy_over_the_last_results():
    timings = LatencyStats(window=50)
    assert timings.percentiles() == {}
    values = np.random.default_rng(3).gamma(2.0, 5.0, (130, 5))
    for row in values:
        timings.add(Latency(*row))
    found, kept = timings.percentiles(), values[-50:]
    for i, part in enumerate(("capture_ms", "preprocess_ms", "inference_ms", "postprocess_ms", "age_ms")):
        expected = [*np.percentile(kept[:, i], [50, 95, 99]), kept[:, i].max()]
        assert list(vars(found[part]).values()) == pytest.approx(expected)
    assert timings.count == 130


def test_the_rate_is_that_of_the_last_seconds():
    rate = Rate(seconds=2.0)
    assert rate.add(0.0) == 0.0
    for i in range(1, 101):
        slow = rate.add(i * 0.1)
    assert slow == pytest.approx(10.0)
    for i in range(1, 101):
        fast = rate.add(10.0 + i * 0.025)
    assert fast == pytest.approx(40.0)
    assert rate.add(100.0) < 0.1


def test_softmax_survives_large_logits_and_ties_go_to_the_first():
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4, 0], np.float32)), [0.5, 0.5, 0])
    found = best(np.array([0.2, 0.4, 0.4], np.float32), LABELS, 2)
    assert [(a.index, a.label) for a in found] == [(1, "middle"), (2, "bottom")]
