"""A video file, at its own rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calib.errors import InputError, MissingError
from edge.camera.opencv import load, to_rgb
from edge.camera.sources.capture_device import known_fps
from edge.camera.sources.source import BadFrame, Playing
from edge.images.preprocess import Uint8

USUAL_FPS = 25.0
"""Of a container that names no rate."""
_WHOLE = 0.9
"""Share of the promised frames below which a video ended early: containers estimate their number, by a few frames."""


class VideoFile:
    """A video file. Raises InputError for one that is empty or cannot be decoded, MissingError without a decoder.

    One that ends long before the end that its container promises raises InputError when it does; when looped, it is said once.
    """

    live = False

    def __init__(self, path: Path, playing: Playing) -> None:
        self.name = str(path)
        self._path, self._playing = path, playing
        if path.stat().st_size == 0:
            raise InputError("the video is empty", where=path, found="0 bytes", next_command="copy or record it again")
        self._capture = self._open()
        cv2 = load()
        self.fps: float | None = known_fps(self._capture.get(cv2.CAP_PROP_FPS)) or USUAL_FPS
        promised = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._promised = int(promised) if 0 < promised < 1e9 else 0
        self._given = 0
        self._said = False
        try:
            self._first = self._decode()
        except BadFrame:
            self._first = None
        if self._first is None:
            self.close()
            raise self._undecodable("no frame of it can be decoded")

    def read(self) -> Uint8 | None:
        """See `Source`."""
        pixels, self._first = (self._first, None) if self._first is not None else (self._decode(), None)
        if pixels is None:
            self._check_end()
            if self._playing.loop:
                self.close()
                self._capture, self._given = self._open(), 0
                pixels = self._decode()
        if pixels is not None:
            self._given += 1
        return pixels

    def close(self) -> None:
        """See `Source`."""
        self._capture.release()

    def _decode(self) -> Uint8 | None:
        cv2 = load()
        try:
            there, picture = self._capture.read()
        except cv2.error as error:
            raise self._undecodable(" ".join(str(error).split())) from error
        return to_rgb(picture) if there else None

    def _open(self) -> Any:
        cv2 = load()
        decoders = [b for b in (cv2.CAP_FFMPEG, cv2.CAP_GSTREAMER) if b in cv2.videoio_registry.getStreamBackends()]
        if not decoders:
            mend = "pip install opencv-python-headless"
            raise MissingError("this OpenCV decodes no video files", found=f"OpenCV {cv2.__version__}", next_command=mend)
        for decoder in decoders:  # the whole path: a name such as concat:a is one to FFmpeg
            capture = cv2.VideoCapture(str(self._path.resolve()), decoder)
            if capture.isOpened():
                return capture
            capture.release()
        raise self._undecodable("no video in a container that is known here")

    def _check_end(self) -> None:
        if self._given >= _WHOLE * self._promised:
            return
        error = InputError(
            "the video ended early: truncated or damaged",
            where=self._path,
            found=f"{self._given} frames",
            allowed=f"about {self._promised}, which its container promises",
            next_command="copy or record it again",
        )
        if not self._playing.loop:
            raise error
        if not self._said:
            self._said = True
            self._playing.say(f"{error}\n  it is played as far as it goes")

    def _undecodable(self, why: str) -> InputError:
        return InputError(
            "the video cannot be decoded",
            where=self._path,
            found=why,
            allowed="mp4, avi, mkv, webm and what else FFmpeg knows",
            next_command="copy or record it again",
        )
