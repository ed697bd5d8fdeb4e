"""Write out operators with statistics as a target computes them that does not widen to FP32: every step rounded to FP16.

r(.) rounds to FP16 where the target computes the elements in FP16; S(.) sums over the operator's axes, pairwise and rounded
after every addition where the target accumulates in FP16, else in FP32 (`engines.rounded_nodes`); M(x) = r(S(x) / n).

    ReduceSum, ReduceL1     S(x), S(|x|)                  ReduceMean, GlobalAveragePool   M(x)
    ReduceSumSquare         S(r(x^2))                     ReduceL2                        r(sqrt(S(r(x^2))))
    ReduceLogSum            r(log(S(x)))                  ReduceLogSumExp                 r(m + r(log(S(r(exp(r(x - m)))))))
    Softmax                 p = r(e / S(e)), e = r(exp(r(x - m))), m the largest x        LogSoftmax    r(log(p))
    LpNormalization         r(x / r(sqrt(S(r(x^2))))), or r(x / S(|x|))
    InstanceNormalization, GroupNormalization
                            d = r(x - M(x)), y = r(r(r(d / r(sqrt(r(M(r(d^2)) + eps)))) * scale) + bias)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calib.graph import attribute
from engines.rounded_nodes import RoundedNodes

REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare")


@dataclass(frozen=True)
class Inside:
    """What an operator computes inside in FP16: what it adds up, and the sum."""

    half_elements: bool
    half_sums: bool

    def __bool__(self) -> bool:
        return self.half_elements or self.half_sums


class Statistics:
    """Add one operator, written out, to a graph. The result is rounded to FP16 in every case."""

    def __init__(self, out: RoundedNodes, inside: Inside) -> None:
        self.out, self.inside = out, inside

    def _element(self, operator: str, inputs: Sequence[str], output: str) -> str:
        return (self.out.add_rounded if self.inside.half_elements else self.out.add)(operator, inputs, output)

    def _lengths(self, tensor: str, axes: Sequence[int]) -> dict[int, int]:
        """Axes of a tensor with their lengths, which only sums in FP16 need."""
        return {axis: self.out.length(tensor, axis) if self.inside.half_sums else 0 for axis in axes}

    def _sum(self, source: str, name: str, lengths: Mapping[int, int]) -> str:
        """The sum over axes, kept."""
        if not self.inside.half_sums:
            axes = self.out.integers(f"{name}/axes", list(lengths))
            return self.out.add_rounded("ReduceSum", [source, axes], f"{name}/sum", keepdims=1)
        for axis, length in lengths.items():
            source = self.out.pairwise_sum(source, f"{name}/{axis}", axis, length)
        return source

    def _mean(self, source: str, name: str, lengths: Mapping[int, int]) -> str:
        """The mean over axes, kept."""
        if not self.inside.half_sums:
            axes = self.out.integers(f"{name}/axes", list(lengths))
            return self.out.add_rounded("ReduceMean", [source, axes], f"{name}/mean", keepdims=1)
        count = self.out.number(f"{name}/count", math.prod(lengths.values()))
        return self.out.add_rounded("Div", [self._sum(source, name, lengths), count], f"{name}/mean")

    def _exponentials(self, source: str, name: str, axes: Sequence[int]) -> tuple[str, str]:
        """exp(x - m) and m, the largest x over `axes`."""
        largest = self.out.add("ReduceMax", [source, self.out.integers(f"{name}/max_axes", axes)], f"{name}/max", keepdims=1)
        shifted = self._element("Sub", [source, largest], f"{name}/shifted")
        return self._element("Exp", [shifted], f"{name}/exp"), largest

    def reduce(self, node: onnx.NodeProto, axes: Sequence[int]) -> None:
        """Add a reduction over `axes`."""
        source, target, operator = node.input[0], node.output[0], node.op_type
        result, largest = source, ""
        if operator in ("ReduceL2", "ReduceSumSquare"):
            result = self._element("Mul", [source, source], f"{target}/square")
        elif operator == "ReduceL1":
            result = self.out.add("Abs", [source], f"{target}/magnitude")
        elif operator == "ReduceLogSumExp":
            result, largest = self._exponentials(source, target, axes)
        result = (self._mean if operator == "ReduceMean" else self._sum)(result, target, self._lengths(source, axes))
        if operator == "ReduceL2":
            result = self.out.add_rounded("Sqrt", [result], f"{target}/root")
        elif operator.startswith("ReduceLog"):
            result = self.out.add_rounded("Log", [result], f"{target}/log")
        if largest:
            result = self.out.add_rounded("Add", [result, largest], f"{target}/shifted_back")
        if int(attribute(node, "keepdims", 1)):
            self.out.add("Identity", [result], target)
        else:
            self.out.add("Squeeze", [result, self.out.integers(f"{target}/axes_removed", axes)], target)

    def softmax(self, node: onnx.NodeProto) -> None:
        """Add a Softmax or a LogSoftmax."""
        source, target, axis = node.input[0], node.output[0], int(attribute(node, "axis", -1))
        exponentials, _ = self._exponentials(source, target, [axis])
        total = self._sum(exponentials, target, self._lengths(source, [axis]))
        if node.op_type == "Softmax":
            self.out.add_rounded("Div", [exponentials, total], target)
        else:
            share = self.out.add_rounded("Div", [exponentials, total], f"{target}/share")
            self.out.add_rounded("Log", [share], target)

    def lp_normalization(self, node: onnx.NodeProto) -> None:
        """Add an LpNormalization."""
        source, target = node.input[0], node.output[0]
        lengths = self._lengths(source, [int(attribute(node, "axis", -1))])
        if int(attribute(node, "p", 2)) == 1:
            norm = self._sum(self.out.add("Abs", [source], f"{target}/magnitude"), target, lengths)
        else:
            square = self._element("Mul", [source, source], f"{target}/square")
            norm = self.out.add_rounded("Sqrt", [self._sum(square, target, lengths)], f"{target}/norm")
        self.out.add_rounded("Div", [source, norm], target)

    def global_average(self, node: onnx.NodeProto) -> None:
        """Add a GlobalAveragePool."""
        source, target = node.input[0], node.output[0]
        axes = range(2, len(self.out.shape(source)))
        self.out.add("Identity", [self._mean(source, target, self._lengths(source, axes))], target)

    def channel_norm(self, node: onnx.NodeProto) -> None:
        """Add an InstanceNormalization, or a GroupNormalization of opset 21, whose scale and bias have a value per channel."""
        (source, scale, bias), target = node.input, node.output[0]
        fixed = [self.out.length(source, axis) for axis in range(1, len(self.out.shape(source)))]
        groups = int(attribute(node, "num_groups", fixed[0]))
        like = f"{target}/grouped"
        length = math.prod(fixed) // groups
        grouped = self.out.add("Reshape", [source, self.out.integers(f"{like}/shape", [0, groups, length])], like)
        mean = self._mean(grouped, f"{target}/of_values", {-1: length})
        deviation = self._element("Sub", [grouped, mean], f"{target}/deviation")
        square = self._element("Mul", [deviation, deviation], f"{target}/square")
        variance = self._mean(square, f"{target}/of_squares", {-1: length})
        eps = self.out.number(f"{target}/eps", self._held(float(attribute(node, "epsilon", 1e-5))))
        spread = self._element("Sqrt", [self._element("Add", [variance, eps], f"{target}/guarded")], f"{target}/spread")
        unit = self.out.add_rounded("Div", [deviation, spread], f"{target}/unit")
        unit = self.out.add("Reshape", [unit, self.out.integers(f"{target}/shape", [0, *fixed])], f"{target}/channels")
        per_channel = self.out.integers(f"{target}/per_channel", [-1, *[1] * (len(fixed) - 1)])
        factor = self.out.add("Reshape", [scale, per_channel], f"{target}/scale")
        shift = self.out.add("Reshape", [bias, per_channel], f"{target}/bias")
        scaled = self.out.add_rounded("Mul", [unit, factor], f"{target}/scaled")
        self.out.add_rounded("Add", [scaled, shift], target)

    def _held(self, value: float) -> float:
        """A constant as the operator holds it."""
        return float(np.float16(value)) if self.inside.half_elements else value


WRITTEN_OUT: dict[str, Callable[[Statistics, onnx.NodeProto], None]] = {
    "Softmax": Statistics.softmax,
    "LogSoftmax": Statistics.softmax,
    "LpNormalization": Statistics.lp_normalization,
    "GlobalAveragePool": Statistics.global_average,
    "InstanceNormalization": Statistics.channel_norm,
    "GroupNormalization": Statistics.channel_norm,
}
"""Operators other than reductions."""
