"""What runs a network: images in, logits out. One protocol for ONNX Runtime, TensorRT and the fake for tests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from calib.errors import InputError

Images = npt.NDArray[np.float32]
"""Preprocessed images (B, 3, S, S)."""
Logits = npt.NDArray[np.float32]
"""(B, classes)."""
_R = TypeVar("_R", bound="Runner")


class Runner(Protocol):
    """Runs one network; a context manager that closes it.

    Attributes:
        at_once: how many threads may, and should, call it at the same time; 1: the thread that opened it, no other.
    """

    at_once: int = 1

    @abstractmethod
    def __call__(self, images: Images, /) -> Logits:
        """Logits (B, classes) of images (B, 3, S, S), both float32. The answer is the caller's own array.

        Raises InputError for images that the network does not take.
        """

    @abstractmethod
    def close(self) -> None:
        """Give everything back; a second call does nothing, and what is called afterwards raises InputError."""

    def __enter__(self: _R) -> _R:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


def check_images(images: object, shape: tuple[int, ...]) -> Images:
    """The same images. Raises InputError unless they are a float32 array (B, *shape) with B > 0."""
    if not isinstance(images, np.ndarray):
        raise InputError("images are not an array", found=type(images).__name__, allowed="numpy.ndarray")
    if images.dtype != np.float32:
        raise InputError("images are not float32", found=images.dtype, allowed="float32 in this machine's byte order")
    if images.ndim != 1 + len(shape) or images.shape[1:] != shape or not len(images):
        raise InputError(
            "images are not of the network's shape",
            found=images.shape,
            allowed=f"(B, {', '.join(map(str, shape))}), B > 0",
        )
    return images


class FakeRunner(Runner):
    """Answers without a network, for tests of what stands around one.

    Args:
        image_shape: (3, S, S).
        classes: of the logits.
        answer: images -> logits; None: logit c is the mean of the c-th of `classes` horizontal bands of the image, so that a
            test says by where an image is bright what it wants it to be; needs S >= classes.

    Attributes:
        batches: the number of images of every call.
        closed: whether `close` was called.
    """

    def __init__(self, image_shape: tuple[int, ...], classes: int, answer: Callable[[Images], Logits] | None = None) -> None:
        if answer is None and image_shape[1] < classes:
            raise InputError("fewer rows than classes", found=f"{image_shape[1]} rows, {classes} classes")
        self._shape = image_shape
        self._classes = classes
        self._answer = answer or self._bands
        self.batches: list[int] = []
        self.closed = False

    def __call__(self, images: Images, /) -> Logits:
        """See `Runner`."""
        if self.closed:
            raise InputError("the runner is closed")
        self.batches.append(len(check_images(images, self._shape)))
        return np.array(self._answer(images), np.float32)

    def close(self) -> None:
        """See `Runner`."""
        self.closed = True

    def _bands(self, images: Images) -> Logits:
        bands = np.array_split(images, self._classes, axis=2)
        return np.stack([band.mean(axis=(1, 2, 3)) for band in bands], axis=1)
