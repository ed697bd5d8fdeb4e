"""Observe probes on images, in memory that does not grow with their number: the graph itself computes the figures.

Nodes that reduce are added to a copy of the graph, so that only single numbers leave it:

    all probes           the largest and the smallest number, how many there are
    divisors, counted    also the smallest magnitude other than zero, zeros, and what vanishes in FP16
    overflows, counted   the same and what overflows, from the batch on in which FP16 overflows
    the others           that smallest magnitude on the first image, or on the first batch where that overflows

Views share the figures of what they show. Constants are observed without a run.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import DataError
from calib.graph import GraphIndex, index_graph, to_array
from calib.ort_session import checked_batches
from calib.parallel import ordered_map, shared_cores
from edge.onnx_import.graph_edit import is_operator
from edge.stability.finders.site_graph import VIEWS
from edge.stability.instrumented_graph import LARGEST, OVERFLOW, VANISHING, Detail, InstrumentedGraph, Tensors
from edge.stability.site import Observed, Probe


def observe_probes(
    model: onnx.ModelProto,
    probes: Iterable[Probe],
    batches: Iterable[NDArray[Any]],
    progress: Callable[[int], None] = lambda _images: None,
    watch: Callable[[NDArray[Any], Tensors], None] = lambda _batch, _outputs: None,
) -> tuple[dict[Probe, Observed], int]:
    """Observe probes over all images, and count the images.

    Args:
        model: FP32 graph with one input; left as it is.
        probes: any, of tensors of this graph.
        batches: images as the graph takes them (B, ...).
        progress: called with the number of images done so far.
        watch: called with every batch and the graph's `float_outputs`.

    Raises DataError for NaN or infinity in FP32 already, naming the tensor, and where there are no images; GraphError for a
    probe of a tensor that the graph does not have.
    """
    at_once, threads = shared_cores()
    observer = _Observer(model, tuple(dict.fromkeys(probes)), threads)
    images = 0
    for batch, (found, outputs) in ordered_map(lambda batch: (batch, observer.run(batch)), checked_batches(batches), at_once):
        observer.add(batch, found)
        watch(batch, outputs)
        images += len(batch)
        progress(images)
    if not images:
        raise DataError("no images to certify on", allowed="at least one")
    return observer.observed(), images


class _Observer:
    """Runs a graph on batches, and merges what it finds.

    Attributes:
        totals: what was observed so far, by the probes of what views show.
    """

    def __init__(self, model: onnx.ModelProto, probes: tuple[Probe, ...], threads: int) -> None:
        self.model, self._threads = model, threads
        index = index_graph(model)
        self.sources = {probe: _share_views(index, probe) for probe in probes}
        self.totals: dict[Probe, Observed] = {}
        self._probes: list[Probe] = []
        for probe in dict.fromkeys(self.sources.values()):
            if set(probe.tensors) <= index.constants.keys():
                self.totals[probe] = _observe_array(to_array(index.constants[probe.tensors[0]]), probe)
            else:
                self._probes.append(probe)
        self._graph = InstrumentedGraph(model, {p: "zeros" if p.divides else "ends" for p in self._probes}, threads)
        self._begun = False
        self._counting: InstrumentedGraph | None = None

    def run(self, batch: NDArray[Any]) -> tuple[dict[Probe, Observed], Tensors]:
        """What all probes show on a batch, and the outputs."""
        return self._graph(batch)

    def add(self, batch: NDArray[Any], found: dict[Probe, Observed]) -> None:
        """Add what a batch showed; it is run again for minima if it is the first, and to count what FP16 overflows."""
        overflowing = {p for p, o in found.items() if o.maximum >= OVERFLOW}
        again = self._second_run(overflowing)
        free = not self.model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
        for probe, new in again(batch[:1] if free and not overflowing else batch)[0].items() if again else ():
            found[probe] = new if again and again.probes[probe] == "counted" else replace(found[probe], minimum=new.minimum)
        for probe, new in found.items():
            self.totals[probe] = _merge(self.totals[probe], new) if probe in self.totals else new

    def _second_run(self, overflowing: set[Probe]) -> "InstrumentedGraph | None":
        """The graph that shows what the first one left out of a batch."""
        if not self._begun:
            self._begun = True
            details: dict[Probe, Detail] = {p: "minimum" for p in self._probes if not p.divides}
            details |= {p: "counted" for p in self._probes if p in overflowing}
            return InstrumentedGraph(self.model, details, self._threads) if details else None
        if self._counting is None or not overflowing <= self._counting.probes.keys():
            overflowing = overflowing | (self._counting.probes.keys() if self._counting else set())
            counted: dict[Probe, Detail] = {p: "counted" for p in self._probes if p in overflowing}
            self._counting = InstrumentedGraph(self.model, counted, self._threads) if counted else None
        return self._counting if overflowing else None

    def observed(self) -> dict[Probe, Observed]:
        """Every probe with what was observed of it."""
        return {probe: self.totals[source] for probe, source in self.sources.items()}


def _observe_array(values: NDArray[Any], probe: Probe) -> Observed:
    """A constant; infinity counts as the largest number."""
    numbers = np.asarray(values, np.float64)
    magnitude = np.maximum(numbers, 0) if probe.saturates == "below" else np.abs(numbers)
    nonzero = magnitude[magnitude > 0]
    return Observed(
        maximum=min(float(magnitude.max(initial=0)), LARGEST),
        minimum=float(nonzero.min(initial=np.inf)),
        count=magnitude.size,
        zeros=magnitude.size - nonzero.size,
        overflowing=int((magnitude >= OVERFLOW).sum()),
        vanishing=int((nonzero <= VANISHING).sum()),
    )


def _merge(one: Observed, other: Observed) -> Observed:
    return Observed(
        maximum=max(one.maximum, other.maximum),
        minimum=min(one.minimum, other.minimum),
        count=one.count + other.count,
        zeros=one.zeros + other.zeros,
        overflowing=one.overflowing + other.overflowing,
        vanishing=one.vanishing + other.vanishing,
    )


def _share_views(index: GraphIndex, probe: Probe) -> Probe:
    """The same probe of the tensors that views show."""
    if probe.quantity not in ("value", "square"):
        return probe
    tensor = probe.tensors[0]
    while (node := index.producer(tensor)) is not None and is_operator(node, *VIEWS):
        tensor = node.input[0]
    return replace(probe, tensors=(tensor,))
