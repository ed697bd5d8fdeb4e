"""Read what nodes compute as algebra, so that one rule covers every order and spelling of it.

product    c * gain * t1^e1 * t2^e2 ...    Mul, Div, Reciprocal, Neg, Sqrt, and Pow with a constant exponent
sum        t + c                           Add and Sub with a constant of one element
square     t * t, t ** 2
clamp      min(max(t, low), high)          Clip, Max, Min, Relu
reduction  ReduceMean, ReduceSum ...       with keepdims, or without and an Unsqueeze of the same axes after it
squares    c * sum t^2                     ReduceSum or ReduceMean of a square, ReduceSumSquare, times constants of one element
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from calib.graph import attribute
from edge.onnx_import.graph_edit import DEFAULT_DOMAINS
from edge.onnx_import.graph_rewriting import Array, GraphRewriting, int_constants

_DEEPEST = 8
"""Nested products that are followed: a written-out operator has at most six, and self-products double at each level."""

_EXPONENTS = {"Mul": (1.0, 1.0), "Div": (1.0, -1.0), "Reciprocal": (-1.0,), "Sqrt": (0.5,), "Neg": (1.0,), "Identity": (1.0,)}
"""Exponents of the operands of the operators that multiply."""


@dataclass
class Product:
    """coefficient * gain * product of tensor ** exponent.

    Attributes:
        coefficient: product of all constants of one element.
        gain: product of all other constants, float64, broadcast among themselves; None without one.
        factors: tensor -> exponent; not zero.
    """

    coefficient: float = 1.0
    gain: Array | None = None
    factors: dict[str, float] = field(default_factory=dict)

    def is_of(self, factors: Mapping[str, float]) -> bool:
        """Whether these are the factors, whatever the constants."""
        return self.factors == factors and math.isfinite(self.coefficient)

    @property
    def constant(self) -> Array | None:
        """coefficient * gain; None where it is 1."""
        if self.gain is not None:
            return np.asarray(self.gain * self.coefficient)
        return None if self.coefficient == 1.0 else np.array(self.coefficient)


@dataclass(frozen=True)
class Reduction:
    """A reduced tensor: of which one, over which axes (negative, ascending), and whether these stay as axes of size 1."""

    node: onnx.NodeProto
    argument: str
    axes: tuple[int, ...]
    keeps_axes: bool


@dataclass(frozen=True)
class Squares:
    """factor * sum of t^2, with t the argument of the reduction; factor > 0."""

    reduction: Reduction
    factor: float


@dataclass(frozen=True)
class Clamp:
    """min(max(argument, low), high)."""

    argument: str
    low: float
    high: float


def product_of(graph: GraphRewriting, tensor: str, stop: Collection[str] = ()) -> Product:
    """A tensor as a product. Tensors in `stop` are factors, however they are computed."""
    result, factors = Product(), Counter[str]()
    pending: list[tuple[str, float, int]] = [(tensor, 1.0, 0)]
    while pending:
        name, exponent, depth = pending.pop()
        values = graph.array(name)
        node = graph.producer(name) if name not in stop and depth < _DEEPEST else None
        parts = _parts(graph, node) if node is not None else None
        if values is not None:
            _multiply(result, values, exponent)
        elif parts is None or not float(exponent).is_integer():
            factors[name] += exponent  # type: ignore[assignment]  # Counter holds any number
        else:
            sign, operands = parts
            result.coefficient *= sign**exponent
            pending += [(operand, exponent * power, depth + 1) for operand, power in operands]
    result.factors = {name: exponent for name, exponent in factors.items() if exponent}
    return result


def bases_of(graph: GraphRewriting, tensor: str) -> list[str]:
    """The tensors that a product is computed from: itself, what its Mul and Div nodes compute on the way, and its factors."""
    found, level = [tensor], [tensor]
    for _ in range(_DEEPEST):
        parts = [_parts(graph, node) for name in level if (node := graph.producer(name)) is not None]
        operands = [operand for part in parts if part is not None for operand, _ in part[1]]
        level = [name for name in dict.fromkeys(operands) if name not in found and not graph.is_constant(name)]
        found += level
    return found


def _parts(graph: GraphRewriting, node: onnx.NodeProto) -> tuple[float, list[tuple[str, float]]] | None:
    """The sign, and the factors with their exponents, that a node multiplies."""
    if node.domain not in DEFAULT_DOMAINS:
        return None
    power = graph.scalar(node.input[1]) if node.op_type == "Pow" else None
    if power in (-1.0, -0.5, 0.5, 2.0, 3.0):
        return 1.0, [(node.input[0], power)]
    if node.op_type not in _EXPONENTS:
        return None
    return -1.0 if node.op_type == "Neg" else 1.0, list(zip(node.input, _EXPONENTS[node.op_type], strict=True))


def _multiply(product: Product, values: Array, exponent: float) -> None:
    with np.errstate(all="ignore"):
        power = values.astype(np.float64) ** exponent
    if values.size == 1 and values.ndim <= 1:
        product.coefficient *= float(power.reshape(-1)[0])
    else:
        product.gain = power if product.gain is None else product.gain * power


def plus_constant(graph: GraphRewriting, tensor: str) -> tuple[str, float] | None:
    """(t, c) of a tensor computed as t + c, c + t or t - c."""
    node = graph.producer(tensor, "Add", "Sub")
    if node is None:
        return None
    first, second = (graph.scalar(name) for name in node.input)
    if second is not None:
        return node.input[0], second if node.op_type == "Add" else -second
    return (node.input[1], first) if first is not None and node.op_type == "Add" else None


def square_of(graph: GraphRewriting, tensor: str) -> str | None:
    """t of a tensor computed as t * t or t ** 2."""
    node = graph.producer(tensor, "Mul", "Pow")
    if node is None or (node.op_type == "Pow" and graph.scalar(node.input[1]) != 2.0):
        return None
    return str(node.input[0]) if node.op_type == "Pow" or node.input[0] == node.input[1] else None


def root_of(graph: GraphRewriting, tensor: str) -> tuple[str, float] | None:
    """(t, 0.5) of a square root, (t, -0.5) of a power with that exponent."""
    node = graph.producer(tensor, "Sqrt", "Pow")
    power = 0.5 if node is not None and node.op_type == "Sqrt" else graph.scalar(node.input[1]) if node is not None else None
    return (str(node.input[0]), power) if node is not None and power in (0.5, -0.5) else None


def clamp_of(graph: GraphRewriting, tensor: str) -> Clamp | None:
    """The outermost clamps of a tensor, with constant bounds, as one; None where it has none."""
    low, high, found = -math.inf, math.inf, False
    while (node := graph.producer(tensor, "Clip", "Max", "Min", "Relu")) is not None:
        clamp = _one_clamp(graph, node)
        if clamp is None:
            break
        # outer(inner(t)): the outer bounds hold for the inner ones too
        low, high = max(low, min(clamp.low, high)), min(high, max(clamp.high, low))
        tensor, found = clamp.argument, True
    return Clamp(tensor, low, high) if found else None


def _one_clamp(graph: GraphRewriting, node: onnx.NodeProto) -> Clamp | None:
    if node.op_type == "Relu":
        return Clamp(node.input[0], 0.0, math.inf)
    if node.op_type == "Clip":
        bounds = [attribute(node, "min", -math.inf), attribute(node, "max", math.inf)]  # attributes before opset 11
        for at, name in enumerate(node.input[1:3]):
            bounds[at] = graph.scalar(name) if name else bounds[at]
        return None if None in bounds else Clamp(node.input[0], float(bounds[0]), float(bounds[1]))
    bounds = [graph.scalar(name) for name in node.input]
    if len(bounds) != 2 or bounds.count(None) != 1:
        return None
    argument, bound = (node.input[0], bounds[1]) if bounds[0] is None else (node.input[1], bounds[0])
    return Clamp(argument, bound, math.inf) if node.op_type == "Max" else Clamp(argument, -math.inf, bound)


def reduction_of(graph: GraphRewriting, tensor: str, *operators: str) -> Reduction | None:
    """The reduction that computes a tensor, through an Unsqueeze that restores the reduced axes; None for all axes at once."""
    node = graph.producer(tensor, *operators, "Unsqueeze")
    restored = None
    if node is not None and node.op_type == "Unsqueeze":
        restored = int_constants(graph, node, "axes", 1)
        node = graph.producer(node.input[0], *operators)
    if node is None or node.op_type == "Unsqueeze":
        return None
    axes, shape = int_constants(graph, node, "axes", 1), graph.shape(node.input[0])
    keeps = bool(attribute(node, "keepdims", 1))
    if not axes or (keeps and restored is not None) or (shape is None and (max(axes) >= 0 or restored)):
        return None
    rank = len(shape) if shape is not None else 0
    negative = tuple(sorted(axis - rank if axis >= 0 else axis for axis in axes))
    if restored is not None and tuple(sorted(axis - rank if axis >= 0 else axis for axis in restored)) != negative:
        return None
    return Reduction(node, str(node.input[0]), negative, keeps or restored is not None)


def squares_of(graph: GraphRewriting, tensor: str) -> Squares | None:
    """The sum of squares that a tensor is, times a factor: 1 / N of a mean over N elements, whose number has to be known."""
    product = product_of(graph, tensor)
    name, exponent = next(iter(product.factors.items()), ("", 0.0))
    if len(product.factors) != 1 or exponent != 1.0 or product.gain is not None or not 0 < product.coefficient < math.inf:
        return None
    found = reduction_of(graph, name, "ReduceSum", "ReduceMean", "ReduceSumSquare")
    if found is None:
        return None
    argument = found.argument if found.node.op_type == "ReduceSumSquare" else square_of(graph, found.argument)
    count = _count_over(graph, found) if found.node.op_type == "ReduceMean" else 1
    if argument is None or count is None:
        return None
    return Squares(Reduction(found.node, argument, found.axes, found.keeps_axes), product.coefficient / count)


def _count_over(graph: GraphRewriting, reduction: Reduction) -> int | None:
    """Elements that a reduction takes together; None where the graph does not fix their number."""
    shape = graph.shape(reduction.argument)
    sizes = [None if shape is None else shape[axis] for axis in reduction.axes]
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def nearly(value: float | None, wanted: float, relative: float = 1e-4) -> bool:
    """Whether a constant stands for `wanted`: exporters write sqrt(2) with five digits, and FP16 weights with fewer."""
    return value is not None and math.isclose(value, wanted, rel_tol=relative)
