"""Layer normalization written out -> LayerNormalization, whose statistics TensorRT computes in FP32.

    d = x - mean(x)                        Sub, ReduceMean over trailing axes
    v = mean(d^2)                          ReduceMean of Mul(d, d) or Pow(d, 2)
    y = d * (v + eps)^(-1/2) * gain + bias

The last line is read as a product: Div by Sqrt, Mul by Reciprocal or by Pow(., -0.5), in any order and with the gain
anywhere. gain and bias are constants over the normalized axes, or absent. The Keras form, x * s + (bias - mean(x) * s) with s
= (v + eps)^(-1/2) * gain, is equal to it. Kept as they are: an eps on the standard deviation, a variance divided by N - 1,
and leading axes such as the channels of NCHW, which LayerNormalization does not take.
"""

import numpy as np
import onnx

from edge.onnx_import.graph_rewriting import Array, GraphRewriting
from edge.onnx_import.products import Product, plus_constant, product_of, reduction_of, square_of
from edge.onnx_import.rewritten import Rewritten

KIND = "layer_norm"


def fuse_layer_norms(model: onnx.ModelProto) -> list[Rewritten]:
    """Replace every layer normalization that is written out, in place."""
    graph, places = GraphRewriting(model), list[Rewritten]()
    for node in graph.backward():
        place = None
        if node.op_type == "Add":
            place = _with_bias(graph, node) or _keras(graph, node)
        elif node.op_type in ("Mul", "Div"):
            place = _normalized(graph, node, node, None)
        places += [place] if place else []
    graph.finish()
    return places[::-1]


def _with_bias(graph: GraphRewriting, node: onnx.NodeProto) -> Rewritten | None:
    for product, constant in (node.input, reversed(node.input)):
        bias, inner = graph.array(constant), graph.producer(product, "Mul", "Div")
        if bias is not None and inner is not None and graph.is_read_once(product):
            return _normalized(graph, node, inner, bias)
    return None


def _normalized(graph: GraphRewriting, root: onnx.NodeProto, inner: onnx.NodeProto, bias: Array | None) -> Rewritten | None:
    """Replace `root` if `inner` computes gain * d / sqrt(v + eps), to which `root` adds the bias."""
    product = product_of(graph, inner.output[0])
    if len(product.factors) != 2 or sorted(product.factors.values()) != [-0.5, 1.0]:
        return None
    (deviation,) = (name for name, exponent in product.factors.items() if exponent == 1.0)
    (variance,) = (name for name, exponent in product.factors.items() if exponent == -0.5)
    centred = _deviation(graph, deviation)
    return _replace(graph, root, centred, variance, (product, bias)) if centred else None


def _keras(graph: GraphRewriting, node: onnx.NodeProto) -> Rewritten | None:
    """x * s + (bias - mean * s)."""
    for scaled, shift in (node.input, reversed(node.input)):
        subtraction = graph.producer(shift, "Sub")
        bias = graph.array(subtraction.input[0]) if subtraction is not None else None
        if subtraction is None or bias is None:
            continue
        second = product_of(graph, subtraction.input[1])
        means = [name for name, exponent in second.factors.items() if exponent == 1.0]
        mean = reduction_of(graph, means[0], "ReduceMean") if len(means) == 1 else None
        if mean is None:
            continue
        first = product_of(graph, scaled, stop=(mean.argument,))
        variances = [name for name, exponent in first.factors.items() if exponent == -0.5]
        if len(variances) != 1 or not _same_constants(first, second):
            continue
        alike = {mean.argument: 1.0, variances[0]: -0.5}, {means[0]: 1.0, variances[0]: -0.5}
        if first.is_of(alike[0]) and second.is_of(alike[1]):
            return _replace(graph, node, (mean.argument, mean.axes), variances[0], (first, bias))
    return None


def _same_constants(first: Product, second: Product) -> bool:
    one, other = first.constant, second.constant
    return (one is None) == (other is None) and (one is None or other is None or np.array_equal(one, other))


def _deviation(graph: GraphRewriting, tensor: str) -> tuple[str, tuple[int, ...]] | None:
    """(x, axes) of a tensor computed as x - mean(x)."""
    node = graph.producer(tensor, "Sub")
    mean = reduction_of(graph, node.input[1], "ReduceMean") if node is not None else None
    if node is None or mean is None or not mean.keeps_axes or mean.argument != node.input[0]:
        return None
    return mean.argument, mean.axes


def _replace(
    graph: GraphRewriting,
    root: onnx.NodeProto,
    centred: tuple[str, tuple[int, ...]],
    variance: str,
    affine: tuple[Product, Array | None],
) -> Rewritten | None:
    """Replace `root` if `variance` is v + eps of the centred tensor, and gain and bias lie over the normalized axes."""
    x, axes = centred
    moment, eps = plus_constant(graph, variance) or (variance, 0.0)
    mean = reduction_of(graph, moment, "ReduceMean")
    squared = square_of(graph, mean.argument) if mean is not None and mean.keeps_axes else None
    if mean is None or squared is None or mean.axes != axes or _deviation(graph, squared) != centred or eps < 0:
        return None
    name, product, bias = graph.name(root), affine[0], affine[1]
    if axes != tuple(range(-len(axes), 0)):
        # the smallest product, d / sqrt(v + eps), is reported; larger ones would repeat it
        reason = f"it normalizes axes {list(axes)}, and LayerNormalization takes trailing axes alone"
        return Rewritten(KIND, name, "", reason) if product.constant is None and bias is None else None
    shape = graph.shape(x)
    sizes = shape[-len(axes) :] if shape is not None else (None,)
    known = tuple(size for size in sizes if size is not None)
    if shape is None or len(known) != len(sizes):
        reason = "the sizes of the normalized axes are not fixed"
        return Rewritten(KIND, name, "", reason) if product.constant is None and bias is None else None
    gain, shift = _over(product.constant, known, len(shape)), _over(bias, known, len(shape))
    if (product.constant is not None and gain is None) or (bias is not None and shift is None):
        return None
    inputs = [x, graph.add_constant(np.ones(known) if gain is None else gain, root, "gain")]
    inputs += [] if shift is None else [graph.add_constant(shift, root, "bias")]
    fused = graph.make_node("LayerNormalization", inputs, root, axis=-len(axes), epsilon=eps)
    return Rewritten(KIND, name, graph.replace(root, [fused]))


def _over(values: Array | None, sizes: tuple[int, ...], rank: int) -> Array | None:
    """Constants broadcast over the normalized axes; None where they vary along others, or would add axes."""
    if values is None or values.ndim > rank or any(size != 1 for size in values.shape[: -len(sizes)]):
        return None
    try:
        return np.broadcast_to(values.reshape(values.shape[-len(sizes) :]), sizes)
    except ValueError:
        return None
