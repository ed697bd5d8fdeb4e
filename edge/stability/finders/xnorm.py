"""Find every XNorm in an ONNX graph, however its exporter wrote it.

    a / ||a||        Div(a, n), or Mul(a, Reciprocal(n)), or LpNormalization with p = 2
    n                ReduceL2(a), or Sqrt(s); Expand and Identity in between are skipped
    s                ReduceSumSquare(a), or ReduceSum of Mul(a, a) or of Pow(a, 2)
    eps              Clip or Max (a clamp) or Add (added), with a constant, on n or on s

A LayerNorm does not match: it divides a - mean(a), by a mean of squares. A norm that cannot be judged, or that divides
something else than its argument, is named with the reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import onnx

from calib.errors import GraphError
from calib.graph import TensorType, attribute, index_graph, infer_types, to_array
from edge.stability.observed_ranges import Operand
from edge.stability.unjudged_norm import UnjudgedNorm

_KV_RANKS = (3, 4)
"""Axes of a K^T V whose partial sums are measured: (B, D, D) and (B, H, D, D)."""


@dataclass(frozen=True)
class Eps:
    """What keeps the division finite.

    Attributes:
        kind: "clamp", max(n, eps), or "added", n + eps.
        acts_on: the "norm" or its "square".
        value: the constant in the graph.
        node: name of the node that applies it.
        tensor: name of the constant; empty where it is an attribute.
    """

    kind: Literal["clamp", "added"]
    acts_on: Literal["norm", "square"]
    value: float
    node: str
    tensor: str

    @property
    def on_norm(self) -> float:
        """The value in units of the norm."""
        return self.value if self.acts_on == "norm" else self.value**0.5


@dataclass(frozen=True)
class XNormSite:
    """One XNorm, by the names of its nodes and tensors.

    Attributes:
        name: the node that reduces: ReduceL2, ReduceSum, ReduceSumSquare or LpNormalization.
        operand: "kv" when a product of two activations (K^T V) is normalised, "q" for anything else.
        axis: the normalised axis, negative.
        nodes: what computes in FP32 where the site is an FP32 island: the norm's own nodes in graph order; for "kv" preceded
            by the MatMul that feeds them.
        argument: tensor a that is normalised.
        output: tensor a / ||a||.
        factors: for "kv" the two tensors that are multiplied, else empty.
        eps: what keeps the division finite, none to two of them.
    """

    name: str
    operand: Operand
    axis: int
    nodes: tuple[str, ...]
    argument: str
    output: str
    factors: tuple[str, ...] = ()
    eps: tuple[Eps, ...] = ()


@dataclass(frozen=True)
class _Norm:
    """||a||, the denominator of an XNorm."""

    reducer: onnx.NodeProto
    argument: str
    axes: list[int]
    nodes: tuple[onnx.NodeProto, ...] = ()
    eps: tuple[Eps, ...] = ()


def find_sites(model: onnx.ModelProto, expected: int | None = None, kv_axis: int | None = None) -> tuple[XNormSite, ...]:
    """Every XNorm of a graph in graph order.

    Args:
        model: any ONNX graph, with or without Q/DQ.
        expected: the number that the network must have; another one raises InputError, because a missed site would be a
            norm that is neither checked nor repaired.
        kv_axis: the negative axis along which the network normalises K^T V; another one raises InputError.

    Norms that cannot be judged are left out, see `find_norms`.
    """
    sites, _ = find_norms(model)
    if expected is not None and len(sites) != expected:
        raise GraphError(
            "the graph does not hold the XNorms that the network has",
            found=f"{len(sites)} of {expected}: {', '.join(s.name for s in sites[:6])} ...",
            next_command="ufovit build with --force, or report the exporter's version",
        )
    wrong = [s for s in sites if kv_axis is not None and s.operand == "kv" and s.axis != kv_axis]
    if wrong:
        raise GraphError(
            "K^T V is normalised along another axis than the network's",
            where=", ".join(s.name for s in wrong[:6]),
            found=f"axis {wrong[0].axis} at {len(wrong)} XNorms",
            allowed=f"axis {kv_axis}",
            next_command="export the network again; for weights trained with the other axis, set kv_axis in the checkpoint",
        )
    return sites


def find_norms(model: onnx.ModelProto) -> tuple[tuple[XNormSite, ...], tuple[UnjudgedNorm, ...]]:
    """Every XNorm of a graph in graph order, and the L2 norms that cannot be judged; bodies of If and Loop are not entered."""
    found = list(_Finder(model).norms())
    sites = tuple(norm for norm in found if isinstance(norm, XNormSite))
    return sites, tuple(norm for norm in found if isinstance(norm, UnjudgedNorm))


class _Finder:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.index = model, index_graph(model)

    @cached_property
    def _types(self) -> dict[str, TensorType]:
        try:
            return infer_types(self.model)
        except GraphError:  # shapes are needed for a rank alone, and most axes are counted from the last
            return {}

    def norms(self) -> Iterator[XNormSite | UnjudgedNorm]:
        found: set[str] = set()
        for norm in self._quotient_norms():
            found.add(norm.name)
            yield norm
        for node in self.index.nodes.values():
            reduces = node.op_type in ("ReduceL2", "ReduceSumSquare") and node.input[0] not in self.index.constant_like
            if reduces and self._name(node) not in found:
                yield UnjudgedNorm(self._name(node), "its result does not divide its argument")

    def _quotient_norms(self) -> Iterator[XNormSite | UnjudgedNorm]:
        for node in self.index.nodes.values():
            if node.output[0] in self.index.constant_like:
                continue  # of weights, which are normalised once, when an engine is built
            if node.op_type == "LpNormalization" and int(attribute(node, "p", 2)) == 2:
                yield self._site(node, _Norm(node, node.input[0], [int(attribute(node, "axis", -1))]), ())
            for numerator, denominator, between in self._quotients(node):
                norm = self._norm(denominator)
                if norm is not None and self._plain(norm.argument) == self._plain(numerator):
                    yield self._site(node, norm, between)
                    break

    def _producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that computes a tensor from others; None for inputs and constants, those of Constant nodes too."""
        return None if tensor in self.index.constant_like else self.index.producer(tensor)

    def _name(self, node: onnx.NodeProto) -> str:
        return self.index.names[self.index.producers[node.output[0]]]

    def _quotients(self, node: onnx.NodeProto) -> Iterator[tuple[str, str, tuple[onnx.NodeProto, ...]]]:
        """Numerator, denominator and nodes in between, for every way in which a node may divide."""
        if node.op_type == "Div":
            yield node.input[0], node.input[1], ()
        elif node.op_type == "Mul":
            for numerator, factor in (node.input, reversed(node.input)):
                inverse = self._producer(self._plain(factor))
                if inverse is not None and inverse.op_type == "Reciprocal":
                    yield numerator, inverse.input[0], (inverse,)

    def _plain(self, tensor: str) -> str:
        """The tensor that Identity and Expand nodes pass on."""
        node = self._producer(tensor)
        while node is not None and node.op_type in ("Identity", "Expand"):
            tensor = node.input[0]
            node = self._producer(tensor)
        return tensor

    def _unquantized(self, tensor: str) -> str:
        """The float tensor that a Q/DQ pair stands for."""
        dequantize = self._producer(tensor)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return tensor
        quantize = self._producer(dequantize.input[0])
        return tensor if quantize is None else str(quantize.input[0])

    def _guards(self, tensor: str, acts_on: Literal["norm", "square"]) -> tuple[str, list[onnx.NodeProto], list[Eps]]:
        """Walk up through Identity, Expand and the nodes that apply an eps: the tensor before them, the nodes, the eps."""
        nodes: list[onnx.NodeProto] = []
        guards: list[Eps] = []
        node = self._producer(tensor)
        while node is not None:
            source = node.input[0]
            if node.op_type in ("Clip", "Max", "Add"):
                guard = self._eps(node, acts_on)
                if guard is None:
                    break
                source, eps = guard
                guards.append(eps)
            elif node.op_type not in ("Identity", "Expand"):
                break
            nodes.append(node)
            tensor, node = source, self._producer(source)
        return tensor, nodes, guards

    def _eps(self, node: onnx.NodeProto, acts_on: Literal["norm", "square"]) -> tuple[str, Eps] | None:
        """The guarded tensor and the eps of a Clip, Max or Add with one constant; None for anything else."""
        name = self._name(node)
        if node.op_type == "Clip" and len(node.input) == 1:  # opset < 11: the bounds are attributes
            low = attribute(node, "min", None)
            return None if low is None else (node.input[0], Eps("clamp", acts_on, float(low), name, ""))
        constants = [t for t in node.input if t in self.index.constants]
        others = [t for t in node.input if t and t not in self.index.constants]
        if node.op_type == "Clip":
            constants = [node.input[1]] if node.input[1] in self.index.constants else []
        if len(constants) != 1 or len(others) != 1:
            return None
        values = to_array(self.index.constants[constants[0]])
        if values.size != 1:
            return None
        kind: Literal["clamp", "added"] = "added" if node.op_type == "Add" else "clamp"
        return others[0], Eps(kind, acts_on, float(values.reshape(-1)[0]), name, constants[0])

    def _norm(self, denominator: str) -> _Norm | None:
        tensor, nodes, eps = self._guards(denominator, "norm")
        root = self._producer(tensor)
        if root is None:
            return None
        if root.op_type == "ReduceL2":
            return _Norm(root, root.input[0], self._axes(root), (*nodes, root), tuple(eps))
        if root.op_type != "Sqrt":
            return None
        tensor, more, squared = self._guards(root.input[0], "square")
        reducer = self._producer(tensor)
        if reducer is None or reducer.op_type not in ("ReduceSum", "ReduceSumSquare"):
            return None
        chain, argument = (*nodes, root, *more, reducer), str(reducer.input[0])
        if reducer.op_type == "ReduceSum":
            square = self._producer(argument)
            if square is None or not self._squares(square):
                return None
            chain, argument = (*chain, square), str(square.input[0])
        return _Norm(reducer, argument, self._axes(reducer), chain, (*eps, *squared))

    def _squares(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Pow" and node.input[1] in self.index.constants:
            return bool(to_array(self.index.constants[node.input[1]]).ravel().tolist() == [2])
        return node.op_type == "Mul" and bool(node.input[0] == node.input[1])

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        """Axes of a reduction: an attribute before opset 18 (13 for ReduceSum), a constant input since."""
        axes = list(attribute(node, "axes", []))
        if len(node.input) > 1 and node.input[1] in self.index.constants:
            axes = to_array(self.index.constants[node.input[1]]).tolist()
        return [int(a) for a in axes]

    def _site(self, divide: onnx.NodeProto, norm: _Norm, between: tuple[onnx.NodeProto, ...]) -> XNormSite | UnjudgedNorm:
        name, argument = self._name(norm.reducer), self._plain(norm.argument)
        shape = self._types[argument].shape if argument in self._types else None
        axis = norm.axes[0] if len(norm.axes) == 1 else 0
        if axis >= 0 and shape is not None:
            axis -= len(shape)
        source, output = self._producer(argument), str(divide.output[0])
        is_kv = source is not None and source.op_type == "MatMul" and not set(source.input) & self.index.constant_like
        reason = _unjudged(norm, argument, axis, shape, is_kv=is_kv)
        if reason:
            return UnjudgedNorm(name, reason)
        own = {self.index.producers[n.output[0]] for n in (*norm.nodes, *between, divide)}
        nodes = tuple(self.index.names[at] for at in sorted(own))
        if source is None or not is_kv:
            return XNormSite(name, "q", axis, nodes, argument, output, (), norm.eps)
        factors = tuple(self._unquantized(tensor) for tensor in source.input)
        return XNormSite(name, "kv", axis, (self._name(source), *nodes), argument, output, factors, norm.eps)


def _unjudged(norm: _Norm, argument: str, axis: int, shape: tuple[int | None, ...] | None, *, is_kv: bool) -> str:
    """Why a norm cannot be judged; empty for one that can. `axis`: negative where the rank is known."""
    if len(norm.axes) != 1:
        return f"it reduces over axes {norm.axes}, not over one" if norm.axes else "it reduces over no constant axis"
    if axis >= 0:
        return f"the rank of {argument} is not known, and the axis is counted from the first"
    if shape is not None and axis <= -len(shape):
        return "it normalises over the batch"
    if is_kv and ((shape is not None and len(shape) not in _KV_RANKS) or axis not in (-1, -2)):
        return f"a product of two activations of shape {shape}, normalised along axis {axis}"
    return ""
