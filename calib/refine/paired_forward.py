"""Run the float graph and the graph quantized so far side by side, from one tensor to the next.

The inputs of a quantized layer depend on every layer quantized before it. Both graphs are therefore cut after each requested
tensor (`calib.graph_segments.split_at`), and the activations of all images are carried from cut to cut: each node runs once per
image and graph, with everything quantized so far before it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import DataError
from calib.graph import index_graph
from calib.graph_segments import Segment, State, split_at
from calib.ort_session import GraphSession, checked_batches

IMAGES = 512
"""Largest number of images, in whole batches, and at least two of these."""
LIVE_BYTES = 1 << 27
"""Largest number of bytes of activations carried from cut to cut, per graph: images beyond it wait."""

Quantize = Callable[[Segment], onnx.ModelProto | None]
"""The segment with everything that is refined by now quantized; None where nothing in it is."""
Pairs = list[tuple[NDArray[Any], NDArray[Any]]]
"""Per batch, a tensor as computed by the float graph and by the quantized one."""


def walk(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[NDArray[Any]], quantize: Quantize, threads: int
) -> Iterator[tuple[str, Pairs]]:
    """Yield (tensor, pairs) for every tensor in graph order; the pairs are discarded when the next tensor is requested.

    `batches` are arrays (B, ...) float32 as the graph takes them; only some are used where memory is short. `quantize` is
    called for each segment. `model` is a float graph with one input.
    """
    segments = split_at(model, tensors)
    run = _Walk(model, batches, threads)
    for tensor, segment in segments.items():
        if segment.nodes:
            run.pass_segment(segment, quantize(segment))
        pairs = [(x[tensor], quantized[tensor]) for x, quantized in zip(run.in_float, run.quantized, strict=True)]
        yield tensor, pairs
        pairs.clear()


class _Walk:
    """The states of the float graph and of the quantized one at one cut, for as many batches as fit.

    Where activations are large, only some batches are carried along; the others follow through the segments that were passed
    once there is room for them, since later layers, with more weights, need more images.
    """

    def __init__(self, model: onnx.ModelProto, batches: Sequence[NDArray[Any]], threads: int) -> None:
        (source,) = index_graph(model).inputs
        order = np.random.default_rng(0).permutation(len(batches))  # any number from the beginning is spread evenly
        self.in_float: list[State] = [{source: batches[i]} for i in order]
        self.quantized = list(self.in_float)
        self._source = list(self.in_float)
        self._passed: list[tuple[Segment, onnx.ModelProto | None]] = []
        self._fewest = len(batches)
        self._threads = threads

    def pass_segment(self, segment: Segment, changed: onnx.ModelProto | None) -> None:
        """Compute the states after a segment, of which `changed` is the quantized graph, if anything in it is."""
        self._passed.append((segment, changed))
        self._step(segment, changed, self.in_float, self.quantized)
        self._fewest = min(self._fewest, len(self.in_float))
        here, waiting = len(self.in_float), len(self._source) - len(self.in_float)
        room = here * LIVE_BYTES // max(_bytes(self.in_float), 1) - here
        if room >= min(here, waiting):  # at least twice as many, or all: following costs every session once more
            for start in range(here, here + min(room, waiting), self._fewest):
                self._follow(self._source[start : min(start + self._fewest, here + min(room, waiting))])

    def _follow(self, sources: list[State]) -> None:
        in_float, quantized = list(sources), list(sources)
        for segment, changed in self._passed:
            self._step(segment, changed, in_float, quantized)
        self.in_float += in_float
        self.quantized += quantized

    def _step(self, segment: Segment, changed: onnx.ModelProto | None, in_float: list[State], quantized: list[State]) -> None:
        where = f"before {segment.model.graph.output[0].name}" if segment.model.graph.output else None
        graph = GraphSession(segment.model, threads=self._threads, where=where)
        _advance(segment, graph, in_float)
        del quantized[len(in_float) :]
        _advance(segment, graph if changed is None else GraphSession(changed, threads=self._threads, where=where), quantized)


def select_batches(batches: Iterable[NDArray[Any]], images: int) -> list[NDArray[Any]]:
    """Whole batches, evenly spaced over all `images` images: about IMAGES images, or as many as fit in LIVE_BYTES.

    Raises DataError for no images, and for anything but batches of finite numbers.
    """
    selected: list[NDArray[Any]] = []
    count = total = 1
    for number, batch in enumerate(checked_batches(batches)):
        if number == 0:
            total = -(-images // len(batch))
            count = min(total, max(2, min(IMAGES // len(batch), LIVE_BYTES // batch.nbytes)))
        if number * count // total != (number - 1) * count // total:
            selected.append(batch)
    if not selected:
        raise DataError("no calibration images to refine on", next_command="pass images")
    return selected


def _advance(segment: Segment, graph: GraphSession, states: list[State]) -> None:
    """Replace states by those after a segment, as many as fit in LIVE_BYTES, one by one; the others are removed."""
    size = 0
    for at, state in enumerate(states):
        if size > LIVE_BYTES:
            del states[at:]
            break
        states[at] = segment.advance(state, graph)
        size += _bytes([states[at]])


def _bytes(states: Sequence[State]) -> int:
    return sum(values.nbytes for state in states for values in state.values())
