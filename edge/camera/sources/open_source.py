"""The registry of frame sources: opens the one that a text names."""

from __future__ import annotations

import re
from pathlib import Path

from calib.errors import InputError
from edge.camera.sources.source import Playing, Source

ALLOWED = (
    "/dev/videoN, a number, /dev/v4l/by-id/..., csi://N, rtsp://..., http://..., a video file, an image folder, synthetic://"
)


STREAMS = ("rtsp", "rtsps", "http", "https")


def open_source(text: str, playing: Playing | None = None) -> Source:
    """The source that `text` names, opened.

    Raises InputError for what is no source or cannot be decoded, MissingError for a device that is not there, is in use or may
    not be opened, and for a library that is missing.
    """
    playing = playing or Playing()
    scheme, separator, rest = text.partition("://")
    kind = scheme.lower() if separator else ""
    if kind in STREAMS:
        from edge.camera.sources.rtsp import Stream

        return Stream(text, playing.timeout_s)
    if kind == "csi":
        from edge.camera.sources.csi import open_csi

        return open_csi(rest)
    if kind == "synthetic":
        from edge.camera.sources.synthetic import Synthetic

        return Synthetic(rest, loop=playing.loop)
    if kind:
        raise InputError("unknown kind of source", where="--source", found=f"{scheme}://", allowed=ALLOWED)
    if re.fullmatch(r"((/dev/video)?\d+|/dev/v4l/[^?]+)(\?.*)?", text):
        from edge.camera.sources.v4l2 import open_v4l2

        return open_v4l2(text)
    return _open_path(text, playing)


def _open_path(text: str, playing: Playing) -> Source:
    """A file or a folder."""
    from edge.camera.sources.image_folder import ImageFolder
    from edge.images.labelled_images import IMAGE_SUFFIXES

    path = Path(text)
    if not text or not path.exists():
        raise InputError("source not found", where="--source", found=text or "nothing", allowed=ALLOWED)
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFolder(path, playing)
    if not path.is_file():
        raise InputError("source is neither a file nor a folder", where=path, allowed=ALLOWED)
    from edge.camera.sources.video_file import VideoFile

    return VideoFile(path, playing)
