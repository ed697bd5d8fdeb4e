"""The one door to OpenCV: loaded when a source or a recording needs it, quiet, BGR turned to RGB here and nowhere else."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

import numpy as np

from calib.errors import MissingError
from edge.camera.sources.source import BadFrame
from edge.images.preprocess import Uint8


def load() -> Any:
    """The module cv2, which reports through its return values alone. Raises MissingError where it is not installed."""
    # FFmpeg would print addresses with their passwords; the level is read when the first video is opened
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        cv2: Any = importlib.import_module("cv2")  # its type stubs differ from release to release
    except ImportError as error:
        if "numpy" in str(error):  # JetPack's was compiled for the older one
            mend = "pip install 'numpy<2' into this environment"
            raise MissingError("OpenCV does not fit this numpy", found=error, next_command=mend) from error
        mend = "pip install 'ufovit-edge[camera]', or on a Jetson JetPack's own"
        raise MissingError("OpenCV is not installed", found=error, next_command=mend) from error
    places: tuple[Any, ...] = (cv2, getattr(getattr(cv2, "utils", None), "logging", None))  # by release
    for module in places:
        if hasattr(module, "setLogLevel"):
            module.setLogLevel(0)
    return cv2


def has_gstreamer(build_information: str) -> bool:
    """Whether `cv2.getBuildInformation()` says that GStreamer is in."""
    return re.search(r"^\s*GStreamer:\s*YES", build_information, re.MULTILINE) is not None


def load_with_gstreamer(where: object = None) -> Any:
    """The module cv2 where it has GStreamer. Raises MissingError, which names `where`, for any other and for none."""
    cv2 = load()
    if not has_gstreamer(cv2.getBuildInformation()):
        raise MissingError(
            "a CSI camera needs an OpenCV with GStreamer, and this one has none",
            where=where,
            found=f"OpenCV {cv2.__version__} of {cv2.__file__}",
            next_command="pip uninstall opencv-python-headless, in a venv with --system-site-packages: JetPack's has it",
        )
    return cv2


def to_rgb(picture: Any) -> Uint8:
    """What OpenCV decoded, uint8 (H, W, 3) blue, green, red, or (H, W) grey -> (H, W, 3) red, green, blue.

    Raises BadFrame for what is no picture.
    """
    pixels = np.asarray(picture)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape or pixels.shape[2:] not in ((), (3,)):
        raise BadFrame(f"{pixels.dtype} {pixels.shape} is no picture")
    cv2 = load()
    rgb: Uint8 = cv2.cvtColor(
        pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB
    )  # numpy's takes 30 times as long
    return rgb


def to_bgr(pixels: Uint8) -> Uint8:
    """Red, green, blue -> blue, green, red: what OpenCV draws on and writes. A copy."""
    cv2 = load()
    bgr: Uint8 = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return bgr
