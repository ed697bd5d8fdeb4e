"""Q/DQ written into a float graph, and read back.

    activation   x -> QuantizeLinear -> DequantizeLinear -> every quantized consumer; other consumers keep x
    weight       int8 constant -> DequantizeLinear -> consumer; the float constant goes unless something else reads it

INT8 symmetric, zero-point 0, range [-127, 127]; scales are FP32 numbers that FP16 holds exactly. Biases stay in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calib.calibration_table import REMAKE, CalibrationTable
from calib.errors import InputError
from calib.graph import GraphIndex, attribute, index_graph, to_array
from calib.qdq_placement import QuantPlan, QuantPoint
from calib.scales import QMAX, weight_scales

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class QdqInfo:
    """How a tensor is quantized in a graph.

    Attributes:
        kind: "activation" for a Q/DQ pair, "weight" for a DequantizeLinear on a constant.
        scale: one number per tensor, or one per channel.
        axis: channel axis where there is more than one scale.
        dtype: ONNX name of the quantized type, "INT8".
    """

    kind: Literal["activation", "weight"]
    scale: tuple[float, ...]
    axis: int | None
    dtype: str


def insert_qdq(model: onnx.ModelProto, table: CalibrationTable, plan: QuantPlan) -> onnx.ModelProto:
    """A copy of `model` with Q/DQ at every point of `plan`. Equal inputs give equal bytes, see `serialize`.

    Raises InputError for a planned tensor without a scale and for a plan that does not fit the graph.
    """
    check_plan(model, table, plan)
    index = index_graph(model)
    writer = _Writer(model, index)
    for tensor in plan.activations:
        writer.add_activation(tensor, table.tensors[tensor].scale)
    for point in plan.points:
        if point.kind == "weight":
            writer.add_weight(point)
    return writer.finish(plan, table)


def check_plan(model: onnx.ModelProto, table: CalibrationTable, plan: QuantPlan) -> None:
    """Raises InputError for a planned tensor without a scale and for a plan that does not fit the graph."""
    missing = [name for name in plan.activations if name not in table.tensors]
    if missing:
        raise InputError(
            "planned tensors have no scale",
            found=f"{len(missing)} tensors: {', '.join(missing[:8])}",
            allowed="a table made for this graph and this scheme",
            next_command=REMAKE,
        )
    index = index_graph(model)
    nodes = dict(zip(index.names, model.graph.node, strict=True))
    for p in plan.points:
        inputs = nodes[p.node].input if p.node in nodes else ()
        fits = p.input_index < len(inputs) and inputs[p.input_index] == p.tensor
        if not fits or (p.kind == "weight" and p.tensor not in index.constants):
            raise InputError(
                "plan was made for another graph",
                where=f"node {p.node}, input {p.input_index}",
                found=f"no {p.kind} {p.tensor}",
            )


def read_qdq(model: onnx.ModelProto) -> dict[str, QdqInfo]:
    """Quantized tensors of a graph in graph order: input of QuantizeLinear, or constant under DequantizeLinear -> its scale.

    Raises InputError for a scale that is no constant.
    """
    index = index_graph(model)
    found: dict[str, QdqInfo] = {}
    for name, node in zip(index.names, model.graph.node, strict=True):
        on_constant = node.op_type == DEQUANTIZE and node.input[0] in index.constants
        if node.op_type != QUANTIZE and not on_constant:
            continue
        if node.input[1] not in index.constants:
            raise InputError("scale is no constant", where=f"node {name}", found=node.input[1])
        scale = np.atleast_1d(to_array(index.constants[node.input[1]]).astype(np.float64))
        code = index.constants[node.input[0]].data_type if on_constant else _zero_point_type(node, index)
        found[node.input[0]] = QdqInfo(
            kind="weight" if on_constant else "activation",
            scale=tuple(float(s) for s in scale),
            axis=int(attribute(node, "axis", 1)) if scale.size > 1 else None,
            dtype=onnx.TensorProto.DataType.Name(code),
        )
    return found


def serialize(model: onnx.ModelProto) -> bytes:
    """Bytes of a model, equal for equal models within one version of protobuf."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def quantize_weight(weight: NDArray[Any], axis: int, tensor: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Per-channel symmetric INT8: (quantized, like `weight`; scales (channels,)) with weight ~ quantized * scale along `axis`.

    scale_c = FP16-rounded-up(max |w_c| / 127), q = clip(round_half_even(w / scale_c), -127, 127), in float32 as
    QuantizeLinear has it.
    """
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scales = weight_scales(np.abs(weight).max(axis=others), tensor)
    quantized = np.clip(np.rint(weight.astype(np.float32) / scales.reshape(_along(axis, weight.ndim))), -QMAX, QMAX)
    return quantized.astype(np.int8), scales


def dequantize_weight(values: NDArray[np.int8], scales: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """What an INT8 weight of `quantize_weight` stands for: values * scales along `axis`, exact in float32."""
    return np.asarray(values * scales.reshape(_along(axis, values.ndim)))


def _along(axis: int, ndim: int) -> list[int]:
    """Shape in which one number per channel broadcasts along an axis."""
    return [-1 if a == axis else 1 for a in range(ndim)]


def _zero_point_type(node: onnx.NodeProto, index: GraphIndex) -> int:
    if len(node.input) > 2 and node.input[2] in index.constants:
        return index.constants[node.input[2]].data_type
    return int(attribute(node, "output_dtype", 0)) or int(onnx.TensorProto.UINT8)


class _Writer:
    """Collects new nodes and constants, then rewrites a copy of the graph once."""

    def __init__(self, model: onnx.ModelProto, index: GraphIndex) -> None:
        self.index = index
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.taken = {n for node in model.graph.node for n in (*node.input, *node.output, node.name)}
        self.taken.update(v.name for v in (*model.graph.input, *model.graph.initializer))
        self.before: dict[int, list[onnx.NodeProto]] = {}
        self.constants: list[onnx.TensorProto] = []
        self.replacement: dict[tuple[str, int | None], str] = {}
        self.zero_point = self._constant("qdq_zero_point", np.zeros((), np.int8))

    def add_activation(self, tensor: str, scale: float) -> None:
        """One pair right behind the tensor's producer."""
        scale_name = self._constant(f"{tensor}_scale", np.asarray(scale, np.float32))
        quantized, dequantized = self._name(f"{tensor}_quantized"), self._name(f"{tensor}_dequantized")
        self.replacement[tensor, None] = dequantized
        self.before.setdefault(self.index.producers.get(tensor, -1) + 1, []).extend(
            (
                helper.make_node(
                    QUANTIZE, [tensor, scale_name, self.zero_point], [quantized], name=self._name(f"{tensor}/{QUANTIZE}")
                ),
                helper.make_node(
                    DEQUANTIZE,
                    [quantized, scale_name, self.zero_point],
                    [dequantized],
                    name=self._name(f"{tensor}/{DEQUANTIZE}"),
                ),
            )
        )

    def add_weight(self, point: QuantPoint) -> None:
        """One INT8 constant per weight and axis, dequantized right before its first consumer."""
        if (point.tensor, point.axis) in self.replacement or point.axis is None:
            return
        values, scales = quantize_weight(to_array(self.index.constants[point.tensor]), point.axis, point.tensor)
        inputs = [
            self._constant(f"{point.tensor}_quantized", values),
            self._constant(f"{point.tensor}_scale", scales),
            self._constant(f"{point.tensor}_zero_point", np.zeros(scales.shape, np.int8)),
        ]
        dequantized = self._name(f"{point.tensor}_dequantized")
        self.replacement[point.tensor, point.axis] = dequantized
        name = self._name(f"{point.tensor}/{DEQUANTIZE}")
        first = self.index.consumers[point.tensor][0]
        self.before.setdefault(first, []).append(
            helper.make_node(DEQUANTIZE, inputs, [dequantized], name=name, axis=point.axis)
        )

    def finish(self, plan: QuantPlan, table: CalibrationTable) -> onnx.ModelProto:
        """Rewire the planned inputs, place the new nodes, drop constants that nothing reads any more."""
        graph = self.model.graph
        position = {name: i for i, name in enumerate(self.index.names)}
        for p in plan.points:
            graph.node[position[p.node]].input[p.input_index] = self.replacement[p.tensor, p.axis]
        nodes = [n for i, old in enumerate(graph.node) for n in (*self.before.get(i, ()), old)]
        weights = {p.tensor for p in plan.points if p.kind == "weight"}
        read = {name for node in nodes for name in node.input} | {v.name for v in graph.output}
        gone = weights - read
        kept = [n for n in nodes if not (n.op_type == "Constant" and n.output[0] in gone)]
        initializers = [t for t in graph.initializer if t.name not in gone] + self.constants
        inputs = [v for v in graph.input if v.name not in gone]
        del graph.node[:], graph.initializer[:], graph.input[:]
        graph.node.extend(kept)
        graph.initializer.extend(initializers)
        graph.input.extend(inputs)
        self._stamp(table)
        return self.model

    def _stamp(self, table: CalibrationTable) -> None:
        stamps = {"calib.method": table.method, "calib.onnx_sha256": table.onnx_sha256}
        if table.synthetic:
            stamps["calib.synthetic"] = "true"
        for key, value in stamps.items():
            self.model.metadata_props.add(key=key, value=value)

    def _constant(self, wish: str, values: NDArray[Any]) -> str:
        name = self._name(wish)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def _name(self, wish: str) -> str:
        name, n = wish, 1
        while name in self.taken:
            n += 1
            name = f"{wish}_{n}"
        self.taken.add(name)
        return name
