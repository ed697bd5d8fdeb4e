"""What the figures of an output rest on: a few numbers per image, so that large outputs need not be kept.

Each number is of one image, and is the same whether the images are measured together or in batches. numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from calib.errors import DataError
from edge.tasks.constant_outputs import SAME, ZERO
from edge.tasks.task import Outputs, Sides
from edge.tasks.tensors.image_errors import Array, Float64, ImageErrors, image_errors, is_integer

KEPT_BYTES = 1 << 29
"""Outputs of both sides up to which they are kept. Larger ones are measured batch by batch, and only the figures are stored."""


@dataclass(frozen=True)
class MeasuredOutput:
    """One output of n images.

    Attributes:
        shape: (n, ...) of either side.
        integers: whether values are compared as names, see `image_errors`.
        constant: as `why_constant` of the reference's output.
        errors: of every image.
        projection, length: (n,) of the reference's values r_k in order, as float64: sum_k r_k sin(k + 1), and the root of
            sum_k r_k^2. The first moves with every value, sign and position.
    """

    shape: tuple[int, ...]
    integers: bool
    constant: str
    errors: ImageErrors
    projection: Float64
    length: Float64


@dataclass(frozen=True)
class MeasuredSides(Sides):
    """Sides whose outputs were too large to keep: `reference` and `engine` are empty."""

    measured: tuple[MeasuredOutput, ...] = ()


class OutputMeter:
    """Measures the output `name`, batch by batch; keeps one image of the reference's.

    Call: (b, ...) of each side, the next b images. Raises DataError as `image_errors` does, and for images of another shape
    than those before.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._parts: list[tuple[ImageErrors, Float64, Float64]] = []
        self._images, self._zero, self._same = 0, True, True
        self._first: Array | None = None
        self._integers = False

    def __call__(self, reference: Array, engine: Array) -> None:
        """Measure a batch."""
        errors = image_errors(self._name, reference, engine, self._images)
        if self._first is None:
            self._first, self._integers = reference[0].copy(), is_integer(reference)
        elif self._first.shape != reference.shape[1:]:
            found = f"{reference.shape[1:]} after {self._first.shape}"
            raise DataError("images of an output differ in shape", where=self._name, found=found, allowed="one shape")
        self._zero = self._zero and not reference.any()
        self._same = self._same and all(np.array_equal(self._first, image) for image in reference)
        self._images += len(reference)
        self._parts.append((errors, *_project(reference)))

    def finish(self) -> MeasuredOutput:
        """What was measured. Raises DataError without any image."""
        if self._first is None:
            raise DataError("no images to compare", where=self._name)
        errors, projections, lengths = zip(*self._parts, strict=True)
        joined = {f.name: np.concatenate([getattr(part, f.name) for part in errors]) for f in fields(ImageErrors)}
        return MeasuredOutput(
            (self._images, *self._first.shape),
            self._integers,
            ZERO if self._zero else SAME if self._same and self._images > 1 else "",
            ImageErrors(**joined),
            np.concatenate(projections),
            np.concatenate(lengths),
        )


def measure_sides(sides: Sides, names: tuple[str, ...]) -> tuple[MeasuredOutput, ...]:
    """What is known of every output, called `names`; measured here where the outputs were kept.

    Raises DataError for outputs that do not match and for a reference that is not finite.
    """
    if isinstance(sides, MeasuredSides):
        _check_count(len(sides.measured), len(sides.measured), names)
        return sides.measured
    _check_count(len(sides.reference), len(sides.engine), names)
    return tuple(_measure(*output) for output in zip(names, sides.reference, sides.engine, strict=True))


def measure_batches(pairs: Iterable[tuple[Outputs, Outputs]], names: tuple[str, ...]) -> MeasuredSides:
    """The same of outputs of both sides that come in batches, of which none is kept."""
    meters = [OutputMeter(name) for name in names]
    for reference, engine in pairs:
        _check_count(len(reference), len(engine), names)
        for meter, *output in zip(meters, reference, engine, strict=True):
            meter(*output)
    return MeasuredSides((), (), measured=tuple(meter.finish() for meter in meters))


def _measure(name: str, reference: Array, engine: Array) -> MeasuredOutput:
    meter = OutputMeter(name)
    meter(reference, engine)
    return meter.finish()


def _check_count(reference: int, engine: int, names: tuple[str, ...]) -> None:
    if (reference, engine) != (len(names), len(names)) or not names:
        allowed = len(names) or "1"
        raise DataError("the outputs of both sides do not match", found=f"{reference} and {engine}", allowed=allowed)


def _project(output: Array) -> tuple[Float64, Float64]:
    """Projection and length (n,) of every image's values."""
    weights = np.sin(np.arange(1, output[0].size + 1, dtype=np.float64))
    flat: Iterator[Float64] = (values.ravel().astype(np.float64) for values in output)
    pairs = np.array([(values @ weights, np.linalg.norm(values)) for values in flat])
    return pairs[:, 0], pairs[:, 1]
