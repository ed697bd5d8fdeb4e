"""GELU written out -> Gelu, which TensorRT fuses and whose erf it computes in FP32.

    exact    x * (1/2 + 1/2 erf(x / sqrt(2)))
    tanh     x * (1/2 + 1/2 tanh(sqrt(2/pi) * (x + 0.044715 x^3)))

Read as products, so that the factor 1/2 may stand anywhere, and sqrt(2) be a divisor or a factor. The cubic may also be written
x * (1 + 0.044715 x^2). Source: Hendrycks and Gimpel, arXiv 1606.08415; operator Gelu of opset 20.
"""

import math
from collections.abc import Iterator

import onnx

from edge.onnx_import.graph_rewriting import GraphRewriting
from edge.onnx_import.products import Product, bases_of, nearly, plus_constant, product_of
from edge.onnx_import.rewritten import Rewritten

KIND = "gelu"
_CUBIC, _TANH = 0.044715, math.sqrt(2 / math.pi)


def fuse_gelus(model: onnx.ModelProto) -> list[Rewritten]:
    """Replace every GELU that is written out, in place."""
    graph, places = GraphRewriting(model), list[Rewritten]()
    for node in graph.backward():
        found = _gelu(graph, node) if node.op_type in ("Mul", "Div") else None
        if found is not None:
            x, approximate = found
            name = graph.name(node)
            fused = graph.make_node("Gelu", [x], node, **({"approximate": "tanh"} if approximate else {}))
            places.append(Rewritten(KIND, name, graph.replace(node, [fused])))
    graph.finish()
    return places[::-1]


def _gelu(graph: GraphRewriting, node: onnx.NodeProto) -> tuple[str, bool] | None:
    """(x, whether by tanh) of a product that is a GELU."""
    for gate, exponent in product_of(graph, node.output[0]).factors.items():
        halves = _halves(graph, gate) if exponent == 1.0 else None
        if halves is None:
            continue
        sigmoid, inner, outer = halves
        for x in _arguments(graph, sigmoid):
            product = product_of(graph, node.output[0], stop=(x,))
            if product.is_of({x: 1.0, gate: 1.0}) and product.gain is None and nearly(product.coefficient * inner, 0.5, 1e-6):
                return (x, sigmoid.op_type == "Tanh") if nearly(product.coefficient * outer, 0.5, 1e-6) else None
    return None


def _halves(graph: GraphRewriting, gate: str) -> tuple[onnx.NodeProto, float, float] | None:
    """The Erf or Tanh node, a and c of a tensor computed as a * node + c."""
    summed = plus_constant(graph, gate)
    product = product_of(graph, summed[0]) if summed else None
    if summed is None or product is None or product.gain is not None or list(product.factors.values()) != [1.0]:
        return None
    node = graph.producer(next(iter(product.factors)), "Erf", "Tanh")
    return (node, product.coefficient, summed[1]) if node is not None else None


def _arguments(graph: GraphRewriting, node: onnx.NodeProto) -> Iterator[str]:
    """Every x for which the operand of Erf is x / sqrt(2), and that of Tanh sqrt(2/pi) * (x + 0.044715 x^3)."""
    operand = str(node.input[0])
    if node.op_type == "Erf":
        yield from (x for x in bases_of(graph, operand) if _is(product_of(graph, operand, (x,)), {x: 1.0}, math.sqrt(0.5)))
        return
    for tensor in product_of(graph, operand).factors:
        add = graph.producer(tensor, "Add")
        for first, second in (add.input, reversed(add.input)) if add is not None else ():
            for x in bases_of(graph, second):
                outer, inner = product_of(graph, operand, (x, tensor)), product_of(graph, second, (x,))
                if first == x and _is(outer, {tensor: 1.0}, _TANH) and _is(inner, {x: 3.0}, _CUBIC):
                    yield x  # x + 0.044715 x^3
                elif graph.scalar(first) == 1.0 and _is(outer, {tensor: 1.0, x: 1.0}, _TANH) and _is(inner, {x: 2.0}, _CUBIC):
                    yield x  # x * (1 + 0.044715 x^2)


def _is(product: Product, factors: dict[str, float], coefficient: float) -> bool:
    return product.is_of(factors) and product.gain is None and nearly(product.coefficient, coefficient)
