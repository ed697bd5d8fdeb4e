"""The registry of frame sources, one file per kind: `open_source` tells them apart."""

import re
from pathlib import Path

from calib.errors import DataError, UsageError
from edge.camera.frame import Notify, Source, ignore
from edge.camera.sources.csi import open_csi
from edge.camera.sources.image_folder import ImageFolder
from edge.camera.sources.rtsp import NetworkStream, redact_address
from edge.camera.sources.synthetic import Synthetic
from edge.camera.sources.v4l2 import open_v4l2
from edge.camera.sources.video_file import VideoFile
from edge.images.picture_file import IMAGE_SUFFIXES

STREAMS = ("rtsp", "rtsps", "http", "https")
_ALLOWED = (
    "/dev/videoN, a number, /dev/v4l/by-id/..., csi://N, rtsp://..., http://..., a video file, an image folder, synthetic://"
)


def open_source(text: str, *, loop: bool = False, timeout_s: float = 5.0, notify: Notify = ignore) -> Source:
    """Open the source that `text` names.

    `loop`: start over at the end, if there is one. `timeout_s`: how long a stream may take to open, and to deliver its next
    frame. Raises InputError for anything that is not a source or cannot be decoded, MissingError for a device that is absent,
    in use or forbidden, and for a missing library.
    """
    scheme, separator, rest = text.partition("://")
    kind = scheme.lower() if separator else ""
    if kind in STREAMS:
        return NetworkStream(text, timeout_s)
    if kind == "csi":
        return open_csi(rest)
    if kind == "synthetic":
        return Synthetic(rest, loop=loop)
    if kind:
        raise UsageError("unknown kind of source", where="--source", found=f"{scheme}://", allowed=_ALLOWED)
    if re.fullmatch(r"((/dev/video)?\d+|/dev/v4l/[^?]+)(\?.*)?", text):
        return open_v4l2(text)
    return _open_path(text, loop=loop, notify=notify)


def _open_path(text: str, *, loop: bool, notify: Notify) -> Source:
    """A file or a folder."""
    path = Path(text)
    if not text or not path.exists():
        raise UsageError("source not found", where="--source", found=text or "nothing", allowed=_ALLOWED)
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFolder(path, loop=loop, notify=notify)
    if not path.is_file():
        raise DataError("source is neither a file nor a folder", where=path, allowed=_ALLOWED)
    return VideoFile(path, loop=loop, notify=notify)


def redact_source(text: str) -> str:
    """The source for messages and logs: the address of a stream without its passwords."""
    return redact_address(text) if text.partition("://")[0].lower() in STREAMS else text
