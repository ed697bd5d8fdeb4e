"""The `Runner` protocol, images in and outputs out, and a fake runner for tests."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from calib.errors import DataError, GraphError, InputError, UsageError
from edge.tasks.task import Outputs

Images = npt.NDArray[Any]
"""Preprocessed images (B, ...) of the type that the network takes."""
_R = TypeVar("_R", bound="Runner")


class Runner(Protocol):
    """Runs one network; a context manager that closes it.

    Attributes:
        at_once: number of threads that may, and should, call it concurrently; 1: only the thread that opened it.
    """

    at_once: int = 1

    @abstractmethod
    def __call__(self, images: Images, /) -> Outputs:
        """Outputs (B, ...) of images (B, ...), in the order of the network: float32, or integers. The caller owns them.

        Raises DataError for images that the network does not take, InputError after `close`.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything; a second call does nothing."""

    def __enter__(self: _R) -> _R:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


def check_images(images: object, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Images:
    """The same images. Raises DataError unless they are an array (B, *shape) of this type with B > 0."""
    if not isinstance(images, np.ndarray):
        raise DataError("images are not an array", found=type(images).__name__, allowed="numpy.ndarray")
    if images.dtype != dtype:
        expected = np.dtype(dtype).name
        raise DataError(f"images are not {expected}", found=images.dtype, allowed=f"{expected} in this machine's byte order")
    if images.ndim != 1 + len(shape) or images.shape[1:] != shape or not len(images):
        raise DataError(
            "images do not have the shape of the network's input",
            found=images.shape,
            allowed=f"(B, {', '.join(map(str, shape))}), B > 0",
        )
    return images


def check_outputs(arrays: Sequence[Any], images: int, where: object) -> Outputs:
    """What a network gave for a number of images: floats as float32, integers as they are, booleans as uint8.

    Raises GraphError for what is not an array of numbers with one row per image; `where` is what it names.
    """
    outputs: list[npt.NDArray[Any]] = []
    for number, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.ndim < 1 or len(array) != images:
            shown = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise GraphError(
                "an output of the graph is not numbers with one row per image",
                where=where,
                found=f"output {number}: {shown} for {images} images",
                allowed=f"({images}, ...)",
            )
        outputs.append(
            array if array.dtype.kind in "iu" else array.astype(np.uint8 if array.dtype == bool else np.float32, copy=False)
        )
    return tuple(outputs)


def pad_batch(images: Images, size: int) -> Images:
    """Images (n, ...), followed by copies of the last one where there are fewer than `size`."""
    missing = size - len(images)
    return images if missing <= 0 else np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])


def run_in_batches(run: Callable[[Images], Outputs], images: Images, size: int) -> Outputs:
    """Outputs of a network that takes exactly `size` images at a time; copies of the last image fill the last batch."""
    starts = range(0, len(images), size)
    parts = [(min(size, len(images) - start), run(pad_batch(images[start : start + size], size))) for start in starts]
    return join_outputs(tuple(output[:count] for output in outputs) for count, outputs in parts)


def join_outputs(parts: Iterable[Outputs]) -> Outputs:
    """Outputs of several batches, one after the other, as those of all images."""
    return tuple(np.concatenate(output) for output in zip(*parts, strict=True))


class FakeRunner(Runner):
    """Returns outputs without a network, for tests of the code around one.

    Args:
        image_shape: of one image, (C, H, W).
        classes: of the logits.
        answer: images -> outputs; None: one output, logits, of which number c is the mean of the c-th of `classes` horizontal
            bands of the image, so that the bright band of an image decides its class; needs H >= classes.
        dtype: of the images.

    Attributes:
        batches: the number of images of every call.
        closed: whether `close` was called.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        classes: int,
        answer: Callable[[Images], Outputs] | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if answer is None and image_shape[1] < classes:
            raise UsageError("fewer rows than classes", found=f"{image_shape[1]} rows, {classes} classes")
        self._shape, self._dtype = image_shape, dtype
        self._classes = classes
        self._answer = answer or self._bands
        self.batches: list[int] = []
        self.closed = False

    def __call__(self, images: Images, /) -> Outputs:
        """See `Runner`."""
        if self.closed:
            raise InputError("the runner is closed")
        self.batches.append(len(check_images(images, self._shape, self._dtype)))
        return check_outputs([np.array(output) for output in self._answer(images)], len(images), "a fake network")

    def close(self) -> None:
        """See `Runner`."""
        self.closed = True

    def _bands(self, images: Images) -> Outputs:
        bands = np.array_split(images, self._classes, axis=2)
        return (np.stack([band.mean(axis=(1, 2, 3)) for band in bands], axis=1),)
