"""Compare quantized graphs with the float graph on calibration images that the refinements do not use.

What fits the images that it was made from may lose on others. A part of the images is therefore held out, the same part for
every effort, and of two results the one with the higher SQNR on it is kept. Images in a row are often alike (crops of one
photo, one class after the other), so blocks of them are held out, evenly spaced over all images.
"""

import statistics
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
OVERALL_WEIGHT = 0.75
"""Of the SQNR over all images in the comparison of calibration methods, the rest on that of the image in the middle."""
CLEAR_DB = 0.5
"""Gain in SQNR from which one of two quantized networks is better than the other."""
ELEMENTS = 1 << 15
"""Largest number of values that are compared per image and output, see `_projected`."""


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
        all: hold out all images up to MOST: for results whose ranges are from all images, held out or not.
        ranking: number of other images, evenly spread, that `keep` keeps too, see `calib.placement`; in blocks of
            `ranking_block`, the graph's own batch where that is fixed.
        batches: what was held out so far by `keep`; `ranking_batches` those other images.
    """

    images: int
    block: int = BLOCK
    all: bool = False
    ranking: int = 0
    ranking_block: int = 1
    batches: list[NDArray[Any]] = field(default_factory=list)
    ranking_batches: list[NDArray[Any]] = field(default_factory=list)

    def keep(self, batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """All batches, unchanged; the parts that are held out are kept."""
        self.batches.clear()
        self.ranking_batches.clear()
        start = 0
        for batch, chosen in self._marked(batches):
            if chosen.any():
                self.batches.append(batch[chosen])
            ranking = ~chosen & self._ranking(start + np.cumsum(~chosen) - 1, batch[:1].nbytes)
            if ranking.any():
                self.ranking_batches.append(batch[ranking])
            start += int(np.count_nonzero(~chosen))
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
        wanted = min(MOST, self.images if self.all else max(self.images // 8, min(self.images // 4, ENOUGH)))
        most = min(wanted, LARGEST_BYTES // max(image_bytes, 1)) // self.block * self.block
        return most or (self.block if self.images >= max(2 * self.block, 4 * FEWEST) else 0)

    def _ranking(self, position: NDArray[np.int_], image_bytes: int) -> NDArray[np.bool_]:
        """Whether the images at these positions, counted without those that are held out, are among the `ranking` ones."""
        others = (self.images - self.count(image_bytes)) // self.ranking_block
        blocks = -(-min(self.ranking, LARGEST_BYTES // max(image_bytes, 1)) // self.ranking_block)
        return _spread(position // self.ranking_block, min(blocks, others), max(others, 1))

    def _marked(self, batches: Iterable[NDArray[Any]]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        start = 0
        for batch in batches:
            blocks, total = self.count(batch[:1].nbytes) // self.block, max(self.images // self.block, 1)
            block = np.arange(start, start + len(batch)) // self.block
            yield batch, _spread(block, blocks, total)
            start += len(batch)


def _spread(block: NDArray[np.int_], blocks: int, total: int) -> NDArray[np.bool_]:
    """Whether blocks, by number, are among `blocks` of them, spread evenly over `total`."""
    return np.asarray(((block + 1) * blocks // total > block * blocks // total) & (block < total))


@dataclass(frozen=True)
class Figures:
    """SQNR of a quantized graph, in dB within [-300, 300], of the output where it is lowest.

    Attributes:
        overall_db: of all images together: an image with large outputs counts more.
        median_db: that of the image in the middle: every image counts alike.
    """

    overall_db: float
    median_db: float

    @property
    def weighted_db(self) -> float:
        """Both, by OVERALL_WEIGHT: one image that carries most of the signal does not decide alone, and is not ignored."""
        return OVERALL_WEIGHT * self.overall_db + (1 - OVERALL_WEIGHT) * self.median_db


class Judge:
    """The SQNR of quantized graphs against a float graph, on images that are held out.

    Args:
        model: float graph with one input and any number of outputs.
        batches: the images, arrays (B, ...) as the graph takes them.
        threads: threads of ONNX Runtime.
    """

    def __init__(self, model: onnx.ModelProto, batches: Iterable[NDArray[Any]], threads: int) -> None:
        self._batches, self.threads = list(batches), threads
        (self._source,) = index_graph(model).inputs
        self._reference = list(self._run(model))
        self.images = sum(len(batch) for batch in self._batches)

    def decibels(self, model: onnx.ModelProto) -> float:
        """SQNR in dB of the output of a quantized graph where it is lowest, over all images together, within [-300, 300]."""
        return self.figures(model).overall_db

    def figures(self, model: onnx.ModelProto) -> Figures:
        """Both figures of a quantized graph."""
        total = {name: np.zeros(2) for name in self._reference[0]}
        by_image: dict[str, list[float]] = {name: [] for name in total}
        for exact, found in zip(self._reference, self._run(model), strict=True):
            for name, reference in exact.items():
                error = np.subtract(found[name], reference, dtype=np.float64)
                parts = (np.square(reference, dtype=np.float64), np.square(error))
                total[name] += [np.sum(part) for part in parts]
                rows = zip(*(part.reshape(len(part) if part.ndim else 1, -1).sum(axis=1) for part in parts), strict=True)
                by_image[name] += [power_ratio_db(float(signal), float(noise)) for signal, noise in rows]
        overall = min(power_ratio_db(*map(float, sums)) for sums in total.values())
        return Figures(overall, min(statistics.median(decibels) for decibels in by_image.values()))

    def _run(self, model: onnx.ModelProto) -> Iterator[dict[str, NDArray[Any]]]:
        session = GraphSession(model, threads=self.threads, where="held-out images")
        for batch in self._batches:
            yield {name: _projected(values) for name, values in session({self._source: batch}).items()}


def _projected(output: NDArray[Any]) -> NDArray[Any]:
    """An output (B, ...); where an image has n > ELEMENTS values, the sums (B, <= ELEMENTS) of neighbours with random signs.

        y_k = sum over i in block k of s_i x_i,    s_i = -1 or +1, the same in every run

    The expectation of sum y^2 over the signs is sum x^2 (Achlioptas, "Database-friendly random projections", 2003), for errors
    as for values. Every so many of the elements would miss most of a sparse output, such as the peaks of a softmax.
    """
    if output.ndim < 2 or output[0].size <= ELEMENTS:
        return output
    flat = output.reshape(len(output), -1)
    signs = np.random.default_rng(0).integers(0, 2, flat.shape[1], np.int8) * 2 - 1
    starts = np.arange(0, flat.shape[1], -(-flat.shape[1] // ELEMENTS))
    return np.asarray(np.add.reduceat(flat * signs.astype(np.float32), starts, axis=1))
