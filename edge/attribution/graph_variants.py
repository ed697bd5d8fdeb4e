"""Variants of the judged graph, whose differences are the kinds of error; all are FP32 graphs with the same span ends.

    base         the float graph that the judged one was made from
    as_run       what is judged: a typed graph with every rounding of FP16 emulated, any other graph as it is
    exact        its constants and its Q/DQ, everything between computed in FP32
    clipped      `exact` with each activation's Q/DQ replaced by its clipping alone
    unquantized  `exact` without the activations' Q/DQ: what is left is the constants, weights above all

The error of a span on the float network's own inputs, x its output there, is then a sum of four parts:

    as_run - x  =  (as_run - exact)  +  (exact - clipped)  +  (clipped - unquantized)  +  (unquantized - x)
                      FP16                rounding              clipping                   weights
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calib.errors import GraphError
from calib.graph import GraphIndex, attribute, index_graph, to_array
from calib.qdq_writer import DEQUANTIZE, QUANTIZE
from engines.fp16_emulation import emulated_graph

FED = "/fed"
"""Suffix of the input that stands for a span's end in a graph that was cut there."""
_FLOAT, _HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Activation:
    """A quantized activation of the judged graph: its tensor, its one scale and the codes it saturates at."""

    tensor: str
    scale: float
    low: int
    high: int


@dataclass(frozen=True)
class GraphVariants:
    """See the module's docstring.

    Attributes:
        judged: the graph as it is.
        typed: whether the judged graph is a typed FP16 one.
        activations: output of the QuantizeLinear of each quantized activation -> the activation, in graph order.
    """

    base: onnx.ModelProto
    judged: onnx.ModelProto
    typed: bool
    as_run: onnx.ModelProto
    exact: onnx.ModelProto
    clipped: onnx.ModelProto
    unquantized: onnx.ModelProto
    activations: Mapping[str, Activation]


def make_variants(base: onnx.ModelProto, judged: onnx.ModelProto) -> GraphVariants:
    """The variants of a judged graph. Raises InputError for quantization that is not per tensor with a constant scale."""
    half_weights = any(tensor.data_type == _HALF for tensor in judged.graph.initializer)
    typed = half_weights or any(map(_rounds, judged.graph.node))
    as_run = emulated_graph(judged) if typed else judged
    exact = _without_roundings(emulated_graph(judged, accumulate="fp32")) if typed else judged
    index = index_graph(exact)
    quantizers = (node for node in exact.graph.node if node.op_type == QUANTIZE and node.input[0] not in index.constant_like)
    activations = {node.output[0]: _activation(node, index) for node in quantizers}
    clipped, unquantized = (_without_qdq(exact, activations, clip=clip) for clip in (True, False))
    return GraphVariants(base, judged, typed, as_run, exact, clipped, unquantized, activations)


def _rounds(node: onnx.NodeProto) -> bool:
    """Whether a node is a Cast to FP16."""
    return node.op_type == "Cast" and int(attribute(node, "to", 0)) == _HALF


def _activation(node: onnx.NodeProto, index: GraphIndex) -> Activation:
    parameters = [to_array(index.constants[name]) for name in node.input[1:] if name in index.constants]
    kind = parameters[1].dtype if len(parameters) == 2 else np.dtype(np.uint8)
    if len(parameters) + 1 != len(node.input) or parameters[0].size != 1 or kind not in (np.int8, np.uint8):
        raise GraphError(
            "activation is not quantized to 8 bits per tensor with constant parameters",
            where=f"node {node.name or node.output[0]}",
            next_command="ufovit build, whose graphs are",
        )
    zero = int(parameters[1].reshape(-1)[0]) if len(parameters) == 2 else 0
    limits = np.iinfo(kind)
    return Activation(node.input[0], float(parameters[0].reshape(-1)[0]), int(limits.min) - zero, int(limits.max) - zero)


def _without_roundings(emulated: onnx.ModelProto) -> onnx.ModelProto:
    """An emulated graph with its roundings to FP16 taken out, in place."""
    rounded: set[str] = set()
    for node in emulated.graph.node:
        if _rounds(node):
            rounded.update(node.output)
        if _rounds(node) or (node.op_type == "Cast" and node.input[0] in rounded):
            node.op_type = "Identity"
            del node.attribute[:]
    return emulated


def _without_qdq(model: onnx.ModelProto, activations: Mapping[str, Activation], *, clip: bool) -> onnx.ModelProto:
    """A copy in which readers of an activation's Q/DQ pair read the activation itself, or its clipped values."""
    copy = deepcopy(model)
    kept = [node for node in copy.graph.node if activations.keys().isdisjoint(node.output)]  # all but the QuantizeLinear
    for node in kept:
        if node.op_type == DEQUANTIZE and node.input[0] in activations:
            source, target = activations[node.input[0]], node.output[0]
            node.CopyFrom(helper.make_node("Identity", [source.tensor], [target], name=f"{target}/alone"))
            if clip:
                node.op_type = "Clip"
                for name, code in (("low", source.low), ("high", source.high)):
                    node.input.append(f"{target}/{name}")
                    limit = np.asarray(code * source.scale, np.float32)
                    copy.graph.initializer.append(numpy_helper.from_array(limit, node.input[-1]))
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def cut(model: onnx.ModelProto, ends: Sequence[str], more: Collection[str] = ()) -> onnx.ModelProto:
    """The graph in pieces: readers of one of `ends` read a new input of that name and FED instead.

    Outputs are `ends`, as each piece computes them, then `more`.
    """
    copy = deepcopy(model)
    read = set()
    for node in copy.graph.node:
        for at, name in enumerate(node.input):
            if name in ends:
                node.input[at] = f"{name}{FED}"
                read.add(name)
    copy.graph.input.extend(helper.make_tensor_value_info(f"{name}{FED}", _FLOAT, None) for name in ends if name in read)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys((*ends, *more)))
    return copy
