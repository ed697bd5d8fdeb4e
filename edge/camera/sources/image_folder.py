"""The images of a folder, by name, as if a camera had captured them."""

from pathlib import Path

import numpy as np

from calib.errors import DataError, InputError
from edge.camera.frame import BadFrame, Notify
from edge.images.picture_file import IMAGE_SUFFIXES, decode, picture_files
from edge.images.preprocess import Uint8

FPS = 5.0  # images have no rate of their own; at this one a person can follow


class ImageFolder:
    """Every image file below a folder, or one image file, through the decoder of all other steps (EXIF rotation and so on).

    An image that cannot be decoded is a BadFrame; if all are, DataError.
    """

    live = False
    fps: float | None = FPS

    def __init__(self, path: Path, *, loop: bool, notify: Notify) -> None:
        self.name = str(path)
        self._files = [file for file in (picture_files(path) if path.is_dir() else [path]) if file.is_file()]
        if not self._files:
            raise DataError("no images in the folder", where=path, allowed=" ".join(sorted(IMAGE_SUFFIXES)))
        self._loop, self._notify = loop, notify
        self._next = self._decoded = 0

    def read(self) -> Uint8 | None:
        """See `Source`."""
        if self._next == len(self._files):
            if not self._decoded:
                raise DataError("none of the images can be decoded", where=self.name, found=f"{len(self._files)} files")
            if not self._loop:
                return None
            self._next = 0
        file = self._files[self._next]
        self._next += 1
        try:
            pixels = decode(file)
        except InputError as error:
            self._notify(f"skipped: {error}")
            raise BadFrame(str(error)) from error
        self._decoded += 1
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def close(self) -> None:
        """See `Source`."""
