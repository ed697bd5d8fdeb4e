"""The only import of OpenCV: loaded when needed, silenced; BGR is converted to RGB here only."""

import importlib
import os
import re
from typing import Any

import numpy as np

from calib.errors import MissingError
from edge.camera.frame import BadFrame, SourceLost
from edge.images.preprocess import Uint8


def load_cv2() -> Any:
    """The module cv2, with its log silenced. Raises MissingError if it is not installed."""
    # FFmpeg would log addresses with their passwords; it reads the level when the first video is opened
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        cv2: Any = importlib.import_module("cv2")  # its type stubs differ from release to release
    except ImportError as error:
        if "numpy" in str(error):  # JetPack's OpenCV was compiled for numpy 1
            what, command = "OpenCV is incompatible with this numpy", "pip install 'numpy<2' into this environment"
        else:
            what, command = "OpenCV is not installed", "pip install 'ufovit-edge[camera]', or on a Jetson JetPack's own"
        raise MissingError(what, found=error, next_command=command) from error
    modules: tuple[Any, ...] = (cv2, getattr(getattr(cv2, "utils", None), "logging", None))
    for module in modules:  # which one, depends on the release
        if hasattr(module, "setLogLevel"):
            module.setLogLevel(0)
    return cv2


def load_with_gstreamer(where: object = None) -> Any:
    """The module cv2 with GStreamer. Raises MissingError, which names `where`, without either."""
    cv2 = load_cv2()
    if not re.search(r"^\s*GStreamer:\s*YES", cv2.getBuildInformation(), re.MULTILINE):
        raise MissingError(
            "a CSI camera needs an OpenCV built with GStreamer",
            where=where,
            found=f"OpenCV {cv2.__version__} of {cv2.__file__}, without GStreamer",
            next_command="pip uninstall opencv-python-headless, in a venv with --system-site-packages: JetPack's OpenCV has it",
        )
    return cv2


def to_rgb(picture: Any) -> Uint8:
    """A frame decoded by OpenCV, uint8 (H, W, 3) BGR or (H, W) grey -> (H, W, 3) RGB. Raises BadFrame for anything else."""
    pixels = np.asarray(picture)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.shape[2:] not in ((), (3,)):
        raise BadFrame(f"not a picture: {pixels.dtype} {pixels.shape}")
    cv2 = load_cv2()
    code = cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB
    rgb: Uint8 = cv2.cvtColor(pixels, code)  # numpy takes 30 times as long
    return rgb


def to_bgr(pixels: Uint8) -> Uint8:
    """RGB -> BGR, which OpenCV draws on and writes. A copy."""
    bgr: Uint8 = load_cv2().cvtColor(pixels, load_cv2().COLOR_RGB2BGR)
    return bgr


class CaptureDevice:
    """A live source read by V4L2, GStreamer or FFmpeg; `lost` and `next_command` are for when frames stop."""

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
