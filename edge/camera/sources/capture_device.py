"""A camera or stream behind `cv2.VideoCapture`: what V4L2, GStreamer and FFmpeg have in common."""

from __future__ import annotations

from typing import Any

from edge.camera.opencv import load, to_rgb
from edge.camera.sources.source import SourceLost
from edge.images.preprocess import Uint8


class CaptureDevice:
    """A live source. `lost` is the sentence, and `mend` the next step, for when no picture comes any more."""

    live = True

    def __init__(self, name: str, capture: Any, fps: float | None, *, lost: str, mend: str) -> None:
        self.name = name
        self.fps = fps
        self._capture = capture
        self._lost, self._mend = lost, mend
        self._closed = False

    def read(self) -> Uint8 | None:
        """See `Source`; a device has no clean end."""
        cv2 = load()
        try:
            there, picture = self._capture.read()
        except cv2.error as error:  # what a driver answers when its device is pulled out
            raise SourceLost(self._lost, where=self.name, found=" ".join(str(error).split())) from error
        if not there:
            raise SourceLost(self._lost, where=self.name, next_command=self._mend)
        return to_rgb(picture)

    def close(self) -> None:
        """See `Source`."""
        if not self._closed:
            self._closed = True
            self._capture.release()


def known_fps(value: float) -> float | None:
    """A frame rate as OpenCV gives it; None for the values that stand for "not known"."""
    return value if 0.1 <= value <= 1000.0 else None
