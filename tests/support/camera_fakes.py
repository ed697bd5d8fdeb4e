"""A clock that tests move, sources made of lists, a camera that fires by the clock, and a network that takes its time."""

import heapq
import itertools
from dataclasses import replace

import numpy as np
import pytest

from edge.camera import opencv
from edge.camera.capture import Capture
from edge.camera.frame import Frame, Latency, Result, SourceLost
from edge.camera.latest_frame import LatestFrame
from edge.camera.loop import Network
from edge.camera.reconnect import Reconnect
from edge.images.preprocess import Preprocess
from edge.runtime.runner import FakeRunner
from edge.tasks.classification import Classification

LABELS = ("top", "middle", "bottom")
TASK = Classification(LABELS)
PREPROCESS = Preprocess(12, 12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def loaded_cv2():
    """cv2 by the door the program uses, or a skip: FFmpeg keeps, for the whole process, the log level of its first use."""
    pytest.importorskip("cv2")
    return opencv.load_cv2()


class FakeClock:
    """Seconds that pass when somebody sleeps; on the way, what was planned for a time happens at that time."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []
        self._planned = []
        self._order = itertools.count()

    def __call__(self):
        return self.now

    def at(self, when, action):
        heapq.heappush(self._planned, (when, next(self._order), action))

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.advance(seconds)

    def advance(self, seconds):
        until = self.now + seconds
        while self._planned and self._planned[0][0] <= until:
            self.now, _, action = heapq.heappop(self._planned)
            action()
        self.now = until

    def next_event(self):
        self.advance(self._planned[0][0] - self.now)


def picture(brightness=100, size=(24, 24)):
    return np.full((*size, 3), brightness, np.uint8)


def banded(row):
    """A picture whose `row`-th third is bright: class `row` for the fake network."""
    pixels = np.zeros((24, 24, 3), np.uint8)
    pixels[8 * row : 8 * row + 8] = 255
    return pixels


class ListSource:
    """Gives what it was given: pictures, exceptions to raise, None for the end. After the list: the end."""

    def __init__(self, items, *, live=True, fps=None, name="list"):
        self.name, self.live, self.fps = name, live, fps
        self._items = iter(items)
        self.closed = 0

    def read(self):
        item = next(self._items, None)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self):
        self.closed += 1


def gone():
    return SourceLost("unplugged")


def network(runner=None, **changes):
    return Network(runner or FakeRunner((3, 12, 12), len(LABELS)), PREPROCESS, TASK, **changes)


def slow_runner(clock, seconds):
    """A network that takes so many seconds of the clock."""
    fake = FakeRunner((3, 12, 12), len(LABELS))

    def run(images):
        clock.advance(seconds)
        return fake(images)

    return FakeRunner((3, 12, 12), len(LABELS), answer=run)


def capturing(opener, clock, for_s=60.0, said=None):
    return Capture(opener, LatestFrame(clock), Reconnect(for_s), clock, [].append if said is None else said.append)


class ClockedCamera:
    """A feed for the loop whose camera fires at planned times of a fake clock: no thread, the real slot and capture."""

    def __init__(self, clock, times):
        self._clock = clock
        self.about = capturing(lambda: None, clock)
        source = ListSource([picture(i % 250) for i in range(len(times))])
        self._capture = replace(self.about, source=source, sleep=clock.sleep)
        self.stats = self.about.stats
        for when in times:
            clock.at(when, self._capture.step)
        clock.at(times[-1] + 1.0, self.about.latest.end)

    ended = property(lambda self: self.about.latest.ended)

    def next(self, _wait_s):
        while (frame := self.about.latest.take()) is None and not self.ended:
            self._clock.next_event()
        return frame

    def stop(self):
        pass


def read_all(source, most=10_000):
    """Pictures of a source until its end."""
    found = []
    while len(found) < most and (pixels := source.read()) is not None:
        found.append(pixels)
    return found


def result(pixels, number=0, taken_s=1000.0, *, logits=(0.0, 3.0, 1.0)):
    """A result of a frame, with answers from logits."""
    outputs = (np.array([logits], np.float32),)
    frame = Frame(pixels, number, taken_s, 1.0)
    return Result(frame, outputs, TASK.answer(outputs, 2), Latency(1.0, 2.0, 3.0, 0.5, 6.5), number, 4, 25.0)
