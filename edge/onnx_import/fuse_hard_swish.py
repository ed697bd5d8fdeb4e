"""Hard sigmoid and hard swish written out -> HardSigmoid and HardSwish.

    hard sigmoid    c * clip(a x + b, 0, h) with c h = 1  =  clip(a/h x + b/h, 0, 1)      (a/h, b/h) = (1/6, 1/2) or (1/5, 1/2)
    hard swish      x * hard sigmoid(x) with (1/6, 1/2)                                   x * clip(x + 3, 0, 6) / 6

The clip may be a Clip, a Min and a Max, or a Relu and a Min. Source: Howard et al., arXiv 1905.02244; the slope 1/5 is that
of Keras.
"""

import onnx

from calib.graph import attribute
from edge.onnx_import.graph_rewriting import GraphRewriting
from edge.onnx_import.products import bases_of, clamp_of, nearly, plus_constant, product_of
from edge.onnx_import.rewritten import Rewritten

KIND = "hard_swish"
_SLOPES = (1 / 6, 1 / 5)


def fuse_hard_swishes(model: onnx.ModelProto) -> list[Rewritten]:
    """Replace every hard swish and every hard sigmoid that is written out, in place."""
    graph, places = GraphRewriting(model), list[Rewritten]()
    for node in graph.backward():
        fused = _hard_swish(graph, node) or _hard_sigmoid_node(graph, node)
        if fused is not None:
            places.append(Rewritten(KIND, graph.name(node), graph.replace(node, [fused])))
    graph.finish()
    return places[::-1]


def _hard_swish(graph: GraphRewriting, node: onnx.NodeProto) -> onnx.NodeProto | None:
    if node.op_type not in ("Mul", "Div"):
        return None
    for gate in product_of(graph, node.output[0]).factors:
        for x, slope, height in _gates(graph, gate):
            product = product_of(graph, node.output[0], stop=(x,))
            alike = product.is_of({x: 1.0, gate: 1.0}) and product.gain is None
            if alike and nearly(slope, 1 / 6) and nearly(product.coefficient * height, 1.0):
                return graph.make_node("HardSwish", [x], node)
    return None


def _hard_sigmoid_node(graph: GraphRewriting, node: onnx.NodeProto) -> onnx.NodeProto | None:
    if node.op_type not in ("Mul", "Div", "Clip", "Min", "Max"):
        return None
    product = product_of(graph, node.output[0])
    if list(product.factors.values()) != [1.0] or product.gain is not None:
        return None
    for x, slope, height in _gates(graph, next(iter(product.factors))):
        alpha = next((known for known in _SLOPES if nearly(slope, known)), None)
        if alpha is not None and nearly(product.coefficient * height, 1.0):
            return graph.make_node("HardSigmoid", [x], node, alpha=alpha, beta=0.5)
    return None


def _gates(graph: GraphRewriting, tensor: str) -> list[tuple[str, float, float]]:
    """(x, slope, height) of a tensor computed as height * clip(slope x + 1/2, 0, 1)."""
    single = graph.producer(tensor, "HardSigmoid")
    if single is not None:
        centred = nearly(float(attribute(single, "beta", 0.5)), 0.5)
        return [(str(single.input[0]), float(attribute(single, "alpha", 0.2)), 1.0)] if centred else []
    clamp = clamp_of(graph, tensor)
    summed = plus_constant(graph, clamp.argument) if clamp is not None else None
    if clamp is None or summed is None or clamp.low != 0 or not 0 < clamp.high < float("inf"):
        return []
    if not nearly(summed[1], clamp.high / 2):
        return []
    lines = [(x, product_of(graph, summed[0], stop=(x,))) for x in bases_of(graph, summed[0])]
    return [(x, p.coefficient / clamp.high, clamp.high) for x, p in lines if p.is_of({x: 1.0}) and p.gain is None]
