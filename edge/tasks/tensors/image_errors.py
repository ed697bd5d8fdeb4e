"""Errors of one output, image by image. numpy alone: this also runs on a device.

    a, b       one image's values of the reference and of the engine, m of each, as float64
    signal     sum a^2
    noise      sum (a - b)^2
    cosine     sum a b / (|a| |b|); 1 where both are zero, 0 where one of them is

Integers (booleans among them) name things: classes, tokens, indices. The distance of two names has no meaning, only whether
they are equal. They are compared as one-hot vectors, a one at the place of the value: with u of m values unequal,

    signal = m        noise = 2 u        cosine = 1 - u / m, the share of equal values

so that one budget serves both kinds: 20 dB are met up to 0.5 % unequal values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import DataError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ImageErrors:
    """One output of n images, arrays (n,).

    Attributes:
        finite: whether every value of the engine is; other images have zeros elsewhere.
        largest: largest absolute difference of two values; 0 for integers.
    """

    signal: Float64
    noise: Float64
    cosine: Float64
    largest: Float64
    finite: Bools


def is_integer(output: Array) -> bool:
    """Whether the values of an output are compared as names."""
    return output.dtype.kind in "biu"


def image_errors(name: str, reference: Array, engine: Array, first: int = 0) -> ImageErrors:
    """Errors of the output `name`, (n, ...) of each side; `first` is the number of the first of these images, for messages.

    Raises DataError for sides that differ in shape or kind, no image, no value, and a reference that is not finite.
    """
    _check(name, reference, engine, first)
    n = len(reference)
    signal, noise, cosine, largest = np.zeros((4, n))
    finite = np.ones(n, np.bool_)
    for i in range(n):  # one image at a time: float64 copies of all of them could take more memory than there is
        if is_integer(reference):
            unequal = float(np.count_nonzero(reference[i] != engine[i]))
            signal[i], noise[i] = reference[i].size, 2 * unequal
            cosine[i] = 1 - unequal / reference[i].size
            continue
        a, b = reference[i].ravel().astype(np.float64), engine[i].ravel().astype(np.float64)
        finite[i] = np.isfinite(b).all()
        if finite[i]:
            difference = a - b
            signal[i], noise[i], largest[i] = a @ a, difference @ difference, np.abs(difference).max()
            cosine[i] = 1.0 if not noise[i] else _cosine(a @ b, signal[i], b @ b)
    return ImageErrors(signal, noise, cosine, largest, finite)


def _cosine(product: float, first: float, second: float) -> float:
    return min(1.0, max(-1.0, product / (np.sqrt(first) * np.sqrt(second)))) if first and second else 0.0


def _check(name: str, reference: Array, engine: Array, first: int) -> None:
    if reference.shape != engine.shape or not reference.size or is_integer(reference) != is_integer(engine):
        sides = " and ".join(f"{side.dtype} {side.shape}" for side in (reference, engine))
        raise DataError("the outputs of both sides do not match", where=name, found=sides, allowed="equal shapes, not empty")
    if is_integer(reference):
        return
    broken = [i for i in range(len(reference)) if not np.isfinite(reference[i]).all()]
    if broken:
        raise DataError(
            "the FP32 reference itself holds NaN or Inf",
            where=f"output {name!r}, image {first + broken[0]}",
            found=f"{len(broken)} of {len(reference)} images",
            next_command="check the network and the images",
        )
