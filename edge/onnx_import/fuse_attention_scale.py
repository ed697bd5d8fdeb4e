"""The scale of softmax attention -> one constant factor of q before the product, or into the layer that computes q.

    as written    softmax((c1 q) (c2 k)^T * c3 + mask), factors and divisors wherever the exporter put them
    rewritten     softmax((c q) k^T + mask),  c = c1 c2 c3
    exact         W_q <- c W_q, b_q <- c b_q  where c is a power of two, and q of this layer alone

Scaled logits are what FP16 has to represent then: unscaled ones are larger by sqrt(d). Where keys and values come from the
same layer, or c would round the weights, the factor stays a Mul.
"""

import math

import numpy as np
import onnx

from calib.graph import attribute
from edge.onnx_import.graph_rewriting import Array, GraphRewriting
from edge.onnx_import.rewritten import Rewritten

KIND = "attention_scale"
_REARRANGING = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten")


def fuse_attention_scales(model: onnx.ModelProto) -> list[Rewritten]:
    """Join the scales of every softmax attention, in place."""
    graph, places = GraphRewriting(model), list[Rewritten]()
    for node in graph.forward():
        place = _attention(graph, node) if node.op_type == "Softmax" else None
        places += [place] if place else []
    graph.finish()
    return places


class _Scale:
    """A tensor without its constant factors: `tensor`, the product `value` of the factors, and their nodes, outermost first."""

    def __init__(self, graph: GraphRewriting, tensor: str) -> None:
        self.tensor, self.value, self.nodes = tensor, 1.0, list[onnx.NodeProto]()
        while graph.is_read_once(self.tensor) and (node := graph.producer(self.tensor, "Mul", "Div")) is not None:
            first, second = (graph.scalar(name) for name in node.input)
            constant = second if second is not None else first if node.op_type == "Mul" else None
            if constant is None or constant <= 0:
                break
            self.tensor = node.input[0] if second is not None else node.input[1]
            self.value *= constant if node.op_type == "Mul" else 1 / constant
            self.nodes.append(node)


def _attention(graph: GraphRewriting, softmax: onnx.NodeProto) -> Rewritten | None:
    scaled = _logits(graph, softmax.input[0])
    product = _product(graph, scaled.tensor)
    if product is None or not graph.is_read_once(scaled.tensor):
        return None
    query, key = (_Scale(graph, name) for name in product.input)
    turn = graph.producer(key.tensor, "Transpose") if graph.is_read_once(key.tensor) else None
    turned = _Scale(graph, turn.input[0]) if turn is not None else None
    on_key = [*key.nodes, *(turned.nodes if turned is not None else [])]
    scale = scaled.value * query.value * key.value * (turned.value if turned is not None else 1.0)
    layer = _layer(graph, query.tensor) if math.frexp(scale)[0] == 0.5 else []
    if scale == 1.0 or not (scaled.nodes or on_key or len(query.nodes) > 1 or (layer and query.nodes)):
        return None
    nodes, operands = list[onnx.NodeProto](), [query.tensor, key.tensor]
    for node in layer:
        _scale_layer(graph, node, scale)
    if not layer:
        factor = graph.add_constant(np.array(scale), product, "scale")
        nodes.append(graph.make_node("Mul", [query.tensor, factor], product))
        operands[0] = nodes[-1].output[0]
    if turn is not None and turned is not None and turned.nodes:
        nodes.append(graph.copy_node(turn, [turned.tensor]))
        operands[1] = nodes[-1].output[0]
    nodes.append(graph.copy_node(product, operands))
    return Rewritten(KIND, graph.name(product), graph.replace((*scaled.nodes, product)[0], nodes))


def _logits(graph: GraphRewriting, tensor: str) -> _Scale:
    """The logits under the masks that are added to them."""
    while graph.is_read_once(tensor) and (node := graph.producer(tensor, "Add", "Reshape")) is not None:
        sources = node.input[:1] if node.op_type == "Reshape" else node.input
        on_the_way = [name for name in sources if _leads_to_product(graph, name)]
        if len(on_the_way) != 1:
            break
        tensor = on_the_way[0]
    return _Scale(graph, tensor)


def _leads_to_product(graph: GraphRewriting, tensor: str) -> bool:
    for _ in range(8):
        tensor = _Scale(graph, tensor).tensor
        node = graph.producer(tensor, "Add", "Reshape")
        if node is None:
            break
        sources = [name for name in node.input if not graph.is_constant(name)]
        tensor = sources[0] if sources else ""
    return _product(graph, tensor) is not None


def _product(graph: GraphRewriting, tensor: str) -> onnx.NodeProto | None:
    """The MatMul of two activations that computes a tensor."""
    node = graph.producer(tensor, "MatMul")
    return node if node is not None and not any(name in graph.index.constant_like for name in node.input) else None


def _layer(graph: GraphRewriting, tensor: str) -> list[onnx.NodeProto]:
    """The nodes of the linear layer that computes a tensor and nothing else: MatMul, Add after MatMul, or Gemm."""
    nodes: list[onnx.NodeProto] = []
    while graph.is_read_once(tensor) and (node := graph.producer(tensor)) is not None:
        constants = [name for name in node.input if graph.is_constant(name)]
        if node.op_type in ("MatMul", "Gemm"):
            unscaled = float(attribute(node, "alpha", 1.0)) == float(attribute(node, "beta", 1.0)) == 1.0
            return [*nodes, node] if unscaled and len(constants) == len(node.input) - 1 else []
        if node.op_type == "Add" and len(constants) == 1:
            nodes.append(node)
        elif node.op_type not in _REARRANGING:
            return []
        tensor = next((name for name in node.input if not graph.is_constant(name)), "")
    return []


def _scale_layer(graph: GraphRewriting, node: onnx.NodeProto, scale: float) -> None:
    inputs = list(node.input)
    for at, name in enumerate(inputs):
        values: Array | None = graph.array(name)
        if values is not None:
            inputs[at] = graph.add_constant(values * values.dtype.type(scale), node, f"scaled_{at}")
    graph.replace(node, [graph.copy_node(node, inputs)])
