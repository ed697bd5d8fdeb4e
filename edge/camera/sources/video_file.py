"""A video file, at its own rate."""

import contextlib
from pathlib import Path
from typing import Any

from calib.errors import DataError, MissingError
from edge.camera.frame import BadFrame, Notify
from edge.camera.opencv import known_fps, load_cv2, to_rgb
from edge.images.preprocess import Uint8

DEFAULT_FPS = 25.0
"""For a container that states no rate."""
_COMPLETE = 0.9
"""Share of the stated frames below which a video ended early: containers estimate the number, a few frames off."""


class VideoFile:
    """A video file. An end long before the one stated by its container is a DataError; when looped, it is reported once."""

    live = False

    def __init__(self, path: Path, *, loop: bool, notify: Notify) -> None:
        self.name = str(path)
        self._path, self._loop, self._notify = path, loop, notify
        if path.stat().st_size == 0:
            raise DataError("the video is empty", where=path, found="0 bytes", next_command="copy or record it again")
        self._capture = self._open()
        cv2 = load_cv2()
        self.fps: float | None = known_fps(self._capture.get(cv2.CAP_PROP_FPS)) or DEFAULT_FPS
        stated = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._stated_frames = int(stated) if 0 < stated < 1e9 else 0
        self._frames = 0
        self._first: Uint8 | None = None
        with contextlib.suppress(BadFrame):
            self._first = self._decode()
        if self._first is None:
            self.close()
            raise self._undecodable_error("none of its frames can be decoded")

    def read(self) -> Uint8 | None:
        """See `Source`."""
        pixels, self._first = self._first, None
        if pixels is None:
            pixels = self._decode()
        if pixels is None:
            self._check_end()
            if self._loop:
                self.close()
                self._capture, self._frames = self._open(), 0
                pixels = self._decode()
        self._frames += pixels is not None
        return pixels

    def close(self) -> None:
        """See `Source`."""
        self._capture.release()

    def _decode(self) -> Uint8 | None:
        try:
            success, picture = self._capture.read()
        except load_cv2().error as error:
            raise self._undecodable_error(" ".join(str(error).split())) from error
        return to_rgb(picture) if success else None

    def _open(self) -> Any:
        cv2 = load_cv2()
        decoders = [b for b in (cv2.CAP_FFMPEG, cv2.CAP_GSTREAMER) if b in cv2.videoio_registry.getStreamBackends()]
        if not decoders:
            command = "pip install opencv-python-headless"
            raise MissingError("this OpenCV decodes no video files", found=f"OpenCV {cv2.__version__}", next_command=command)
        for decoder in decoders:  # the absolute path: FFmpeg takes a name such as concat:a for a protocol
            capture = cv2.VideoCapture(str(self._path.resolve()), decoder)
            if capture.isOpened():
                return capture
            capture.release()
        raise self._undecodable_error("no video, or an unknown container")

    def _check_end(self) -> None:
        if self._frames >= _COMPLETE * self._stated_frames:
            return
        error = DataError(
            "the video ended early: truncated or damaged",
            where=self._path,
            found=f"{self._frames} frames",
            allowed=f"about {self._stated_frames}, as its container states",
            next_command="copy or record it again",
        )
        if not self._loop:
            raise error
        self._stated_frames = 0  # reported once
        self._notify(f"{error}\n  it is played up to there")

    def _undecodable_error(self, reason: str) -> DataError:
        return DataError(
            "the video cannot be decoded",
            where=self._path,
            found=reason,
            allowed="mp4, avi, mkv, webm and the other formats of FFmpeg",
            next_command="copy or record it again",
        )
