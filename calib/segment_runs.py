"""Run a graph with one group of layers replaced, starting at the last cut before the group instead of at the input.

    images -> [segment 0] -> states -> [segment 1] -> ... -> output                                      `calib.graph_segments`

One segment at a time is replaced by another graph with the same inputs and outputs, in which a group is quantized or taken from
another graph; the segments after it are unchanged, and their sessions are opened once. For every image only the tensors at one
cut are kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.graph_segments import Segment, split
from calib.ort_session import GraphSession

States = list[dict[str, NDArray[Any]]]
"""Per batch: the tensors passed from one segment to the next."""
Exchange = Callable[[onnx.ModelProto], onnx.ModelProto]
"""Graph of a segment -> a graph with the same inputs and outputs that runs in its place."""


class SegmentRuns:
    """A graph in ONNX Runtime, segment by segment.

    Args:
        model: a float graph with one input; its first output is returned.
        groups: node names of each group, see `calib.graph_segments.split`.
        batches: arrays (B, ...) as the graph takes them.
        threads: threads of ONNX Runtime.

    `segments` are in graph order, `start` are the states before the first.
    """

    def __init__(
        self, model: onnx.ModelProto, groups: Sequence[Sequence[str]], batches: Iterable[NDArray[Any]], threads: int
    ) -> None:
        self._model, self._output, self._threads = model, model.graph.output[0].name, threads
        self.segments = split(model, self._output, groups)
        self._segment_of = {name: at for at, segment in enumerate(self.segments) for name in segment.nodes}
        self._sessions: dict[int, GraphSession] = {}
        (source,) = (value.name for value in self.segments[0].model.graph.input)
        self.start: States = [{source: batch} for batch in batches]

    def first_segment(self, group: Sequence[str]) -> int:
        """The segment in which the nodes of a group begin."""
        return min(self._segment_of[name] for name in group)

    def step(self, at: int, states: States, exchange: Exchange | None = None) -> States:
        """The states after segment `at`, which runs unchanged or exchanged."""
        segment = self.segments[at]
        if exchange is not None:
            return self._advance(segment, states, exchange, at)
        if at not in self._sessions:
            self._sessions[at] = GraphSession(segment.model, threads=self._threads, where=f"segment {at}")
        return [segment.advance(state, self._sessions[at]) for state in states]

    def finish(self, at: int, states: States) -> NDArray[Any]:
        """The output (n, ...) of all batches, from the states before segment `at`."""
        for following in range(at, len(self.segments)):
            states = self.step(following, states)
        return np.concatenate([state[self._output] for state in states])

    def finish_exchanged(self, group: Sequence[str], states: States, exchange: Exchange) -> NDArray[Any]:
        """The output with `exchange` applied where `group` is computed, from the states before its first segment."""
        at = self.first_segment(group)
        if at == max(self._segment_of[name] for name in group):
            return self.finish(at + 1, self.step(at, states, exchange))
        rest = split(self._model, self._output, [group])[-1]  # another group needs a cut inside this one: run all that follows
        return np.concatenate([state[self._output] for state in self._advance(rest, states, exchange, at)])

    def _advance(self, segment: Segment, states: States, exchange: Exchange, at: int) -> States:
        session = GraphSession(exchange(segment.model), threads=self._threads, where=f"segment {at}")
        return [segment.advance(state, session) for state in states]
