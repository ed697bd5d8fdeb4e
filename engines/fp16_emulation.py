"""Emulate FP16 hardware: a strongly typed FP16 graph -> an FP32 graph with the same values, every rounding included.

ONNX Runtime on a CPU computes FP16 graphs mostly in FP32 and so hides FP16's rounding, flushing and overflow. Here every node
is computed in FP32 and its result rounded to FP16 by a pair of Casts, written r(.):

    FP16 tensor x       an FP32 tensor of FP16 values
    FP16 node           inputs exact, result r(.): infinity beyond 65504, subnormal values below 2^-14
    Cast to FP16        r(.)         Cast to FP32     no change
    MatMul, Conv, Gemm  sums in FP32 (tensor cores with FP32 accumulators), result r(.)
    MatMul of two activations
                        accumulate="fp16": 16 products at a time are added to an accumulator that is rounded after each step, as
                        in tensor cores with FP16 accumulators
    statistics          of reductions, norms and Softmax: rounded at every step (`engines.fp16_statistics`) as far as the target
                        computes them in FP16. Where no table tells: those of ReduceL2, ReduceSum and ReduceSumSquare with
                        accumulate="fp16", all others in FP32
    LayerNormalization, RMSNormalization
                        statistics in FP32 (their stash_type), result r(.)
    pooling windows, CumSum, recurrent operators
                        computed in FP32, result r(.)
    Q/DQ                as in the ONNX standard. Operands of an INT8 layer are exact, as are its INT32 sums; the output of a
                        DequantizeLinear with any other consumer is r(.)

FP32 nodes of the typed graph are not changed. The graph is edited as a protobuf: with onnx-ir it takes longer by more than a
third (docs/engines.md).
"""

from copy import deepcopy
from typing import Literal, Protocol

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from calib.errors import GraphError
from calib.graph import attribute, index_graph, infer_types, to_array
from calib.macs import MAC_OPS
from engines.fp16_statistics import REDUCTIONS, WRITTEN_OUT, Inside, Statistics
from engines.rounded_nodes import RoundedNodes

Accumulate = Literal["fp32", "fp16"]

MMA_DEPTH = 16
"""Products that one tensor core step accumulates (PTX mma.m16n8k16, for FP16 and BF16)."""

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_EXACT_OPS = frozenset({
    "Abs", "Clip", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape",
    "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators whose outputs are input values, up to sign, or a constant: no rounding is needed."""
_HALF_BY_DEFAULT = frozenset({"ReduceL2", "ReduceSum", "ReduceSumSquare"})


class OperatorPrecisions(Protocol):
    """What a target computes inside an FP16 operator: "fp32", "fp16" or "not told"; see `edge.stability.target_precisions`."""

    def elements(self, op_type: str, /) -> str:
        """Type of what an operator adds up."""

    def sums(self, op_type: str, /) -> str:
        """Type of its accumulator."""


def emulated_graph(
    typed: onnx.ModelProto, *, accumulate: Accumulate = "fp16", precisions: OperatorPrecisions | None = None
) -> onnx.ModelProto:
    """Build the FP32 graph that emulates a typed FP16 graph on 16-bit hardware; see the module's docstring.

    Args:
        typed: output of `engines.typed_graph.type_graph`; not modified.
        accumulate: accumulator type of reductions and of products of two activations; "fp32" computes every sum in FP32.
        precisions: what the target computes inside an operator, as far as that is told.

    Raises GraphError if the axes of a reduction are not constant, or the length of an axis summed in FP16 is not fixed in the
    graph.
    """
    return _Emulation(deepcopy(typed), accumulate, precisions).rewrite()


class _Emulation:
    def __init__(self, model: onnx.ModelProto, accumulate: Accumulate, precisions: OperatorPrecisions | None) -> None:
        self.model, self.accumulate, self.precisions = model, accumulate, precisions
        self.types = infer_types(model)
        self.index = index_graph(model)
        self.out = RoundedNodes(self.types)

    def rewrite(self) -> onnx.ModelProto:
        graph = self.model.graph
        for node in list(graph.node):
            self._emulate(node)
        for tensor in graph.initializer:
            if tensor.data_type == _HALF:
                tensor.CopyFrom(numpy_helper.from_array(to_array(tensor).astype(np.float32), tensor.name))
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.out.nodes)
        graph.initializer.extend(self.out.constants)
        return self.model

    def _emulate(self, node: onnx.NodeProto) -> None:
        half = [name for name in node.output if name in self.types and self.types[name].dtype == _HALF]
        if node.op_type == "Cast":
            self._cast(node, to_half=bool(half))
        elif node.op_type == "DequantizeLinear" and self._feeds_int8(node):
            self._dequantize(node)
        elif not half:
            self._round_outputs(node, half)
        elif inside := self._inside(node):
            self._write_out(node, inside)
        elif self._has_half_accumulator(node):
            self._accumulate_product(node)
        else:
            self._round_outputs(node, half)

    def _inside(self, node: onnx.NodeProto) -> Inside:
        """What a node with statistics computes in FP16."""
        operator = node.op_type
        if self.accumulate == "fp32" or (operator not in WRITTEN_OUT and operator not in REDUCTIONS):
            return Inside(half_elements=False, half_sums=False)
        untold = operator in _HALF_BY_DEFAULT
        if self.precisions is None:
            return Inside(untold, untold)
        told = {"fp16": True, "fp32": False}
        return Inside(told.get(self.precisions.elements(operator), untold), told.get(self.precisions.sums(operator), untold))

    def _has_half_accumulator(self, node: onnx.NodeProto) -> bool:
        told = self.precisions is not None and self.precisions.sums(node.op_type) == "fp32"
        return self.accumulate == "fp16" and not told and self._is_activation_product(node)

    def _write_out(self, node: onnx.NodeProto, inside: Inside) -> None:
        statistics = Statistics(self.out, inside)
        if node.op_type in WRITTEN_OUT:
            WRITTEN_OUT[node.op_type](statistics, node)
        elif axes := self._axes(node):
            statistics.reduce(node, axes)
        else:
            self._round_outputs(node, list(node.output))

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        """Axes of a reduction: constants; all of them where the input is left out."""
        given = node.input[1] if len(node.input) > 1 else ""  # an input in every opset that can be typed
        if given and given not in self.index.constants:
            raise GraphError("the axes of a reduction are not constant", where=node.name or node.output[0])
        axes = [int(axis) for axis in to_array(self.index.constants[given]).reshape(-1)] if given else []
        everything = not axes and not attribute(node, "noop_with_empty_axes", 0)
        return list(range(len(self.out.shape(node.input[0])))) if everything else axes

    def _round_outputs(self, node: onnx.NodeProto, half: list[str]) -> None:
        """Copy a node and round its FP16 outputs, unless they are exact already."""
        for item in node.attribute:
            if item.name == "value" and item.t.data_type == _HALF:
                item.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item.t).astype(np.float32)))
        rounded = [] if node.op_type in _EXACT_OPS else half
        for i, name in enumerate(node.output):
            if name in rounded:
                node.output[i] = f"{name}/exact"
        self.out.nodes.append(node)
        for name in rounded:
            self.out.round(f"{name}/exact", name)

    def _is_int8_layer(self, node: onnx.NodeProto) -> bool:
        """Whether both operands come from DequantizeLinear: the products are then summed in INT32."""
        producers = [self.index.producer(name) for name in node.input[:2]]
        return node.op_type in MAC_OPS and all(p is not None and p.op_type == "DequantizeLinear" for p in producers)

    def _is_activation_product(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "MatMul" or set(node.input) & self.index.constant_like or self._is_int8_layer(node):
            return False
        return min(len(self.out.shape(name)) for name in node.input) > 1

    def _feeds_int8(self, node: onnx.NodeProto) -> bool:
        consumers = self.index.consumers.get(node.output[0], ())
        return all(self._is_int8_layer(self.model.graph.node[i]) for i in consumers)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        """Dequantize a constant ahead of time: ONNX Runtime would do it at every run."""
        tensors = [self.index.constants.get(name) for name in node.input if name]
        values = [to_array(tensor) for tensor in tensors if tensor is not None]
        if len(values) < len(tensors) or attribute(node, "block_size", 0):
            self.out.nodes.append(node)
            return
        codes, *parameters = (array.astype(np.float32) for array in values)
        shape = [1] * codes.ndim
        if parameters[0].size > 1:
            shape[int(attribute(node, "axis", 1))] = -1
        scale, *zero = (array.reshape(shape) for array in parameters)
        floats = (codes - zero[0] if zero else codes) * scale
        self.out.constants.append(numpy_helper.from_array(floats, node.output[0]))

    def _cast(self, node: onnx.NodeProto, *, to_half: bool) -> None:
        if to_half:
            self.out.round(node.input[0], node.output[0])
        elif int(attribute(node, "to", 0)) == _FLOAT and self.types[node.input[0]].dtype in (_HALF, _FLOAT):
            self.out.add("Identity", [node.input[0]], node.output[0])
        else:
            self.out.nodes.append(node)

    def _accumulate_product(self, node: onnx.NodeProto) -> None:
        """Add a MatMul whose accumulator is rounded after every MMA_DEPTH products."""
        left, right, target = node.input[0], node.input[1], node.output[0]
        depth, total = self.out.length(left, -1), ""
        sizes = [min(MMA_DEPTH, depth - start) for start in range(0, depth, MMA_DEPTH)]
        parts = (self.out.split(left, f"{target}/left", -1, sizes), self.out.split(right, f"{target}/right", -2, sizes))
        for step, operands in enumerate(zip(*parts, strict=True), 1):
            exact = self.out.add("MatMul", operands, f"{target}/{step}/part")
            if total:
                exact = self.out.add("Add", [total, exact], f"{target}/{step}/exact")
            total = self.out.round(exact, target if step == len(sizes) else f"{target}/{step}/sum")
