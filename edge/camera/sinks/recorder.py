"""`--record out.mp4`: the pictures with their answers, at the speed at which they happened.

The file is written under a hidden name beside the final one and renamed when it is closed and found playable: whatever happens,
there is a video of that name that plays, or none. FFmpeg behind OpenCV does not tell that a disk is full, so the free space
is asked before, and a reserve is kept that the index of the file fits into.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import InputError, MissingError
from edge.camera.frame import Clock, Result
from edge.camera.opencv import load
from edge.camera.sinks.overlay import drawn
from edge.images.preprocess import Uint8

CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
RESERVE_BYTES = 16 << 20
"""Free space below which a recording ends while it can still be closed."""
USUAL_FPS, MOST_FPS = 25.0, 60.0
_INDEX_BYTES = 64  # per frame, at most: what the container writes last
_LOOK_EVERY_S = 0.5
_LONGEST_GAP_S = 5.0
_SIDES = 2  # a video's sides are even


class Recorder:
    """Work of a `Background`. Raises InputError at once for a path that will not do, MissingError for a disk without room.

    Args:
        path: of the video; its suffix chooses the container.
        fps: of the video; pictures are repeated or left out to keep the time.
        each: one picture per result, whatever the time: for `--every-frame`.
        say: told what became of the file.
        free_bytes: of the disk; a test has its own.
    """

    def __init__(
        self,
        path: Path,
        fps: float,
        *,
        each: bool = False,
        say: Callable[[str], None] = lambda _text: None,
        clock: Clock = time.monotonic,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        check_target(path)
        self._path, self._partial = path, path.with_name(f".{path.stem}.partial{path.suffix}")
        self._fps, self._each, self._say, self._clock = fps, each, say, clock
        self._free_bytes = free_bytes or room_for
        self.frames = 0
        self._check_room()
        load()
        self._writer: Any = None
        self._size = (0, 0)
        self._last: Uint8 = np.zeros((0, 0, 3), np.uint8)
        self._begun_s = self._looked_s = 0.0

    def begin(self) -> None:
        """See `Work`."""

    def take(self, result: Result) -> None:
        """See `Work`."""
        taken = result.frame.taken_s
        picture = drawn(result)
        if self._writer is None:
            self._begun_s = taken
            self._open(picture)
        wanted = self.frames + 1 if self._each else round((taken - self._begun_s) * self._fps) + 1
        if wanted - self.frames > _LONGEST_GAP_S * self._fps:  # the camera was away: the video goes on without the pause
            self._begun_s = taken - self.frames / self._fps
            wanted = self.frames + 1
        if wanted > self.frames:
            fitted = self._fit(picture)
            while self.frames < wanted - 1:
                self._write(self._last)  # what was to be seen until now
            self._write(fitted)
            self._last = fitted

    def end(self) -> None:
        """See `Work`: close, check, rename."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        try:
            playable = decodes(self._partial)
            if playable:
                with self._partial.open("rb") as stream:
                    os.fsync(stream.fileno())
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)
        if not playable:
            raise MissingError(
                "the recording is not playable and was removed", where=self._path, next_command="free space on the disk"
            )
        self._say(f"recorded {self._path}: {self.frames} frames, {self._path.stat().st_size / 1e6:.1f} MB")

    def _write(self, picture: Uint8) -> None:
        self._look_at_the_disk()
        self._writer.write(picture)
        self.frames += 1

    def _open(self, picture: Uint8) -> None:
        cv2 = load()
        height, width = picture.shape[:2]
        self._size = tuple(max(_SIDES, side // _SIDES * _SIDES) for side in (width, height))
        fourcc = cv2.VideoWriter.fourcc(*CODECS[self._path.suffix.lower()])
        self._writer = cv2.VideoWriter(str(self._partial.resolve()), fourcc, self._fps, self._size)
        if not self._writer.isOpened():
            self._partial.unlink(missing_ok=True)
            self._writer = None
            raise MissingError(
                "the recording cannot be started",
                where=self._path,
                found=f"{self._size[0]}x{self._size[1]} at {self._fps:g} per second, codec {CODECS[self._path.suffix.lower()]}",
                next_command="choose another folder, or .avi",
            )

    def _fit(self, picture: Uint8) -> Uint8:
        """The picture in the size of the video: another one (the source changed its size) is scaled onto black."""
        cv2 = load()
        width, height = self._size
        if picture.shape[0] - height in (0, 1) and picture.shape[1] - width in (0, 1):
            fitted: Uint8 = picture[:height, :width]
            return fitted
        scale = min(width / picture.shape[1], height / picture.shape[0])
        inner = (max(1, min(width, round(picture.shape[1] * scale))), max(1, min(height, round(picture.shape[0] * scale))))
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        right, bottom = width - inner[0] - left, height - inner[1] - top
        scaled = cv2.resize(picture, inner, interpolation=cv2.INTER_AREA)
        bordered: Uint8 = cv2.copyMakeBorder(scaled, top, bottom, left, right, cv2.BORDER_CONSTANT)
        return bordered

    def _look_at_the_disk(self) -> None:
        now = self._clock()
        if self.frames and now - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now
        self._check_room()

    def _check_room(self) -> None:
        free = self._free_bytes(self._partial)
        needed = RESERVE_BYTES + _INDEX_BYTES * self.frames
        if free < needed:
            raise MissingError(
                "disk full: the recording ends here",
                where=self._path,
                found=f"{max(0, free) / 1e6:.0f} MB free",
                allowed=f"{needed / 1e6:.0f} MB or more",
                next_command="free space, then record again",
            )


def room_for(path: Path) -> int:
    """Bytes that a file may still grow by: the free space of its disk, or up to the largest file that is allowed here."""
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest == resource.RLIM_INFINITY:
        return free
    return min(free, largest - (path.stat().st_size if path.exists() else 0))


def check_target(path: Path) -> None:
    """Raise InputError unless a recording can be given this name, MissingError for a folder that may not be written."""
    if path.suffix.lower() not in CODECS:
        allowed = "a name that ends in " + " ".join(CODECS)
        raise InputError("recording has no known container", where="--record", found=path.name, allowed=allowed)
    if path.exists():
        mend = "choose another name, or remove it"
        raise InputError("recording exists already", where=path, next_command=mend)
    if not path.parent.is_dir():
        raise InputError("folder of the recording does not exist", where=path.parent, next_command=f"mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise MissingError(
            "folder of the recording may not be written", where=path.parent, next_command="choose another folder"
        )


def decodes(path: Path) -> bool:
    """Whether a video opens and its first frame decodes."""
    cv2 = load()
    capture = cv2.VideoCapture(str(path.resolve()))
    try:
        return bool(capture.isOpened() and capture.read()[0])
    finally:
        capture.release()


def recording_fps(source_fps: float | None, max_fps: float | None) -> float:
    """The rate of the video: of the source, at most `max_fps` and 60 per second."""
    return min(source_fps or USUAL_FPS, max_fps or MOST_FPS, MOST_FPS)
