"""A graph with nodes that reduce its tensors: it computes the figures of probes, and only single numbers leave it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calib.errors import DataError
from calib.graph_editor import order_readers
from calib.ort_session import TappedGraph
from edge.stability.float_formats import FP16
from edge.stability.site import Observed, Probe

OVERFLOW = float(FP16.largest * (1 + 2.0 ** -(FP16.significant_bits + 1)))
"""From here on FP16 rounds to infinity."""
VANISHING = FP16.smallest_subnormal / 2
"""Up to here FP16 rounds to zero."""
LARGEST = float(np.finfo(np.float32).max)
_NAMED_AT_ONCE = 16
_SQUARED = ("square", "squared deviation")

Tensors = Mapping[str, NDArray[Any]]
Detail = Literal["ends", "minimum", "zeros", "counted"]


@dataclass(frozen=True)
class _Figures:
    """The outputs of one probe in an instrumented graph: names of single numbers, by what they are."""

    probe: Probe
    outputs: Mapping[str, str]


class InstrumentedGraph:
    """A graph that computes figures of probes. Call: batch -> {probe: Observed}, and the graph's `float_outputs`."""

    def __init__(self, model: onnx.ModelProto, probes: Mapping[Probe, Detail], threads: int) -> None:
        self.probes = probes
        self._original = model
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._made: dict[tuple[Any, ...], str] = {}
        self._products = {tuple(n.input): str(n.output[0]) for n in model.graph.node if n.op_type == "MatMul"}
        figures = [_Figures(probe, self._add_probe(probe, detail)) for probe, detail in probes.items()]
        self._figures = tuple(figures)
        self._outputs = float_outputs(model)
        instrumented = onnx.ModelProto()
        instrumented.CopyFrom(model)
        instrumented.graph.node.extend(order_readers(model.graph.node, self._nodes))
        instrumented.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in self._constants.items())
        taps = [*dict.fromkeys(name for item in figures for name in item.outputs.values()), *self._outputs]
        self._graph = TappedGraph(instrumented, taps, threads=threads, as_written=True)

    def __call__(self, batch: NDArray[Any]) -> tuple[dict[Probe, Observed], Tensors]:
        """What the probes show on a batch, and the outputs. Raises DataError for NaN, naming its tensor."""
        numbers = self._graph(batch)
        outputs = {name: numbers.pop(name) for name in self._outputs}
        found = {figures.probe: _read(figures, numbers) for figures in self._figures}
        if any(values.dtype.kind == "f" and np.isnan(values).any() for values in outputs.values()):
            raise _not_finite_error(_first_nan(self._original, batch))
        return found, outputs

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

    def _add_probe(self, probe: Probe, detail: Detail) -> dict[str, str]:
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


def float_outputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the outputs that hold floats; of all of them where none does."""
    outputs = model.graph.output
    floats = tuple(value.name for value in outputs if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
    return floats or tuple(value.name for value in outputs)


def _read(figures: _Figures, numbers: Tensors) -> Observed:
    """The figures of one probe on one batch. Raises DataError for a stored number that is not finite in FP32 already."""
    probe, got = figures.probe, {key: float(numbers[name]) for key, name in figures.outputs.items()}
    ends = np.array([got.get("smallest", 0.0), got.get("largest", 0.0)])
    if probe.saturates == "below":
        ends = np.maximum(ends, 0)
    if probe.saturates == "both":
        ends = np.clip(ends, -LARGEST, LARGEST)
    if probe.quantity == "value" and not np.isfinite(ends).all():
        raise _not_finite_error(probe.tensors[0])
    power = 2.0 if probe.quantity in _SQUARED else 1.0
    with np.errstate(over="ignore"):
        maximum, minimum = np.abs(ends).max() ** power, np.float64(got.get("minimum", np.inf)) ** power
    zeros = round(got.get("zeros", 0))
    return Observed(
        maximum=min(float(maximum), LARGEST),
        minimum=float(minimum),
        count=round(got.get("count", 0)),
        zeros=zeros,
        overflowing=round(got.get("overflowing", 0)),
        vanishing=round(got.get("lost", zeros)) - zeros,
    )


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
