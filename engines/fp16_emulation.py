"""Emulate FP16 hardware: a strongly typed FP16 graph -> an FP32 graph with the same values, every rounding included.

ONNX Runtime on a CPU computes FP16 graphs mostly in FP32 and so hides FP16's rounding, flushing and overflow. Here every node
is computed in FP32 and its result rounded to FP16 by a pair of Casts, written r(.):

    FP16 tensor x       an FP32 tensor of FP16 values
    FP16 node           inputs exact, result r(.): infinity beyond 65504, subnormal values below 2^-14
    Cast to FP16        r(.)         Cast to FP32     no change
    MatMul, Conv, Gemm  sums in FP32 (tensor cores with FP32 accumulators), result r(.)
    ReduceL2, ReduceSum, ReduceSumSquare
                        accumulate="fp16": squares rounded, then added pairwise and rounded after every addition, as the
                        threads of a warp do; "fp32": summed in FP32, result r(.)
    MatMul of two activations
                        accumulate="fp16": 16 products at a time are added to an accumulator that is rounded after each step, as
                        in tensor cores with FP16 accumulators
    LayerNormalization  statistics in FP32 (its stash_type), result r(.)
    Q/DQ                as in the ONNX standard. Operands of an INT8 layer are exact, as are its INT32 sums; the output of a
                        DequantizeLinear with any other consumer is r(.)

FP32 nodes of the typed graph are not changed. The graph is edited as a protobuf: with onnx-ir it takes longer by more than a
third (docs/engines.md).
"""

from copy import deepcopy
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.errors import GraphError
from calib.graph import attribute, index_graph, infer_types, to_array
from calib.macs import MAC_OPS

Accumulate = Literal["fp32", "fp16"]

MMA_DEPTH = 16
"""Products that one tensor core step accumulates (PTX mma.m16n8k16, for FP16 and BF16)."""

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_EXACT_OPS = frozenset({
    "Abs", "Clip", "Concat", "Constant", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad",
    "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose outputs are input values, up to sign, or a constant: no rounding is needed."""
_REDUCTIONS = frozenset({"ReduceL2", "ReduceSum", "ReduceSumSquare"})


def emulated_graph(typed: onnx.ModelProto, *, accumulate: Accumulate = "fp16") -> onnx.ModelProto:
    """Build the FP32 graph that emulates a typed FP16 graph on 16-bit hardware; see the module's docstring.

    Args:
        typed: output of `engines.typed_graph.type_graph`; not modified.
        accumulate: accumulator type of reductions and of products of two activations.

    Raises GraphError if the axes of a reduction are not constant, or the length of a summed axis is not fixed in the graph.
    """
    return _Emulation(deepcopy(typed), accumulate).rewrite()


class _Emulation:
    def __init__(self, model: onnx.ModelProto, accumulate: Accumulate) -> None:
        self.model, self.accumulate = model, accumulate
        self.types = infer_types(model)
        self.index = index_graph(model)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def rewrite(self) -> onnx.ModelProto:
        graph = self.model.graph
        for node in list(graph.node):
            self._emulate(node)
        for tensor in graph.initializer:
            if tensor.data_type == _HALF:
                tensor.CopyFrom(numpy_helper.from_array(to_array(tensor).astype(np.float32), tensor.name))
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.constants)
        return self.model

    def _emulate(self, node: onnx.NodeProto) -> None:
        half = [name for name in node.output if name in self.types and self.types[name].dtype == _HALF]
        half_accumulator = self.accumulate == "fp16" and bool(half)
        if node.op_type == "Cast":
            self._cast(node, to_half=bool(half))
        elif node.op_type == "DequantizeLinear" and self._feeds_int8(node):
            self._dequantize(node)
        elif half_accumulator and node.op_type in _REDUCTIONS:
            self._reduce(node)
        elif half_accumulator and self._is_activation_product(node):
            self._accumulate_product(node)
        else:
            self._round_outputs(node, half)

    def _round_outputs(self, node: onnx.NodeProto, half: list[str]) -> None:
        """Copy a node and round its FP16 outputs, unless they are exact already."""
        for item in node.attribute:
            if item.name == "value" and item.t.data_type == _HALF:
                item.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item.t).astype(np.float32)))
        rounded = [] if node.op_type in _EXACT_OPS else half
        for i, name in enumerate(node.output):
            if name in rounded:
                node.output[i] = f"{name}/exact"
        self.nodes.append(node)
        for name in rounded:
            self._round(f"{name}/exact", name)

    def _is_int8_layer(self, node: onnx.NodeProto) -> bool:
        """Whether both operands come from DequantizeLinear: the products are then summed in INT32."""
        producers = [self.index.producer(name) for name in node.input[:2]]
        return node.op_type in MAC_OPS and all(p is not None and p.op_type == "DequantizeLinear" for p in producers)

    def _is_activation_product(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and not set(node.input) & self.index.constant_like and not self._is_int8_layer(node)

    def _feeds_int8(self, node: onnx.NodeProto) -> bool:
        consumers = self.index.consumers.get(node.output[0], ())
        return all(self._is_int8_layer(self.model.graph.node[i]) for i in consumers)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        """Dequantize a constant ahead of time: ONNX Runtime would do it at every run."""
        tensors = [self.index.constants.get(name) for name in node.input if name]
        values = [to_array(tensor) for tensor in tensors if tensor is not None]
        if len(values) < len(tensors) or attribute(node, "block_size", 0):
            self.nodes.append(node)
            return
        codes, *parameters = (array.astype(np.float32) for array in values)
        shape = [1] * codes.ndim
        if parameters[0].size > 1:
            shape[int(attribute(node, "axis", 1))] = -1
        scale, *zero = (array.reshape(shape) for array in parameters)
        floats = (codes - zero[0] if zero else codes) * scale
        self.constants.append(numpy_helper.from_array(floats, node.output[0]))

    def _cast(self, node: onnx.NodeProto, *, to_half: bool) -> None:
        if to_half:
            self._round(node.input[0], node.output[0])
        elif int(attribute(node, "to", 0)) == _FLOAT and self.types[node.input[0]].dtype in (_HALF, _FLOAT):
            self._add("Identity", [node.input[0]], node.output[0])
        else:
            self.nodes.append(node)

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def _round(self, source: str, target: str) -> str:
        """Add target = r(source)."""
        self._add("Cast", [source], f"{target}/half", to=_HALF)
        return self._add("Cast", [f"{target}/half"], target, to=_FLOAT)

    def _constant(self, name: str, values: list[int]) -> str:
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _slice(self, source: str, target: str, axis: int, start: int, end: int) -> str:
        ends = [self._constant(f"{target}/{what}", [v]) for what, v in (("start", start), ("end", end), ("axis", axis))]
        return self._add("Slice", [source, *ends], target)

    def _length(self, tensor: str, axis: int) -> int:
        shape = self.types[tensor].shape if tensor in self.types else None
        length = None if shape is None else shape[axis]
        if length is None:
            raise GraphError("the length of a summed axis is not fixed in the graph", where=f"tensor {tensor}, axis {axis}")
        return length

    def _reduce(self, node: onnx.NodeProto) -> None:
        """Add squares, pairwise sums and the root, each rounded. Several axes are summed one after the other."""
        source, target = node.input[0], node.output[0]
        constant = self.index.constants.get(node.input[1]) if len(node.input) > 1 else None
        axes = [] if constant is None else [int(a) for a in to_array(constant)]  # an input in every opset that can be typed
        if not axes:
            raise GraphError("the axes of a reduction are not constant", where=node.name or target)
        current = source
        if node.op_type != "ReduceSum":
            current = self._round(self._add("Mul", [source, source], f"{target}/square_exact"), f"{target}/square")
        for axis in axes:
            current = self._pairwise_sum(current, f"{target}/{axis}", axis, self._length(source, axis))
        if node.op_type == "ReduceL2":
            current = self._round(self._add("Sqrt", [current], f"{target}/root_exact"), f"{target}/root")
        if int(attribute(node, "keepdims", 1)):
            self._add("Identity", [current], target)
        else:
            self._add("Squeeze", [current, self._constant(f"{target}/axes", axes)], target)

    def _pairwise_sum(self, current: str, name: str, axis: int, length: int) -> str:
        while length > 1:
            half, odd = length // 2, length % 2
            step = f"{name}/{length}"
            lower = self._slice(current, f"{step}/lower", axis, 0, half)
            upper = self._slice(current, f"{step}/upper", axis, half, 2 * half)
            total = self._round(self._add("Add", [lower, upper], f"{step}/exact"), f"{step}/sum")
            if odd:
                rest = self._slice(current, f"{step}/rest", axis, 2 * half, length)
                total = self._add("Concat", [total, rest], f"{step}/all", axis=axis)
            current, length = total, half + odd
        return current

    def _accumulate_product(self, node: onnx.NodeProto) -> None:
        """Add a MatMul whose accumulator is rounded after every MMA_DEPTH products."""
        left, right, target = node.input[0], node.input[1], node.output[0]
        depth, total = self._length(left, -1), ""
        for start in range(0, depth, MMA_DEPTH):
            end, step = min(start + MMA_DEPTH, depth), f"{target}/{start}"
            parts = [self._slice(left, f"{step}/left", -1, start, end), self._slice(right, f"{step}/right", -2, start, end)]
            part = self._add("MatMul", parts, f"{step}/part")
            exact = self._add("Add", [total, part], f"{step}/exact") if total else part
            total = self._round(exact, target if end == depth else f"{step}/sum")
