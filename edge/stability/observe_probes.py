"""Observe probes on images, in memory that does not grow with their number: the graph itself computes the figures.

Nodes that reduce are appended to a copy of the graph, so that only single numbers leave it:

    all probes           the largest and the smallest number, how many there are
    divisors, counted    also the smallest magnitude other than zero, zeros, and what vanishes in FP16
    overflows, counted   the same and what overflows, from the batch on in which FP16 overflows
    the others           that smallest magnitude on the first image alone

Views share the figures of what they show. Constants are observed without a run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calib.errors import DataError
from calib.graph import GraphIndex, index_graph, to_array
from calib.ort_session import TappedGraph, checked_batches
from calib.parallel import ordered_map, shared_cores
from edge.onnx_import.graph_edit import is_operator
from edge.stability.finders.site_graph import VIEWS
from edge.stability.float_formats import FP16
from edge.stability.site import Observed, Probe

OVERFLOW = float(FP16.largest * (1 + 2.0 ** -(FP16.significant_bits + 1)))
"""From here on FP16 rounds to infinity."""
VANISHING = FP16.smallest_subnormal / 2
"""Up to here FP16 rounds to zero."""
_LARGEST = float(np.finfo(np.float32).max)
_NAMED_AT_ONCE = 16
_SQUARED = ("square", "squared deviation")


_Detail = Literal["ends", "minimum", "zeros", "counted"]


@dataclass(frozen=True)
class _Figures:
    """The outputs of one probe in an instrumented graph: names of single numbers, by what they are."""

    probe: Probe
    outputs: Mapping[str, str]


def observe_probes(
    model: onnx.ModelProto,
    probes: Iterable[Probe],
    batches: Iterable[NDArray[Any]],
    progress: Callable[[int], None] = lambda _images: None,
) -> tuple[dict[Probe, Observed], int]:
    """Observe probes over all images, and count the images.

    Args:
        model: FP32 graph with one input; left as it is.
        probes: any, of tensors of this graph.
        batches: images as the graph takes them (B, ...).
        progress: called with the number of images done so far.

    Raises DataError for NaN or infinity in FP32 already, naming the tensor, and where there are no images; GraphError for a
    probe of a tensor that the graph does not have.
    """
    at_once, threads = shared_cores()
    observer = _Observer(model, tuple(dict.fromkeys(probes)), threads)
    images = 0
    for batch, found in ordered_map(lambda batch: (batch, observer.run(batch)), checked_batches(batches), at_once):
        observer.add(batch, found)
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
        self._graph = _Instrumented(model, {p: "zeros" if p.divides else "ends" for p in self._probes}, threads)
        self._overflowing: _Instrumented | None = None
        self._minima: dict[Probe, float] = {}

    def run(self, batch: NDArray[Any]) -> dict[Probe, Observed]:
        """What all probes show on a batch."""
        return self._graph(batch)

    def add(self, batch: NDArray[Any], found: dict[Probe, Observed]) -> None:
        """Add what a batch showed; it is run again to count in the tensors that FP16 overflows."""
        if not self._minima:
            rest: dict[Probe, _Detail] = {p: "minimum" for p in self._probes if not p.divides}
            free = not self.model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
            first = _Instrumented(self.model, rest, self._threads)(batch[:1] if free else batch)
            self._minima = {probe: figures.minimum for probe, figures in first.items()}
        found = {p: replace(o, minimum=self._minima.get(p, o.minimum)) for p, o in found.items()}
        overflowing = {p for p, o in found.items() if o.maximum >= OVERFLOW}
        if overflowing:
            if self._overflowing is None or not overflowing <= self._overflowing.probes:
                known = overflowing | (self._overflowing.probes if self._overflowing else set())
                self._overflowing = _Instrumented(self.model, {p: "counted" for p in self._probes if p in known}, self._threads)
            found |= self._overflowing(batch)
        for probe, new in found.items():
            self.totals[probe] = _merge(self.totals[probe], new) if probe in self.totals else new

    def observed(self) -> dict[Probe, Observed]:
        """Every probe with what was observed of it."""
        return {probe: self.totals[source] for probe, source in self.sources.items()}


class _Instrumented:
    """A graph that computes figures of probes. Call: batch -> {probe: Observed}."""

    def __init__(self, model: onnx.ModelProto, probes: Mapping[Probe, _Detail], threads: int) -> None:
        self.probes = set(probes)
        self._original = model
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self._products = {tuple(n.input): str(n.output[0]) for n in model.graph.node if n.op_type == "MatMul"}
        figures = [_Figures(probe, self._add_probe(probe, detail)) for probe, detail in probes.items()]
        self._figures = tuple(figures)
        outputs = [v.name for v in model.graph.output if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
        self._nan = tuple(self._has_nan(name) for name in outputs)
        instrumented = onnx.ModelProto()
        instrumented.CopyFrom(model)
        instrumented.graph.node.extend(self._nodes)
        instrumented.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in self._constants.items())
        taps = [*dict.fromkeys(name for item in figures for name in item.outputs.values()), *self._nan]
        self._graph = TappedGraph(instrumented, taps, threads=threads, as_written=True)

    def __call__(self, batch: NDArray[Any]) -> dict[Probe, Observed]:
        numbers = {name: float(value) for name, value in self._graph(batch).items()}
        found = {figures.probe: _read(figures, numbers) for figures in self._figures}
        if any(numbers[flag] for flag in self._nan):
            raise _not_finite_error(_first_nan(self._original, batch))
        return found

    def _op(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        key = (op_type, *inputs, *sorted(attributes.items()))
        if key not in self._made:
            self._made[key] = output = f"observe/{len(self._made)}/{op_type}"
            self._nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return self._made[key]

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self._constants[f"observe/{name}"] = values
        return f"observe/{name}"

    def _reduce(self, op_type: str, tensor: str, axes: tuple[int, ...] = (), *, keep: int = 0) -> str:
        inputs = [tensor, self._constant(f"axes{list(axes)}", np.array(axes, np.int64))] if axes else [tensor]
        return self._op(op_type, inputs, keepdims=keep)

    def _add_probe(self, probe: Probe, detail: _Detail) -> dict[str, str]:
        """Add the nodes that reduce the quantity of a probe; their outputs, by what they are."""
        tensor, finished = self._quantity(probe)
        outputs: dict[str, str] = {}
        if detail != "minimum":
            outputs |= {"largest": self._reduce("ReduceMax", tensor), "smallest": self._reduce("ReduceMin", tensor)}
            outputs["count"] = self._op("Size", [tensor])
        if detail != "ends":
            magnitude = self._op("Abs", [tensor])
            is_zero = self._op("Equal", [magnitude, self._number("zero", 0.0)])
            nonzero = self._op("Where", [is_zero, self._number("infinity", np.inf), magnitude])
            outputs["minimum"] = self._reduce("ReduceMin", nonzero)
        if detail in ("zeros", "counted"):
            root = 0.5 if probe.quantity in _SQUARED else 1.0
            outputs["zeros"] = self._count(is_zero)
            least = self._number(f"least{root}", VANISHING**root)
            outputs["lost"] = self._count(self._op("LessOrEqual", [magnitude, least]))
        if detail == "counted":
            limit = self._number(f"limit{root}", OVERFLOW**root)
            outputs["overflowing"] = self._count(self._op("GreaterOrEqual", [self._op("Abs", [finished]), limit]))
        return outputs

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _count(self, flags: str) -> str:
        return self._reduce("ReduceSum", self._op("Cast", [flags], to=int(onnx.TensorProto.INT32)))

    def _quantity(self, probe: Probe) -> tuple[str, str]:
        """The tensor to reduce, and of sums the finished ones; elements are squared after they were reduced."""
        first, axes = probe.tensors[0], probe.axes
        if probe.quantity in ("value", "square"):
            return first, first
        if probe.quantity == "partial sum":
            finished = self._products.get(probe.tensors) or self._op("MatMul", probe.tensors)
            return self._largest_partial(self._op("MatMul", [self._op("Abs", [t]) for t in probe.tensors]), finished)
        if probe.quantity == "sum":
            summed = self._reduce("ReduceSum", first, axes, keep=1)
            return self._largest_partial(self._reduce("ReduceL1", first, axes, keep=1), summed)
        if probe.quantity != "sum of squares":
            first = self._op("Sub", [first, self._reduce("ReduceMean", first, axes, keep=1)])
        squares = probe.quantity in ("sum of squares", "sum of squared deviations")
        first = self._reduce("ReduceSumSquare", first, axes, keep=1) if squares else first
        return first, first

    def _largest_partial(self, absolute: str, finished: str) -> tuple[str, str]:
        twice = self._op("Add", [absolute, self._op("Abs", [finished])])
        return self._op("Mul", [twice, self._number("half", 0.5)]), finished

    def _has_nan(self, tensor: str) -> str:
        return self._reduce("ReduceMax", self._op("Cast", [self._op("IsNaN", [tensor])], to=int(onnx.TensorProto.INT32)))


def _read(figures: _Figures, numbers: Mapping[str, float]) -> Observed:
    """The figures of one probe on one batch. Raises DataError for a stored number that is not finite in FP32 already."""
    probe, got = figures.probe, {key: numbers[name] for key, name in figures.outputs.items()}
    ends = np.array([got.get("smallest", 0.0), got.get("largest", 0.0)])
    if probe.saturates == "below":
        ends = np.maximum(ends, 0)
    if probe.saturates == "both":
        ends = np.clip(ends, -_LARGEST, _LARGEST)
    if probe.quantity == "value" and not np.isfinite(ends).all():
        raise _not_finite_error(probe.tensors[0])
    power = 2.0 if probe.quantity in _SQUARED else 1.0
    with np.errstate(over="ignore"):
        maximum, minimum = np.abs(ends).max() ** power, np.float64(got.get("minimum", np.inf)) ** power
    zeros = round(got.get("zeros", 0))
    return Observed(
        maximum=min(float(maximum), _LARGEST),
        minimum=float(minimum),
        count=round(got.get("count", 0)),
        zeros=zeros,
        overflowing=round(got.get("overflowing", 0)),
        vanishing=round(got.get("lost", zeros)) - zeros,
    )


def _observe_array(values: NDArray[Any], probe: Probe) -> Observed:
    """A constant; infinity counts as the largest number."""
    numbers = np.asarray(values, np.float64)
    magnitude = np.maximum(numbers, 0) if probe.saturates == "below" else np.abs(numbers)
    nonzero = magnitude[magnitude > 0]
    return Observed(
        maximum=min(float(magnitude.max(initial=0)), _LARGEST),
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


def _first_nan(model: onnx.ModelProto, batch: NDArray[Any]) -> str:
    """The first tensor of the graph, in its order, that holds NaN on a batch; its last one where no run shows one."""
    names = [name for node in model.graph.node for name in node.output if name]
    for at in range(0, len(names), _NAMED_AT_ONCE):
        for name, values in TappedGraph(model, names[at : at + _NAMED_AT_ONCE])(batch).items():
            if values.dtype.kind == "f" and np.isnan(values).any():
                return str(name)
    return str(names[-1])


def _not_finite_error(tensor: str) -> DataError:
    return DataError(
        "not a finite number, in FP32 already", where=f"tensor {tensor}", next_command="check the checkpoint and the images"
    )
