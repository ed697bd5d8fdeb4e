"""Compare quantized graphs with the float graph on calibration images that the refinements do not use.

What fits the images that it was made from may lose on others. A part of the images is therefore held out, the same part for
every effort, and of two results the one with the higher SQNR on it is kept. Images in a row are often alike (crops of one
photo, one class after the other), so blocks of them are held out, evenly spaced over all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import index_graph
from calib.metrics import power_ratio_db
from calib.ort_session import GraphSession

MOST, ENOUGH, BLOCK = 64, 16, 4
"""One image in eight is held out, at most MOST, but where that is less than ENOUGH up to one in four; in blocks of BLOCK."""
LARGEST_BYTES = 1 << 26
"""Bytes up to which images are held out, since they are kept in memory."""
FEWEST = 4
"""With fewer images held out, nothing is compared."""
ELEMENTS = 1 << 15
"""Largest number of elements of an output that are compared per image."""
CLEAR = 2.0
"""Standard errors above which a difference between two results is not left to chance."""

_TINY = 1e-30
"""Noise of an image that has none."""


def batch_of(model: onnx.ModelProto) -> int | None:
    """The batch that a graph is fixed to; None for a free one."""
    initializers = {t.name for t in model.graph.initializer}
    shapes = [v.type.tensor_type.shape.dim for v in model.graph.input if v.name not in initializers]
    return int(shapes[0][0].dim_value) or None if shapes and shapes[0] else None


@dataclass
class HeldOut:
    """The part of the calibration images that is held out.

    Attributes:
        images: number of all calibration images.
        block: images in a row; the graph's own batch where that is fixed.
        batches: what was held out so far by `keep`.
    """

    images: int
    block: int = BLOCK
    batches: list[NDArray[Any]] = field(default_factory=list)

    def keep(self, batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """All batches, unchanged; the parts that are held out are kept."""
        self.batches.clear()
        for batch, chosen in self._marked(batches):
            if chosen.any():
                self.batches.append(batch[chosen])
            yield batch

    def others(self, batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The batches without the images that are held out."""
        for batch, chosen in self._marked(batches):
            if not chosen.any():
                yield batch
            elif not chosen.all():
                yield batch[~chosen]

    def count(self, image_bytes: int) -> int:
        """Number of images that are held out, in whole blocks."""
        wanted = min(MOST, max(self.images // 8, min(self.images // 4, ENOUGH)))
        most = min(wanted, LARGEST_BYTES // max(image_bytes, 1)) // self.block * self.block
        return most or (self.block if self.images >= max(2 * self.block, 4 * FEWEST) else 0)

    def _marked(self, batches: Iterable[NDArray[Any]]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        start = 0
        for batch in batches:
            blocks = self.count(batch[:1].nbytes) // self.block
            place = np.arange(start, start + len(batch))
            spacing = self.images // self.block // max(blocks, 1) * self.block
            last = spacing - self.block  # the last block of every `spacing` images
            yield batch, (place % spacing >= last) & (place // spacing < blocks) if blocks else place < 0
            start += len(batch)


@dataclass(frozen=True)
class Noise:
    """Noise of one quantized graph on the images that are held out.

    Attributes:
        decibels: SQNR of the output where it is lowest, within [-300, 300].
        per_image: (images,) its energy in each image relative to that of the signal in all, summed over the outputs.
    """

    decibels: float
    per_image: NDArray[np.float64]

    def clearly_below(self, other: Noise) -> bool:
        """Whether the SQNR is higher, and the log of the noise lower by more than CLEAR standard errors of its mean.

        The log, since the noise of a few images may be many times that of the others.
        """
        with np.errstate(invalid="ignore", divide="ignore"):  # noise that is not finite compares as not lower
            saved = np.log(np.maximum(other.per_image, _TINY)) - np.log(np.maximum(self.per_image, _TINY))
            error = saved.std(ddof=1) / np.sqrt(len(saved)) if len(saved) > 1 else np.inf
            return self.decibels > other.decibels and bool(saved.mean() > CLEAR * error)


class Judge:
    """The noise of quantized graphs, relative to a float graph, on images that are held out.

    Args:
        model: float graph with one input and any number of outputs.
        batches: the images, arrays (B, ...) as the graph takes them.
        threads: threads of ONNX Runtime.
    """

    def __init__(self, model: onnx.ModelProto, batches: Iterable[NDArray[Any]], threads: int) -> None:
        self._batches, self._threads = list(batches), threads
        (self._source,) = index_graph(model).inputs
        self._reference = list(self._run(model))
        self.images = sum(len(batch) for batch in self._batches)

    def measure(self, model: onnx.ModelProto, *, centred: bool = False) -> Noise:
        """The noise in the outputs of a quantized graph.

        `centred` leaves out the mean error of each element of an output over the images, which a bias can take back.
        """
        outputs = list(self._run(model))
        decibels, per_image = [], np.zeros(self.images)
        for name in self._reference[0]:
            reference, test = (np.concatenate([part[name] for part in side]) for side in (self._reference, outputs))
            error = test - reference
            if centred:
                error -= error.mean(axis=0)
            signal, squared = float(np.sum(reference**2)), error**2
            decibels.append(power_ratio_db(signal, float(np.sum(squared))))
            if signal > 0 and len(squared) == self.images:
                per_image += squared.reshape(self.images, -1).sum(axis=1) / signal
        return Noise(min(decibels), per_image)

    def _run(self, model: onnx.ModelProto) -> Iterator[dict[str, NDArray[np.float64]]]:
        session = GraphSession(model, threads=self._threads, where="held-out images")
        for batch in self._batches:
            yield {name: _sampled(values, len(batch)) for name, values in session({self._source: batch}).items()}


def _sampled(output: NDArray[Any], images: int) -> NDArray[np.float64]:
    """An output, of a map only every so many of its elements, the same in every run."""
    if output.ndim < 2 or len(output) != images:
        return np.asarray(output, np.float64)
    flat = output.reshape(images, -1)
    return flat[:, :: -(-flat.shape[1] // ELEMENTS)].astype(np.float64)
