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

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from calib.errors import InputError, MissingError
from edge.preprocess import Uint8

ALLOWED = (
    "/dev/videoN, a number, /dev/v4l/by-id/..., csi://N, rtsp://..., http://..., a video file, an image folder, synthetic://"
)
MOST_NARROW = 16
"""A side may be so many times the other; resizing what is narrower takes memory without end."""
STREAMS = ("rtsp", "rtsps", "http", "https")


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


def open_source(text: str, playing: Playing | None = None) -> Source:
    """The source that `text` names, opened.

    Raises InputError for what is no source or cannot be decoded, MissingError for a device that is not there, is in use or may
    not be opened, and for a library that is missing.
    """
    playing = playing or Playing()
    scheme, separator, rest = text.partition("://")
    kind = scheme.lower() if separator else ""
    if kind in STREAMS:
        from edge.camera.stream import Stream

        return Stream(text, playing.timeout_s)
    if kind == "csi":
        from edge.camera.csi import open_csi

        return open_csi(rest)
    if kind == "synthetic":
        from edge.camera.synthetic import Synthetic

        return Synthetic(rest, loop=playing.loop)
    if kind:
        raise InputError("unknown kind of source", where="--source", found=f"{scheme}://", allowed=ALLOWED)
    if re.fullmatch(r"((/dev/video)?\d+|/dev/v4l/[^?]+)(\?.*)?", text):
        from edge.camera.v4l2 import open_v4l2

        return open_v4l2(text)
    return _open_path(text, playing)


def _open_path(text: str, playing: Playing) -> Source:
    """A file or a folder."""
    from edge.camera.image_folder import ImageFolder
    from edge.data import IMAGE_SUFFIXES

    path = Path(text)
    if not text or not path.exists():
        raise InputError("source not found", where="--source", found=text or "nothing", allowed=ALLOWED)
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFolder(path, playing)
    if not path.is_file():
        raise InputError("source is neither a file nor a folder", where=path, allowed=ALLOWED)
    from edge.camera.video_file import VideoFile

    return VideoFile(path, playing)


def checked(pixels: Uint8) -> Uint8:
    """The same picture. Raises BadFrame unless it is uint8 (H, W, 3) with no empty axis, and no line."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or pixels.dtype != "uint8":
        raise BadFrame(f"{pixels.dtype} {pixels.shape} is no picture")
    if max(pixels.shape[:2]) > MOST_NARROW * min(pixels.shape[:2]):
        raise BadFrame(f"{pixels.shape[1]}x{pixels.shape[0]} is too narrow a picture")
    return pixels
