"""The `Runner` protocol, images in and logits out, and a fake runner for tests."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from calib.errors import DataError, InputError, UsageError

Images = npt.NDArray[np.float32]
"""Preprocessed images (B, 3, S, S)."""
Logits = npt.NDArray[np.float32]
"""(B, classes)."""
_R = TypeVar("_R", bound="Runner")


class Runner(Protocol):
    """Runs one network; a context manager that closes it.

    Attributes:
        at_once: number of threads that may, and should, call it concurrently; 1: only the thread that opened it.
    """

    at_once: int = 1

    @abstractmethod
    def __call__(self, images: Images, /) -> Logits:
        """Logits (B, classes) of images (B, 3, S, S), both float32. The caller owns the returned array.

        Raises DataError for images that the network does not take, InputError after `close`.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything; a second call does nothing."""

    def __enter__(self: _R) -> _R:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


def check_images(images: object, shape: tuple[int, ...]) -> Images:
    """The same images. Raises DataError unless they are a float32 array (B, *shape) with B > 0."""
    if not isinstance(images, np.ndarray):
        raise DataError("images are not an array", found=type(images).__name__, allowed="numpy.ndarray")
    if images.dtype != np.float32:
        raise DataError("images are not float32", found=images.dtype, allowed="float32 in this machine's byte order")
    if images.ndim != 1 + len(shape) or images.shape[1:] != shape or not len(images):
        raise DataError(
            "images do not have the shape of the network's input",
            found=images.shape,
            allowed=f"(B, {', '.join(map(str, shape))}), B > 0",
        )
    return images


class FakeRunner(Runner):
    """Returns logits without a network, for tests of the code around one.

    Args:
        image_shape: (3, S, S).
        classes: of the logits.
        answer: images -> logits; None: logit c is the mean of the c-th of `classes` horizontal bands of the image, so that the
            bright band of an image decides its class; needs S >= classes.

    Attributes:
        batches: the number of images of every call.
        closed: whether `close` was called.
    """

    def __init__(self, image_shape: tuple[int, ...], classes: int, answer: Callable[[Images], Logits] | None = None) -> None:
        if answer is None and image_shape[1] < classes:
            raise UsageError("fewer rows than classes", found=f"{image_shape[1]} rows, {classes} classes")
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
