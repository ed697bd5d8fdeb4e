"""The float graph and the graph quantized so far, run side by side from one tensor to the next.

What a layer really sees depends on every layer quantized before it. Both graphs are therefore cut behind each tensor that is
to be looked at (`calib.graph_segments.split_at`), and the activations of all images are carried from cut to cut: each node runs
once per image and graph, with all that has been settled in front of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import InputError
from calib.graph import index_graph
from calib.graph_segments import Segment, State, split_at
from calib.ort_session import GraphSession, check_batch

IMAGES = 512
"""Most images that are walked through the graph, in whole batches, and at least two of these."""
LIVE_BYTES = 1 << 30
"""Most bytes of activations that are carried from cut to cut, per graph: images beyond are dropped."""

Quantize = Callable[[Segment], onnx.ModelProto | None]
Pairs = list[tuple[NDArray[Any], NDArray[Any]]]


def walk(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[NDArray[Any]], quantize: Quantize, threads: int
) -> Iterator[tuple[str, Pairs]]:
    """Give every tensor in graph order: (tensor, [(as the float graph has it, as the quantized one has it) per batch]).

    A list of pairs is emptied when the next tensor is asked for.

    Args:
        model: float graph with one input.
        tensors: of the graph.
        batches: arrays (B, ...) float32 as the graph takes them; some are dropped where memory is short.
        quantize: the graph of a segment with all that is settled by now; None where nothing of it is.
        threads: threads of ONNX Runtime.

    Raises InputError for a graph or arrays that do not fit, see `calib.ort_session`.
    """
    segments = split_at(model, tensors)
    (source,) = index_graph(model).inputs
    order = np.random.default_rng(0).permutation(len(batches))  # whatever is dropped from the end, the rest is spread evenly
    exact: list[State] = [{source: batches[i]} for i in order]
    found = list(exact)
    for tensor, segment in segments.items():
        if segment.nodes:
            graph = GraphSession(segment.model, threads=threads, where=f"in front of {tensor}")
            changed = quantize(segment)
            other = graph if changed is None else GraphSession(changed, threads=threads, where=f"in front of {tensor}")
            exact = _step(segment, graph, exact)
            del found[len(exact) :]
            found = _step(segment, other, found)
        pairs = [(x[tensor], seen[tensor]) for x, seen in zip(exact, found, strict=True)]
        yield tensor, pairs
        pairs.clear()


def spread(batches: Iterable[NDArray[Any]], images: int) -> list[NDArray[Any]]:
    """Whole batches of so many images, spread evenly over all of them: about IMAGES, or as many as LIVE_BYTES hold.

    Raises InputError for no images, and for what is no batch of finite numbers.
    """
    kept: list[NDArray[Any]] = []
    seen = 0
    wanted = total = 1
    for number, batch in enumerate(batches):
        check_batch(batch, seen)
        seen += len(batch)
        if number == 0:
            total = -(-images // len(batch))
            wanted = min(total, max(2, min(IMAGES // len(batch), LIVE_BYTES // batch.nbytes)))
        if number * wanted // total != (number - 1) * wanted // total:
            kept.append(batch)
    if not kept:
        raise InputError("no calibration images to refine on", next_command="pass images")
    return kept


def _step(segment: Segment, graph: GraphSession, states: list[State]) -> list[State]:
    """The states behind a segment, as many as there is room for; those in front are let go one by one."""
    behind: list[State] = []
    size = 0
    for at, state in enumerate(states):
        if size > LIVE_BYTES:
            break
        behind.append(segment.advance(state, graph))
        size += sum(values.nbytes for values in behind[-1].values())
        states[at] = {}
    return behind
