"""The protocol of frame sources, its failures, and how sources are opened. Kinds: `edge.camera.sources.registry`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from calib.errors import MissingError
from edge.images.preprocess import Uint8

MAX_ASPECT_RATIO = 16
"""Longer side over shorter side: resizing a narrower picture to the network's size takes memory without bound."""


class SourceLost(MissingError):  # noqa: N818  # names the event
    """The source stopped delivering frames: unplugged, stalled, closed by its peer. Opening it again may help."""


class BadFrame(Exception):  # noqa: N818  # ends nothing: the frame is counted, and the next one is read
    """One frame that cannot be used; the source goes on. Its text says why."""


class Source(Protocol):
    """Delivers frames one by one.

    Attributes:
        name: for messages; without passwords.
        live: a frame that is not read in time is lost: a camera, a stream.
        fps: frames per second, if known; a source that is not live is played at this rate.
    """

    name: str
    live: bool
    fps: float | None

    def read(self) -> Uint8 | None:
        """The next frame, uint8 (H, W, 3) RGB, owned by the caller; None at a clean end.

        Raises SourceLost when the device is gone or delivers nothing, BadFrame for one unusable frame, and InputError for
        damaged data.
        """

    def close(self) -> None:
        """Release the device; a second call does nothing."""


Opener = Callable[[], Source]
"""Opens a source; called again after every loss."""


def check_frame(pixels: Uint8) -> Uint8:
    """Return `pixels`. Raises BadFrame unless they are uint8 (H, W, 3), not empty, and within MAX_ASPECT_RATIO."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or pixels.dtype != "uint8":
        raise BadFrame(f"not a picture: {pixels.dtype} {pixels.shape}")
    if max(pixels.shape[:2]) > MAX_ASPECT_RATIO * min(pixels.shape[:2]):
        raise BadFrame(f"picture too narrow: {pixels.shape[1]}x{pixels.shape[0]}")
    return pixels
