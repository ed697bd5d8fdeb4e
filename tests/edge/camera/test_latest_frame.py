"""One slot, one thread: the newest frame, counted drops, losses and returns, stalls, ends. Time is the test's own."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from camera_fakes import FakeClock, ListSource, capturing, gone, picture

from calib.errors import InputError, MissingError
from edge.camera.capture import MAX_BAD_FRAMES, EveryFrameFeed, LatestFrameFeed
from edge.camera.frame import BadFrame, SourceLost
from edge.camera.latest_frame import LatestFrame
from edge.camera.reconnect import Pacer, Reconnect


@pytest.fixture
def clock():
    return FakeClock()


def steps(capture, most=10_000):
    count = 0
    while capture.step():
        count += 1
        assert count < most
    return count


def test_the_newest_frame_is_taken_and_the_others_are_counted(clock):
    slot = LatestFrame(clock)
    for brightness in (1, 2, 3):
        clock.advance(0.1)
        slot.put(picture(brightness), 5.0)
    frame = slot.take()
    assert (frame.pixels[0, 0, 0], frame.number, frame.taken_s, frame.capture_ms) == (3, 2, clock.now, 5.0)
    assert (slot.stats.captured, slot.stats.dropped) == (3, 2)
    assert slot.take() is None
    slot.put(picture(4), 5.0)
    assert slot.take().number == 3
    assert slot.stats.dropped == 2


def test_the_last_frame_is_given_before_the_end_and_before_the_error(clock):
    slot = LatestFrame(clock)
    slot.put(picture(), 0.0)
    slot.end(gone())
    slot.end(InputError("a second end"))
    slot.put(picture(), 0.0)
    assert not slot.ended
    assert slot.take().number == 0
    assert not slot.ended  # who looks at this first must not miss the error
    with pytest.raises(SourceLost, match="unplugged"):
        slot.take()
    assert slot.ended
    assert slot.take() is None


def test_a_taker_is_woken_by_a_frame_and_by_the_end():
    slot = LatestFrame(time.monotonic)
    thread = threading.Timer(0.01, lambda: slot.put(picture(), 0.0))
    thread.start()
    assert slot.take(30.0).number == 0
    thread = threading.Timer(0.01, slot.end)
    thread.start()
    assert slot.take(30.0) is None
    thread.join()


def test_capture_reads_times_and_ends_cleanly(clock):
    source = ListSource([picture(7), picture(8)])
    about = capturing(lambda: source, clock)
    capture = replace(about, source=source, sleep=clock.sleep)
    assert capture.step()
    assert about.latest.take().pixels[0, 0, 0] == 7
    assert capture.step()
    assert not capture.step()
    assert about.latest.take().pixels[0, 0, 0] == 8
    assert about.latest.ended


def test_reading_is_timed(clock):
    class Slow(ListSource):
        def read(self):
            clock.advance(0.02)
            return super().read()

    about = capturing(lambda: None, clock)
    replace(about, source=Slow([picture()]), sleep=clock.sleep).step()
    assert about.latest.take().capture_ms == pytest.approx(20.0)


def test_unusable_pictures_are_counted_and_skipped(clock):
    bad = [
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
        picture().astype(np.float32),
        BadFrame("torn"),
        picture(9),
    ]
    about = capturing(lambda: None, clock)
    assert steps(replace(about, source=ListSource(bad), sleep=clock.sleep)) == 5
    assert about.stats.bad == 4
    assert about.latest.take().number == 0


def test_too_many_unusable_pictures_are_a_loss(clock):
    empty = np.zeros((0, 640, 3), np.uint8)
    about = capturing(lambda: None, clock, for_s=0)
    steps(replace(about, source=ListSource([picture()] + [empty] * MAX_BAD_FRAMES), sleep=clock.sleep))
    about.latest.take()
    with pytest.raises(SourceLost, match=f"{MAX_BAD_FRAMES} unusable frames in a row"):
        about.latest.take()
    fewer = capturing(lambda: None, clock, for_s=0)
    steps(replace(fewer, source=ListSource(([empty] * (MAX_BAD_FRAMES - 1) + [picture()]) * 3), sleep=clock.sleep))
    assert fewer.stats.lost == 0
    assert fewer.stats.captured == 3


def test_a_lost_source_is_opened_again_with_growing_waits(clock):
    attempts, said = [], []

    def opener():
        attempts.append(clock.now)
        if len(attempts) < 7:
            raise MissingError("no such camera")
        return ListSource([picture(50)])

    source = ListSource([picture(1), gone()])
    about = capturing(opener, clock, said=said)
    lost_at = clock.now
    steps(replace(about, source=source, sleep=clock.sleep))
    assert clock.slept == [0.5, 1, 2, 4, 8, 10, 10]
    assert [round(t - lost_at, 6) for t in attempts] == [0.5, 1.5, 3.5, 7.5, 15.5, 25.5, 35.5]
    assert source.closed
    assert (about.stats.lost, about.stats.reconnected) == (1, 1)
    assert about.latest.take().pixels[0, 0, 0] == 50
    assert "unplugged" in said[0]
    assert "trying again for 60 s" in said[0]
    assert "frames again after 35.5 s" in said[1]
    assert about.latest.ended


def test_waits_begin_anew_after_a_picture(clock):
    sources = iter([ListSource([picture(), gone()]), ListSource([picture(), None])])
    about = capturing(lambda: next(sources), clock)
    steps(replace(about, source=ListSource([gone()]), sleep=clock.sleep))
    assert clock.slept == [0.5, 0.5]
    assert (about.stats.lost, about.stats.reconnected) == (2, 2)


def test_a_source_that_opens_and_gives_nothing_is_waited_for_ever_longer(clock):
    about = capturing(lambda: ListSource([gone()]), clock, for_s=20)
    steps(replace(about, source=ListSource([gone()]), sleep=clock.sleep))
    assert clock.slept == [0.5, 1, 2, 4, 8, 4.5]
    assert about.stats.lost == 1


def test_a_source_that_stays_away_is_given_up_in_time(clock):
    def opener():
        raise MissingError("no such camera", where="/dev/video0")

    about = capturing(opener, clock, for_s=60)
    start = clock.now
    steps(replace(about, source=ListSource([gone()]), sleep=clock.sleep))
    assert clock.now - start == pytest.approx(60)
    with pytest.raises(SourceLost, match=r"did not come back within 60 s\n  found: no such camera") as raised:
        about.latest.take()
    assert raised.value.exit_code == 4


def test_without_reconnecting_the_loss_itself_is_told(clock):
    about = capturing(lambda: pytest.fail("opened again"), clock, for_s=0)
    steps(replace(about, source=ListSource([gone()]), sleep=clock.sleep))
    with pytest.raises(SourceLost, match="unplugged"):
        about.latest.take()
    assert clock.slept == []


def test_a_fault_of_the_program_reaches_the_taker(clock):
    about = capturing(lambda: None, clock)
    replace(about, source=ListSource([ZeroDivisionError("a fault")]), sleep=clock.sleep).run()
    with pytest.raises(ZeroDivisionError):
        about.latest.take()


def test_damage_is_told_and_not_waited_for(clock):
    source = ListSource([picture(), InputError("the video ended early")])
    about = capturing(lambda: pytest.fail("opened again"), clock)
    replace(about, source=source, sleep=clock.sleep).run()
    about.latest.take()
    with pytest.raises(InputError, match="ended early"):
        about.latest.take()
    assert source.closed == 1


def test_a_file_is_played_at_its_own_rate_and_a_camera_is_not_held_back(clock):
    times = []

    class Told(ListSource):
        def read(self):
            times.append(clock.now)
            return super().read()

    steps(replace(capturing(lambda: None, clock), source=Told([picture()] * 4, live=False, fps=25.0), sleep=clock.sleep))
    assert np.diff(times) == pytest.approx([0.04] * 4)
    clock.slept.clear()
    steps(replace(capturing(lambda: None, clock), source=Told([picture()] * 4, live=True, fps=25.0), sleep=clock.sleep))
    assert clock.slept == []


def test_a_late_player_does_not_catch_up_in_a_burst(clock):
    pacer = Pacer(10.0, clock, clock.sleep)
    passed = []
    for pause in (0, 0, 0.35, 0, 0):
        clock.advance(pause)
        pacer.wait()
        passed.append(round(clock.now - 1000.0, 6))
    assert passed == [0, 0.1, 0.45, 0.55, 0.65]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_reconnecting_takes_a_time(seconds):
    with pytest.raises(InputError, match="--reconnect-for"):
        Reconnect(seconds)


class Hanging(ListSource):
    """A driver that does not come back from its third read until it is let go."""

    def __init__(self):
        super().__init__([picture(1), picture(2)], name="hanging")
        self.free = threading.Event()
        self.hangs = threading.Event()

    def read(self):
        pixels = super().read()
        if pixels is None:
            self.hangs.set()
            self.free.wait(60)
        return pixels


def drain(frames):
    """Every frame until there is none within 10 ms."""
    found = []
    while (frame := frames.next(0.01)) is not None:
        found.append(frame)
    return found


def test_a_read_that_hangs_is_a_loss_and_the_source_is_opened_anew(clock):
    hanging, second, said = Hanging(), ListSource([picture(77)]), []
    about = capturing(lambda: second, clock, for_s=60, said=said)
    frames = LatestFrameFeed(about, hanging, stall_s=5.0)
    assert hanging.hangs.wait(30)
    drain(frames)
    clock.advance(4.9)
    assert frames.next(0.0) is None
    assert about.stats.lost == 0
    clock.advance(0.2)
    deadline = time.monotonic() + 30
    found = []
    while not found and time.monotonic() < deadline:  # the new thread waits half a real second before it opens
        found = drain(frames)
    assert found[0].pixels[0, 0, 0] == 77
    assert "stalled: no frame for 5 s" in said[0]
    assert (about.stats.lost, about.stats.reconnected) == (1, 1)
    hanging.free.set()
    frames.stop()


def test_stopping_is_quick_even_when_a_read_hangs():
    hanging = Hanging()
    frames = LatestFrameFeed(capturing(lambda: None, time.monotonic), hanging)
    assert hanging.hangs.wait(30)
    started = time.monotonic()
    frames.stop()
    assert time.monotonic() - started < 5
    assert frames._thread.daemon
    hanging.free.set()
    frames._thread.join(30)
    assert hanging.closed == 1  # by its own thread, once the driver let go


def test_stopping_ends_the_wait_for_a_lost_source():
    about = capturing(lambda: pytest.fail("opened again"), time.monotonic, for_s=600)
    about.reconnect = Reconnect(600, first_s=300, max_s=300)
    frames = LatestFrameFeed(about, ListSource([gone()]))
    while about.stats.lost_at is None:
        time.sleep(0.001)
    started = time.monotonic()
    frames.stop()
    assert time.monotonic() - started < 5
    assert not frames._thread.is_alive()


def test_opening_that_hangs_is_given_up(clock):
    free = threading.Event()

    def opener():
        free.wait(60)
        raise MissingError("at last")

    about = capturing(opener, clock, for_s=10)
    about.reconnect = Reconnect(10, first_s=0.001)
    frames = LatestFrameFeed(about, ListSource([gone()]))
    while about.stats.lost_at is None:
        time.sleep(0.001)
    clock.advance(41)
    with pytest.raises(SourceLost, match="opening it again hangs"):
        [frames.next(0.01) for _ in range(3)]
    free.set()
    frames.stop()


def test_every_frame_is_given_in_order_and_none_is_dropped(clock):
    items = [picture(1), np.zeros((0, 0, 3), np.uint8), BadFrame("torn"), picture(2), picture(3)]
    source = ListSource(items, live=False, fps=25.0)
    frames = EveryFrameFeed(source, clock)
    found = [frame for _ in range(4) if (frame := frames.next(0.0)) is not None]
    assert [(f.number, f.pixels[0, 0, 0]) for f in found] == [(0, 1), (1, 2), (2, 3)]
    assert (frames.ended, frames.stats.dropped, frames.stats.captured, frames.stats.bad) == (True, 0, 3, 2)
    frames.stop()
    frames.stop()
    assert frames.next(0.0) is None


def test_every_frame_gives_up_on_a_source_of_unusable_pictures(clock):
    frames = EveryFrameFeed(ListSource([BadFrame("torn")] * MAX_BAD_FRAMES, live=False), clock)
    with pytest.raises(SourceLost, match="unusable frames in a row"):
        frames.next(0.0)
    assert frames.ended
