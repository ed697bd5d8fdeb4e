"""Where pictures come from: one small protocol, one file per kind, `open_source` tells them apart.

    /dev/video0, 0, /dev/v4l/...  V4L2 camera                      `v4l2`
    csi://0                       camera of a Jetson               `csi`
    rtsp://, http://              stream of the network            `stream`
    holiday.mp4                   video file                       `video_file`
    photos/, photo.jpg            image folder, image file         `image_folder`
    synthetic://?size=640x480     a moving picture, drawn          `synthetic`

OpenCV is loaded by the kinds that need it, when they are opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from calib.errors import MissingError
from edge.images.preprocess import Uint8

MOST_NARROW = 16
"""A side may be so many times the other; resizing what is narrower takes memory without end."""


class SourceLost(MissingError):  # noqa: N818  # what happened, not a mistake of anybody
    """A source that gave pictures gives none any more: unplugged, stalled, closed by its other end. Opening it may help."""


class BadFrame(Exception):  # noqa: N818  # no error that ends anything: the frame is counted, and the next one read
    """One picture that nobody can use; the source goes on. Its text says why."""


class Source(Protocol):
    """Gives pictures one by one.

    Attributes:
        name: what a person calls it; without passwords.
        live: the source keeps the time itself, and a picture that is not read is gone: a camera, a stream.
        fps: pictures per second, as far as known: for one that is not live, the rate at which it is to be played.
    """

    name: str
    live: bool
    fps: float | None

    def read(self) -> Uint8 | None:
        """The next picture, uint8 (H, W, 3) red, green, blue, the caller's own; None at a clean end.

        Raises SourceLost when the device is gone or gives nothing, BadFrame for one picture that is none, and InputError where
        what is to be read is damaged.
        """

    def close(self) -> None:
        """Give the device back; a second call does nothing."""


Opener = Callable[[], Source]
"""Opens a source, again and again: after a loss it is called anew."""


@dataclass(frozen=True)
class Playing:
    """How sources are opened.

    Attributes:
        loop: start over at the end, for those that have one.
        timeout_s: how long a stream may take to open, and to give its next picture.
        say: told what a person should know and that ends nothing.
    """

    loop: bool = False
    timeout_s: float = 5.0
    say: Callable[[str], None] = lambda _text: None


def checked(pixels: Uint8) -> Uint8:
    """The same picture. Raises BadFrame unless it is uint8 (H, W, 3) with no empty axis, and no line."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or pixels.dtype != "uint8":
        raise BadFrame(f"{pixels.dtype} {pixels.shape} is no picture")
    if max(pixels.shape[:2]) > MOST_NARROW * min(pixels.shape[:2]):
        raise BadFrame(f"{pixels.shape[1]}x{pixels.shape[0]} is too narrow a picture")
    return pixels
