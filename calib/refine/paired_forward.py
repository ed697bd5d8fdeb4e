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
LIVE_BYTES = 1 << 30
"""Largest number of bytes of activations carried from cut to cut, per graph: images beyond it are dropped."""

Quantize = Callable[[Segment], onnx.ModelProto | None]
"""The segment with everything that is refined by now quantized; None where nothing in it is."""
Pairs = list[tuple[NDArray[Any], NDArray[Any]]]
"""Per batch, a tensor as computed by the float graph and by the quantized one."""


def walk(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[NDArray[Any]], quantize: Quantize, threads: int
) -> Iterator[tuple[str, Pairs]]:
    """Yield (tensor, pairs) for every tensor in graph order; the pairs are discarded when the next tensor is requested.

    `batches` are arrays (B, ...) float32 as the graph takes them; some are dropped where memory is short. `quantize` is called
    for each segment. `model` is a float graph with one input.
    """
    segments = split_at(model, tensors)
    (source,) = index_graph(model).inputs
    order = np.random.default_rng(0).permutation(len(batches))  # after dropping from the end, the rest is spread evenly
    in_float: list[State] = [{source: batches[i]} for i in order]
    quantized = list(in_float)
    for tensor, segment in segments.items():
        if segment.nodes:
            where = f"before {tensor}"
            graph = GraphSession(segment.model, threads=threads, where=where)
            changed = quantize(segment)
            quantized_graph = graph if changed is None else GraphSession(changed, threads=threads, where=where)
            in_float = _step(segment, graph, in_float)
            del quantized[len(in_float) :]
            quantized = _step(segment, quantized_graph, quantized)
        pairs = [(x[tensor], quantized_x[tensor]) for x, quantized_x in zip(in_float, quantized, strict=True)]
        yield tensor, pairs
        pairs.clear()


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


def _step(segment: Segment, graph: GraphSession, states: list[State]) -> list[State]:
    """The states after a segment, as many as fit in LIVE_BYTES; those before it are released one by one."""
    after: list[State] = []
    size = 0
    for at, state in enumerate(states):
        if size > LIVE_BYTES:
            break
        after.append(segment.advance(state, graph))
        size += sum(values.nbytes for values in after[-1].values())
        states[at] = {}
    return after
