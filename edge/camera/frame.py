"""A frame and its result, and the protocols of what delivers frames and of what receives results. numpy only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from calib.errors import DataError, MissingError
from edge.images.preprocess import Uint8, check_size
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
    """One frame of a source, uint8 (H, W, 3) RGB, read-only by convention.

    `number` counts the frames before it, dropped ones included; `taken_s` is the clock time at which the source delivered it,
    after `capture_ms` of reading and decoding.
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
        outputs: of the network, (1, ...) each.
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


class SourceLost(MissingError):  # noqa: N818  # names the event
    """The source stopped delivering frames: unplugged, stalled, closed by its peer. Opening it again may help."""


class BadFrame(Exception):  # noqa: N818  # ends nothing: the frame is counted, and the next one is read
    """One frame that cannot be used; the source goes on. Its text says why."""


class Source(Protocol):
    """Delivers frames one by one.

    Attributes:
        name: for messages; without passwords.
        live: a frame that is not read in time is lost: a camera, a stream.
        fps: frames per second, if known; a source that is not live is played at this rate.
    """

    name: str
    live: bool
    fps: float | None

    def read(self) -> Uint8 | None:
        """The next frame, uint8 (H, W, 3) RGB, owned by the caller; None at a clean end.

        Raises SourceLost, BadFrame, and InputError for damaged data.
        """

    def close(self) -> None:
        """Release the device; a second call does nothing."""


Opener = Callable[[], Source]
"""Opens a source; called again after every loss."""


def check_frame(pixels: Uint8) -> Uint8:
    """Return `pixels`. Raises BadFrame unless they are uint8 (H, W, 3), not empty, and of a size that `check_size` allows."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or pixels.dtype != "uint8":
        raise BadFrame(f"not a picture: {pixels.dtype} {pixels.shape}")
    try:
        check_size(*pixels.shape[:2])
    except DataError as error:
        raise BadFrame(str(error)) from error
    return pixels
