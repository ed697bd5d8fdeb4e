"""RMS normalization written out -> the same by ReduceL2, which TensorRT computes in FP32.

    as written    x * gain / sqrt(mean(x^2) + eps)
    n             ||x|| / sqrt(C)                            the root of the mean: ReduceL2(x), times C^(-1/2)
    rewritten     x / ||(n, sqrt(eps))|| * gain              sqrt(n^2 + eps) is the norm of a vector of two: Pad, ReduceL2

RMSNormalization is an operator of opset 23, and TensorRT before 10.15 does not read it. The squares of the form as written
overflow FP16 at |x| = 256, and eps = 1e-8 is zero there; of the rewritten form only ||x|| has to fit, and sqrt(eps).
"""

import math

import numpy as np
import onnx

from edge.onnx_import.graph_rewriting import GraphRewriting
from edge.onnx_import.products import plus_constant, product_of, reduction_of, square_of
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
    mean = reduction_of(graph, moment, "ReduceMean")
    x = square_of(graph, mean.argument) if mean is not None and mean.keeps_axes else None
    product = product_of(graph, node.output[0], stop=(x,)) if x is not None else None
    if mean is None or x is None or product is None or not product.is_of({x: 1.0, moments[0]: -0.5}) or eps < 0:
        return None
    name, shape = graph.name(node), graph.shape(x)
    sizes = [shape[axis] for axis in mean.axes] if shape is not None else [None]
    known = [size for size in sizes if size is not None]
    if shape is None or len(known) != len(sizes):
        return Rewritten(KIND, name, "", "the sizes of the normalized axes are not fixed")
    axes = graph.add_constant(np.array(mean.axes, np.int64), node, "axes")
    nodes = [graph.make_node("ReduceL2", [x, axes], node, keepdims=1)]
    scale = graph.add_constant(np.array(math.prod(known) ** -0.5), node, "scale")
    nodes.append(graph.make_node("Mul", [nodes[-1].output[0], scale], node))
    if eps > 0:
        after = [int(axis == mean.axes[-1]) for axis in range(-len(shape), 0)]
        pads = graph.add_constant(np.array([0] * len(shape) + after, np.int64), node, "pads")
        root_eps = graph.add_constant(np.array(math.sqrt(eps)), node, "root_eps")
        nodes.append(graph.make_node("Pad", [nodes[-1].output[0], pads, root_eps], node))
        last = graph.add_constant(np.array(mean.axes[-1:], np.int64), node, "axis")
        nodes.append(graph.make_node("ReduceL2", [nodes[-1].output[0], last], node, keepdims=1))
    nodes.append(graph.make_node("Div", [x, nodes[-1].output[0]], node))
    if product.constant is not None:
        gain = graph.add_constant(product.constant, node, "gain")
        nodes.append(graph.make_node("Mul", [nodes[-1].output[0], gain], node))
    return Rewritten(KIND, name, graph.replace(node, nodes))
