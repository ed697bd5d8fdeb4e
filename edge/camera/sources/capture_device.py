"""A camera or stream read through `cv2.VideoCapture`: the common part of V4L2, GStreamer and FFmpeg."""

from __future__ import annotations

from typing import Any

from edge.camera.frame_source import SourceLost
from edge.camera.opencv import load_cv2, to_rgb
from edge.images.preprocess import Uint8


class CaptureDevice:
    """A live source. `lost` is the message, and `next_command` the next step, for when frames stop."""

    live = True

    def __init__(self, name: str, capture: Any, fps: float | None, *, lost: str, next_command: str) -> None:
        self.name = name
        self.fps = fps
        self._capture = capture
        self._lost, self._next_command = lost, next_command
        self._closed = False

    def read(self) -> Uint8 | None:
        """See `Source`; a device has no clean end."""
        try:
            success, picture = self._capture.read()
        except load_cv2().error as error:  # raised by a driver whose device is unplugged
            raise SourceLost(self._lost, where=self.name, found=" ".join(str(error).split())) from error
        if not success:
            raise SourceLost(self._lost, where=self.name, next_command=self._next_command)
        return to_rgb(picture)

    def close(self) -> None:
        """See `Source`."""
        if not self._closed:
            self._closed = True
            self._capture.release()


def known_fps(value: float) -> float | None:
    """A frame rate as reported by OpenCV; None for the values that mean "unknown"."""
    return value if 0.1 <= value <= 1000.0 else None
