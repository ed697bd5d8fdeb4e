"""A whole network with every rounding of FP16 emulated, against FP32: any network, any number of outputs."""

import math
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph import GraphIndex, fix_batch, index_graph, infer_types
from calib.macs import count_macs
from calib.metrics import power_ratio_db
from calib.ort_session import RUN_BYTES, TappedGraph
from edge.stability.certificate import XNormCertificate
from edge.stability.finders.xnorm import find_sites
from edge.stability.float_formats import FP16, Float32
from edge.stability.instrumented_graph import Tensors, float_outputs
from edge.stability.islands import fp32_nodes
from engines.fp16_emulation import OperatorPrecisions, emulated_graph
from engines.typed_graph import type_graph

DEPARTED_DB = 20.0
"""SQNR below which a tensor has departed from FP32: 46 dB below one rounding to FP16."""
IMAGES = 16
MAC_BUDGET = 8e10
"""Multiply-accumulates spent on emulated images: 16 of a ViT-S at 224 px."""
_AT_ONCE = 4
"""Most images of one run: more take more memory and no less time."""


@dataclass(frozen=True)
class Agreement:
    """FP16 against FP32 on some images.

    Attributes:
        images: how many.
        agreement: share of images with the same largest logit; None where the network does not give logits.
        not_finite: images with NaN or infinity where FP32 has a number.
        sqnr_db: of the other images' outputs; of several outputs the worst.
        worst_output: name of that output.
    """

    images: int
    agreement: float | None
    not_finite: int
    sqnr_db: float
    worst_output: str = ""

    def __str__(self) -> str:
        lost = f", {self.not_finite} with NaN or infinity" if self.not_finite else ""
        if self.agreement is None:
            return f"{self.images} images{lost}, SQNR of the outputs {self.sqnr_db:.1f} dB"
        return f"{self.agreement:.2%} of {self.images} images answered alike{lost}, SQNR of the logits {self.sqnr_db:.1f} dB"


@dataclass(frozen=True)
class Departure:
    """Where a network in FP16 departs from FP32.

    Attributes:
        tensor: the first tensor that overflows on the way to the lost one; that one itself if none does.
        lost: the first tensor with NaN where FP32 has a number, or with an SQNR below DEPARTED_DB.
        sqnr_db: of the lost tensor.
    """

    tensor: str
    lost: str
    sqnr_db: float


def kept_nodes(model: onnx.ModelProto, certificate: XNormCertificate) -> frozenset[str]:
    """Names of the nodes that a build with this certificate computes in FP32: its islands, and every K^T V."""
    return fp32_nodes(model, find_sites(model), certificate.island_names)


def fp16_graph(
    model: onnx.ModelProto, keep_fp32: frozenset[str] = frozenset(), precisions: OperatorPrecisions | None = None
) -> onnx.ModelProto:
    """The FP32 graph that computes what the network computes in FP16, with some nodes in FP32.

    Without `precisions` as a plain conversion computes it, see `engines.fp16_emulation`. Raises InputError for weights that
    overflow FP16.
    """
    return emulated_graph(type_graph(model, keep_fp32=keep_fp32), precisions=precisions)


def image_count(model: onnx.ModelProto, available: int) -> int:
    """How many images to emulate: IMAGES, fewer of a large network, at least one."""
    macs = count_macs(model, measure=True).total
    return max(1, min(available, IMAGES, int(MAC_BUDGET / max(macs, 1))))


def fp32_outputs(model: onnx.ModelProto, images: Float32) -> list[Tensors]:
    """The outputs of a network in FP32 on images (B, ...), one mapping of name -> array per image."""
    return _outputs(model, model, images)


class Sample:
    """The first images of a network's batches with its FP32 outputs, as many as are to be emulated.

    Attributes:
        count: how many at most, in whole batches where the graph fixes one; see `image_count`.
    """

    def __init__(self, model: onnx.ModelProto, most: int) -> None:
        fixed = fixed_batch(model) or 1
        self.count = max(fixed, image_count(model, most) // fixed * fixed)
        self._model = model
        self._parts: list[Float32] = []
        self._rows: list[Tensors] = []

    def add(self, batch: Float32, outputs: Tensors) -> None:
        """Take what is missing of a batch (B, ...) and what the network gives for it in FP32."""
        taken = batch[: max(self.count - sum(map(len, self._parts)), 0)]
        if not len(taken):
            return
        self._parts.append(taken)
        if all(values.ndim and len(values) == len(batch) for values in outputs.values()):
            self._rows += [{name: values[i].copy() for name, values in outputs.items()} for i in range(len(taken))]

    @property
    def images(self) -> Float32:
        """The images, (B, ...)."""
        return np.concatenate(self._parts)

    def outputs(self) -> list[Tensors]:
        """The outputs in FP32, image by image; computed where some output has no axis for images."""
        images = self.images
        return self._rows if len(self._rows) == len(images) else fp32_outputs(self._model, images)


def emulated_agreement(
    reference: onnx.ModelProto | Sequence[Tensors],
    model: onnx.ModelProto,
    images: Float32,
    *,
    keep_fp32: frozenset[str] = frozenset(),
    precisions: OperatorPrecisions | None = None,
) -> Agreement:
    """Compare `model` in emulated FP16 with FP32 on images (B, ...), output by output.

    Args:
        reference: the network in FP32, or what `fp32_outputs` gave for it.
        keep_fp32, precisions: as for `fp16_graph`.

    Raises InputError for a network that cannot be converted to FP16, or emulated.
    """
    expected = fp32_outputs(reference, images) if isinstance(reference, onnx.ModelProto) else reference
    pinned = _of_batch(model, _images_at_once(model, len(images)))
    return compare_outputs(expected, _outputs(model, fp16_graph(pinned, keep_fp32, precisions), images))


def compare_logits(expected: Float32, logits: Float32) -> Agreement:
    """Agreement of logits (B, classes); an image with NaN or infinity has no answer."""
    return compare_outputs([{"logits": row} for row in expected], [{"logits": row} for row in logits])


def compare_outputs(expected: Sequence[Tensors], actual: Sequence[Tensors]) -> Agreement:
    """Agreement of the outputs of images, one mapping of name -> array per image."""
    pairs = list(zip(expected, actual, strict=True))
    kept = [(image, other) for image, other in pairs if all(_is_finite(image[name], other[name]) for name in image)]
    ratios = {name: _sqnr_db([(image[name], other[name]) for image, other in kept]) for name in expected[0]}
    worst = min(ratios, key=ratios.__getitem__)
    agreement = None
    if len(ratios) == 1 and expected[0][worst].ndim == 1 and expected[0][worst].size > 1:
        alike = sum(int(image[worst].argmax() == other[worst].argmax()) for image, other in kept)
        agreement = alike / len(expected)
    return Agreement(len(expected), agreement, len(expected) - len(kept), ratios[worst], worst)


def _is_finite(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> bool:
    """Whether there is a number wherever FP32 has one."""
    return expected.shape == actual.shape and bool((np.isfinite(actual) | ~np.isfinite(expected)).all())


def _sqnr_db(pairs: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> float:
    """Over all numbers that are finite in FP32; -inf without any image."""
    signal = noise = 0.0
    for expected, actual in pairs:
        finite = np.isfinite(expected)
        wanted, found = (values[finite].astype(np.float64) for values in (expected, actual))
        signal += float(np.square(wanted).sum())
        noise += float(np.square(wanted - found).sum())
    return power_ratio_db(signal, noise, cap_db=float("inf")) if pairs else float("-inf")


def first_departure(
    model: onnx.ModelProto,
    images: Float32,
    *,
    keep_fp32: frozenset[str] = frozenset(),
    precisions: OperatorPrecisions | None = None,
) -> Departure | None:
    """The first tensor, in graph order, that the network in emulated FP16 has lost, for a diagnosis; None if none is lost.

    Numbers beyond FP16's range and infinities count as its largest one, so that a mask of -1e38 is not lost.
    """
    few = images[: _images_at_once(model, min(len(images), 2))]
    pinned = _of_batch(model, len(few))
    emulated = fp16_graph(pinned, keep_fp32, precisions)
    index = index_graph(pinned)
    overflowing: set[str] = set()
    for part in _in_parts(pinned, index):
        expected, actual = (TappedGraph(graph, part, threads=0)(few) for graph in (pinned, emulated))
        for name in part:
            if np.isinf(actual[name]).any():
                overflowing.add(name)
            held = [np.clip(side[name], -FP16.largest, FP16.largest) for side in (expected, actual)]
            ratio = _sqnr_db([(held[0], held[1])])
            if ratio < DEPARTED_DB:
                return Departure(_first_overflow(index, name, overflowing), name, ratio)
    return None


def _in_parts(model: onnx.ModelProto, index: GraphIndex) -> Iterator[list[str]]:
    """Names of the float tensors in graph order, as many at a time as one run may return."""
    types = infer_types(model)
    part: list[str] = []
    size = 0
    for node in model.graph.node:
        for name in node.output:
            if name not in types or types[name].dtype != onnx.TensorProto.FLOAT or name in index.constant_like:
                continue
            part.append(name)
            size += 4 * math.prod(length or 1 for length in types[name].shape or ())
        if size > RUN_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _first_overflow(index: GraphIndex, tensor: str, overflowing: Collection[str]) -> str:
    """The tensor itself, or the first one that overflows of those that it is computed from."""
    producer = index.producer(tensor)
    sources = [name for name in (producer.input if producer else ()) if name in overflowing]
    return _first_overflow(index, sources[0], overflowing) if sources else tensor


def _images_at_once(model: onnx.ModelProto, count: int) -> int:
    """The fixed batch of a graph; of a free one a divisor of `count`."""
    batch = fixed_batch(model)
    return batch or max(size for size in range(1, _AT_ONCE + 1) if count % size == 0)


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The number of images that the graph takes at a time; None where it is free."""
    constants = {tensor.name for tensor in model.graph.initializer}
    source = next(value for value in model.graph.input if value.name not in constants)
    dimension = source.type.tensor_type.shape.dim[0]
    return dimension.dim_value if dimension.HasField("dim_value") else None


def _of_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy for a number of images, so that every shape that follows from it is known."""
    if fixed_batch(model):
        return model
    copy = deepcopy(model)
    fix_batch(copy.graph, batch)
    return copy


def _outputs(model: onnx.ModelProto, graph: onnx.ModelProto, images: Float32) -> list[Tensors]:
    """What `graph`, the network itself or as it is emulated, gives for image after image.

    Of an output without an axis for images, every image gets that of all images of a run.
    """
    run = TappedGraph(graph, float_outputs(model), threads=0, as_written=graph is not model)
    at_once = _images_at_once(model, len(images))
    rows: list[Tensors] = []
    for start in range(0, len(images), at_once):
        outputs = run(images[start : start + at_once])
        rows += [
            {name: values[i] if len(values) == at_once else values for name, values in outputs.items()} for i in range(at_once)
        ]
    return rows
