"""Mish written out -> Mish: x * tanh(softplus(x)), softplus(x) = log(1 + exp(x)).

Source: Misra, arXiv 1908.08681; operator Mish of opset 18. SiLU, x * sigmoid(x), has no operator of its own before opset 24
and stays as it is: TensorRT fuses the two.
"""

import onnx

from edge.onnx_import.graph_rewriting import GraphRewriting
from edge.onnx_import.products import plus_constant, product_of
from edge.onnx_import.rewritten import Rewritten

KIND = "mish"


def fuse_mishes(model: onnx.ModelProto) -> list[Rewritten]:
    """Replace every Mish that is written out, in place."""
    graph, places = GraphRewriting(model), list[Rewritten]()
    for node in graph.backward():
        for gate in product_of(graph, node.output[0]).factors if node.op_type == "Mul" else ():
            x = _softplus_argument(graph, gate)
            if x is None or not product_of(graph, node.output[0], (x,)).is_of({x: 1.0, gate: 1.0}):
                continue
            if product_of(graph, node.output[0], (x,)).constant is None:
                fused = graph.make_node("Mish", [x], node)
                places.append(Rewritten(KIND, graph.name(node), graph.replace(node, [fused])))
                break
    graph.finish()
    return places[::-1]


def _softplus_argument(graph: GraphRewriting, gate: str) -> str | None:
    """x of a tensor computed as tanh(softplus(x))."""
    tanh = graph.producer(gate, "Tanh")
    inner = graph.producer(tanh.input[0], "Softplus", "Log") if tanh is not None else None
    if inner is None or inner.op_type == "Softplus":
        return str(inner.input[0]) if inner is not None else None
    summed = plus_constant(graph, inner.input[0])
    exponential = graph.producer(summed[0], "Exp") if summed is not None and summed[1] == 1.0 else None
    return str(exponential.input[0]) if exponential is not None else None
