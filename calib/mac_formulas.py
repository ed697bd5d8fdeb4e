"""How many multiply-accumulates an operator does, from the shapes of its operands.

Conv, DeformConv, ConvInteger, QLinearConv   elements of the output x (C_in / group) x product of the kernel's sides; padding
                                             counts as data, a deformable kernel's interpolation does not count
ConvTranspose                                elements of the input x (C_out / group) x product of the kernel's sides
MatMul, MatMulInteger, QLinearMatMul         elements of the output x K           (..., M, K) x (..., K, N)
Gemm                                         M x N x K           transA and transB change K's place, not the count
Einsum                                       operand by operand from the left: product of the sizes of all subscripts
                                             that the result so far and the next operand have
Attention                                    both products: elements of Q x S + elements of Y x S, S keys of each query, those
                                             of the past included, masked ones too
RNN, GRU, LSTM                               steps x batch x (elements of W + elements of R)
"""

import math
from collections.abc import Callable
from functools import partial

import onnx

from calib.graph import attribute

ShapeOf = Callable[[str], tuple[int, ...]]


class UnknownShapeError(Exception):
    """A shape that a formula needs is not known; the text says which."""


def _conv(node: onnx.NodeProto, shape_of: ShapeOf, weight: int = 1) -> int:
    return math.prod(shape_of(node.output[0])) * math.prod(shape_of(node.input[weight])[1:])  # (C_out, C_in/group, *k)


def _conv_transpose(node: onnx.NodeProto, shape_of: ShapeOf) -> int:
    return math.prod(shape_of(node.input[0])) * math.prod(shape_of(node.input[1])[1:])  # (C_in, C_out/group, *k)


def _matmul(node: onnx.NodeProto, shape_of: ShapeOf) -> int:
    return math.prod(shape_of(node.output[0])) * shape_of(node.input[0])[-1]


def _gemm(node: onnx.NodeProto, shape_of: ShapeOf) -> int:
    return math.prod(shape_of(node.output[0])) * shape_of(node.input[0])[0 if attribute(node, "transA", 0) else -1]


def _attention(node: onnx.NodeProto, shape_of: ShapeOf) -> int:
    keys = shape_of(node.input[1])[-2]  # (B, S, H D) or (B, H, S, D)
    if len(node.input) > 4 and node.input[4]:
        keys += shape_of(node.input[4])[-2]
    return (math.prod(shape_of(node.input[0])) + math.prod(shape_of(node.output[0]))) * keys


def _recurrent(node: onnx.NodeProto, shape_of: ShapeOf) -> int:
    return math.prod(shape_of(node.input[0])[:2]) * sum(math.prod(shape_of(name)) for name in node.input[1:3])


def _einsum(node: onnx.NodeProto, shape_of: ShapeOf) -> int:
    left, arrow, right = attribute(node, "equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(node.input):
        raise ValueError
    sizes: dict[str, int] = {}
    operands: list[list[str]] = []
    for term, tensor in zip(terms, node.input, strict=True):
        shape = shape_of(tensor)
        operands.append(_subscripts(term, len(shape)))
        for subscript, size in zip(operands[-1], shape, strict=True):
            sizes[subscript] = max(size, sizes.get(subscript, 1))
    written = "".join(terms).replace(".", "")
    wanted = set(right.replace(".", "")) if arrow else {c for c in written if written.count(c) == 1}
    wanted |= {s for s in sizes if s.startswith("...")}
    macs, current = 0, set(operands[0])
    for at, operand in enumerate(operands[1:], start=2):
        current |= set(operand)
        macs += math.prod(sizes[s] for s in current)
        current &= wanted.union(*operands[at:])
    return macs


def _subscripts(term: str, rank: int) -> list[str]:
    """Subscripts of an operand's axes; those of an ellipsis are numbered from the last one, to which they are aligned."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{i}" for i in range(hidden, 0, -1)), *after]


FORMULAS: dict[str, Callable[[onnx.NodeProto, ShapeOf], int]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "DeformConv": _conv,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearConv": partial(_conv, weight=3),
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
}
"""Operator of ONNX's own domain -> its formula. Raises UnknownShapeError, and ValueError or IndexError for a malformed node."""
WITHOUT_FORMULA = ("CausalConvWithState", "DFT", "Det", "LinearAttention", "STFT")
"""Operators that multiply and have no formula here."""
