"""RMS normalization written out -> the same by ReduceL2, which TensorRT computes in FP32.

    as written    x * gain / sqrt(c sum(x^2) + eps)          of a mean over C elements c = 1 / C
    n             ||x|| sqrt(c)                              the root of the mean: ReduceL2(x), times a constant
    rewritten     x / ||(n, sqrt(eps))|| * gain              sqrt(n^2 + eps) is the norm of a vector of two: Pad, ReduceL2

RMSNormalization is an operator of opset 23, and TensorRT before 10.15 does not read it. The squares of the form as written
overflow FP16 at |x| = 256, and eps = 1e-8 is zero there; of the rewritten form only ||x|| has to fit, and sqrt(eps).
"""

import math

import numpy as np
import onnx

from edge.onnx_import.graph_rewriting import GraphRewriting
from edge.onnx_import.products import plus_constant, product_of, reduction_of, square_of, squares_of
from edge.onnx_import.rewritten import Rewritten

KIND = "rms_norm"


def fuse_rms_norms(model: onnx.ModelProto) -> list[Rewritten]:
    """Replace every RMS normalization that is written out, in place."""
    graph, places = GraphRewriting(model), list[Rewritten]()
    for node in graph.backward():
        place = _rms_norm(graph, node) if node.op_type in ("Mul", "Div") else None
        places += [place] if place else []
    graph.finish()
    return places[::-1]


def _rms_norm(graph: GraphRewriting, node: onnx.NodeProto) -> Rewritten | None:
    moments = [name for name, exponent in product_of(graph, node.output[0]).factors.items() if exponent == -0.5]
    if len(moments) != 1:
        return None
    moment, eps = plus_constant(graph, moments[0]) or (moments[0], 0.0)
    squares = squares_of(graph, moment)
    if squares is None:
        return _of_unknown_size(graph, node, moment)
    x, axes, factor = squares.reduction.argument, squares.reduction.axes, squares.factor
    product, shape = product_of(graph, node.output[0], stop=(x,)), graph.shape(x)
    if not product.is_of({x: 1.0, moments[0]: -0.5}) or not squares.reduction.keeps_axes or eps < 0 or shape is None:
        return None
    if factor == 1.0:
        return None  # an L2 norm
    reduced = graph.add_constant(np.array(axes, np.int64), node, "axes")
    nodes = [graph.make_node("ReduceL2", [x, reduced], node, keepdims=1)]
    scale = graph.add_constant(np.array(factor**0.5), node, "scale")
    nodes.append(graph.make_node("Mul", [nodes[-1].output[0], scale], node))
    if eps > 0:
        after = [int(axis == axes[-1]) for axis in range(-len(shape), 0)]
        pads = graph.add_constant(np.array([0] * len(shape) + after, np.int64), node, "pads")
        root_eps = graph.add_constant(np.array(math.sqrt(eps)), node, "root_eps")
        nodes.append(graph.make_node("Pad", [nodes[-1].output[0], pads, root_eps], node))
        last = graph.add_constant(np.array(axes[-1:], np.int64), node, "axis")
        nodes.append(graph.make_node("ReduceL2", [nodes[-1].output[0], last], node, keepdims=1))
    nodes.append(graph.make_node("Div", [x, nodes[-1].output[0]], node))
    if product.constant is not None:
        gain = graph.add_constant(product.constant, node, "gain")
        nodes.append(graph.make_node("Mul", [nodes[-1].output[0], gain], node))
    return Rewritten(KIND, graph.name(node), graph.replace(node, nodes))


def _of_unknown_size(graph: GraphRewriting, node: onnx.NodeProto, moment: str) -> Rewritten | None:
    """Names a normalization by a mean over axes whose sizes the graph does not fix."""
    mean = reduction_of(graph, moment, "ReduceMean")
    if mean is None or not mean.keeps_axes or (x := square_of(graph, mean.argument)) is None:
        return None
    factors = product_of(graph, node.output[0], stop=(x,)).factors
    if factors.get(x) != 1.0 or len(factors) != 2:
        return None
    return Rewritten(KIND, graph.name(node), "", "the sizes of the normalized axes are not fixed")
