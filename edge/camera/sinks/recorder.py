"""`--record out.mp4`: frames with predictions overlaid, in real time.

The file is written under a hidden name beside the final one and renamed when it is closed and known to play: there is a video
of that name that plays, or none. The hidden file is locked, so that two recorders cannot write one video. OpenCV's FFmpeg does
not report a full disk, so the free space is checked before every write, and a reserve is kept that the index of the file fits
into.
"""

import fcntl
import os
import resource
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import MissingError, UsageError
from calib.printable import one_line
from edge.camera.frame import Clock, Notify, Result, ignore
from edge.camera.opencv import load_cv2, to_bgr
from edge.images.preprocess import Uint8

CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
RESERVE_BYTES = 16 << 20
"""Free space below which a recording ends while it can still be closed."""
DEFAULT_FPS, MAX_FPS = 25.0, 60.0
_INDEX_BYTES = 64  # per frame, at most: written last by the container
_DISK_CHECK_S = 0.5
_MAX_GAP_S = 5.0
_SMALLEST = 64  # pixels: a picture smaller than this has no room for letters


class Recorder:
    """Writes a video. Raises UsageError at once for an unsuitable path, also one that is being recorded to; MissingError for a
    disk without room.

    Frames are repeated or left out to keep real time; with `each` there is one per result, whatever the time.
    """

    def __init__(
        self,
        path: Path,
        fps: float,
        *,
        each: bool = False,
        notify: Notify = ignore,
        clock: Clock = time.monotonic,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        check_target(path)
        self._path, self._partial = path, path.with_name(f".{path.stem}.partial{path.suffix}")
        self._fps, self._each, self._notify, self._clock = fps, each, notify, clock
        self._free_bytes = free_bytes or room_for
        self.frames = 0
        self._check_room()
        load_cv2()
        self._lock: int | None = _lock(self._partial, path)
        self._writer: Any = None
        self._size = (0, 0)
        self._last: Uint8 = np.zeros((0, 0, 3), np.uint8)
        self._begun_s = self._checked_s = 0.0

    def process(self, result: Result) -> None:
        """Write the picture of one result, and repeat the one before until then."""
        taken_s = result.frame.taken_s
        picture = drawn(result)
        if self._writer is None:
            self._begun_s = taken_s
            self._open(picture)
        due = self.frames + 1 if self._each else round((taken_s - self._begun_s) * self._fps) + 1
        if due - self.frames > _MAX_GAP_S * self._fps:  # the camera was away: the video continues without the pause
            self._begun_s = taken_s - self.frames / self._fps
            due = self.frames + 1
        if due > self.frames:
            fitted = self._fit(picture)
            while self.frames < due - 1:
                self._write(self._last)  # shown until now
            self._write(fitted)
            self._last = fitted

    def close(self) -> None:
        """Close the video, check it, rename it."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        if self._writer is None:
            self._partial.unlink(missing_ok=True)
            os.close(lock)
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
            os.close(lock)
        if not playable:
            raise MissingError(
                "the recording is not playable and was removed", where=self._path, next_command="free space on the disk"
            )
        self._notify(f"recorded {self._path}: {self.frames} frames, {self._path.stat().st_size / 1e6:.1f} MB")

    def _write(self, picture: Uint8) -> None:
        now_s = self._clock()
        if not self.frames or now_s - self._checked_s >= _DISK_CHECK_S:
            self._checked_s = now_s
            self._check_room()
        self._writer.write(picture)
        self.frames += 1

    def _open(self, picture: Uint8) -> None:
        cv2 = load_cv2()
        height, width = picture.shape[:2]
        self._size = max(2, width // 2 * 2), max(2, height // 2 * 2)  # a video's sides are even
        codec = CODECS[self._path.suffix.lower()]
        self._writer = cv2.VideoWriter(str(self._partial.resolve()), cv2.VideoWriter.fourcc(*codec), self._fps, self._size)
        if not self._writer.isOpened():
            self._writer = None
            raise MissingError(
                "the recording cannot be started",
                where=self._path,
                found=f"{self._size[0]}x{self._size[1]} at {self._fps:g} per second, codec {codec}",
                next_command="choose another folder, or .avi",
            )

    def _fit(self, picture: Uint8) -> Uint8:
        """The picture in the size of the video; one of another size (the source changed it) is scaled and padded with black."""
        width, height = self._size
        if picture.shape[0] - height in (0, 1) and picture.shape[1] - width in (0, 1):
            return picture[:height, :width]
        scale = min(width / picture.shape[1], height / picture.shape[0])
        inner = (max(1, min(width, round(picture.shape[1] * scale))), max(1, min(height, round(picture.shape[0] * scale))))
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        padded, cv2 = np.zeros((height, width, 3), np.uint8), load_cv2()
        padded[top : top + inner[1], left : left + inner[0]] = cv2.resize(picture, inner, interpolation=cv2.INTER_AREA)
        return padded

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


def _lock(partial: Path, path: Path) -> int:
    """Create and lock the hidden file. Raises UsageError when another recorder has locked it, or has just written `path`."""
    while True:
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise MissingError("the recording cannot be started", where=path, found=error.strerror) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            what = "another process is recording to this file"
            raise UsageError(what, where=path, next_command="choose another name, or end that recording") from error
        os.close(descriptor)  # of a recording that ended meanwhile
        check_target(path)


def room_for(path: Path) -> int:
    """Bytes that a file may still grow by: the free space of its disk, or up to the process's limit on file sizes."""
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return free
    return min(free, limit - (path.stat().st_size if path.exists() else 0))


def check_target(path: Path) -> None:
    """Refuse a name that no recording can be given."""
    if path.suffix.lower() not in CODECS:
        allowed = "a name that ends in " + " ".join(CODECS)
        raise UsageError("unknown container for the recording", where="--record", found=path.name, allowed=allowed)
    if path.exists():
        raise UsageError("the recording exists already", where=path, next_command="choose another name, or remove it")
    folder = path.parent
    if not folder.is_dir():
        raise UsageError("the folder of the recording does not exist", where=folder, next_command=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise MissingError("the folder of the recording is not writable", where=folder, next_command="choose another folder")


def decodes(path: Path) -> bool:
    """Whether a video opens and its first frame decodes."""
    capture = load_cv2().VideoCapture(str(path.resolve()))
    try:
        return bool(capture.isOpened() and capture.read()[0])
    finally:
        capture.release()


def recording_fps(source_fps: float | None, max_fps: float | None) -> float:
    """The rate of the video: that of the source, at most `max_fps` and 60 per second."""
    return min(source_fps or DEFAULT_FPS, max_fps or MAX_FPS, MAX_FPS)


def drawn(result: Result) -> Uint8:
    """A copy of the frame as BGR, with what the task draws, its lines with their bars, and rate and age below."""
    cv2 = load_cv2()
    picture = to_bgr(result.frame.pixels)
    height, width = picture.shape[:2]
    if min(height, width) < _SMALLEST:
        return picture
    scale = max(0.35, min(height, width) / 800.0)
    line, thickness = max(12, round(34 * scale)), max(1, round(2 * scale))
    latency = result.latency
    result.answer.draw(picture)
    lines = [(f"{line.name} {line.short}".rstrip(), line.share or 0.0) for line in result.answer.lines()]
    lines.append((f"{result.fps:.0f}/s, age {latency.age_ms:.0f} ms", 0.0))
    for row, (text, share) in enumerate(lines):
        top = row * line
        if top + line > height:
            break
        picture[top : top + line] = picture[top : top + line] // 3
        picture[top + 1 : top + line - 1, : round(share * width)] += 60  # at most 85 before: no overflow
        at = (line // 4, top + round(0.75 * line))
        cv2.putText(picture, ascii_only(text), at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return picture


def ascii_only(text: str) -> str:
    """Text in the characters of OpenCV's font: accents are dropped, other characters become `?`, hidden ones their escapes."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", one_line(text)) if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode("ascii")
