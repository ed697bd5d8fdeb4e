"""The judged graph in the forms in which its errors come apart, each an FP32 graph with the same tensors at the units' ends.

    as_run       what is judged: a typed graph with every rounding of FP16 emulated, any other graph as it is
    exact        its constants and its Q/DQ, everything between computed in FP32
    clipped      `exact` with each activation's Q/DQ replaced by its clipping alone
    unquantized  `exact` without the activations' Q/DQ: what is left is the constants, weights above all

The error of a unit on the float network's own inputs, x its output there, is then a sum of four parts:

    as_run - x  =  (as_run - exact)  +  (exact - clipped)  +  (clipped - unquantized)  +  (unquantized - x)
                      FP16                rounding              clipping                   weights
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calib.edit import prefix
from calib.errors import InputError
from calib.graph import GraphIndex, attribute, index_graph, to_array
from calib.qdq import DEQUANTIZE, QUANTIZE
from calib.segments import SHAPE_OPS
from edge.drift.units import needed_nodes

FED = "/fed"
"""Suffix of the input that stands for a unit's end in a graph that was cut there."""
_FLOAT, _HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Forms:
    """See the module's docstring; `typed` says whether the judged graph is a typed FP16 one."""

    typed: bool
    as_run: onnx.ModelProto
    exact: onnx.ModelProto
    clipped: onnx.ModelProto
    unquantized: onnx.ModelProto


@dataclass(frozen=True)
class Activation:
    """A quantized activation of the judged graph: its tensor, its one scale and the codes it saturates at."""

    tensor: str
    scale: float
    low: int
    high: int


def take_forms(judged: onnx.ModelProto) -> Forms:
    """The forms of a judged graph. Raises InputError for quantization that is not per tensor with a constant scale."""
    typed = is_typed(judged)
    if typed:
        from engines.emulate import emulated_graph

        as_run, exact = emulated_graph(judged), _without_roundings(emulated_graph(judged, accumulate="fp32"))
    else:
        as_run = exact = judged
    return Forms(typed, as_run, exact, _without_pairs(exact, clip=True), _without_pairs(exact, clip=False))


def is_typed(model: onnx.ModelProto) -> bool:
    """Whether a graph is a typed FP16 one: its weights, or what its Casts give, are FP16."""
    return any(tensor.data_type == _HALF for tensor in model.graph.initializer) or any(
        node.op_type == "Cast" and int(attribute(node, "to", 0)) == _HALF for node in model.graph.node
    )


def activations(model: onnx.ModelProto) -> tuple[Activation, ...]:
    """The quantized activations of a graph, each once, in graph order. Raises InputError, see `take_forms`."""
    index = index_graph(model)
    found: dict[str, Activation] = {}
    for node in model.graph.node:
        if node.op_type == QUANTIZE and node.input[0] not in index.constant_like:
            found.setdefault(node.output[0], _activation(node, index))
    return tuple(found.values())


def _activation(node: onnx.NodeProto, index: GraphIndex) -> Activation:
    parameters = [to_array(index.constants[name]) for name in node.input[1:] if name in index.constants]
    kind = parameters[1].dtype if len(parameters) == 2 else np.dtype(np.uint8)
    if len(parameters) + 1 != len(node.input) or parameters[0].size != 1 or kind not in (np.int8, np.uint8):
        raise InputError(
            "activation is not quantized to 8 bits per tensor with constant parameters",
            where=f"node {node.name or node.output[0]}",
            next_command="ufovit build, whose graphs are",
        )
    zero = int(parameters[1].reshape(-1)[0]) if len(parameters) == 2 else 0
    limits = np.iinfo(kind)
    return Activation(node.input[0], float(parameters[0].reshape(-1)[0]), int(limits.min) - zero, int(limits.max) - zero)


def _without_roundings(emulated: onnx.ModelProto) -> onnx.ModelProto:
    """An emulated graph with its roundings to FP16 taken out; `emulated` is changed."""
    rounded: set[str] = set()
    for node in emulated.graph.node:
        to_half = node.op_type == "Cast" and int(attribute(node, "to", 0)) == _HALF
        if to_half or (node.op_type == "Cast" and node.input[0] in rounded):
            rounded.update(node.output if to_half else ())
            node.op_type = "Identity"
            del node.attribute[:]
    return emulated


def _without_pairs(model: onnx.ModelProto, *, clip: bool) -> onnx.ModelProto:
    """A copy in which what reads the Q/DQ pair of an activation reads the activation itself, or its clipped values."""
    made = _copy(model)
    index = index_graph(made)
    quantizers = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == QUANTIZE and node.input[0] not in index.constant_like
    }
    nodes = []
    for node in model.graph.node:
        if node.op_type == DEQUANTIZE and node.input[0] in quantizers:
            source, target = _activation(quantizers[node.input[0]], index), node.output[0]
            bounds = []
            for name, code in (("low", source.low), ("high", source.high)):
                bounds.append(f"{target}/{name}")
                made.graph.initializer.append(numpy_helper.from_array(np.float32(code * source.scale), bounds[-1]))
            inputs = [source.tensor, *bounds] if clip else [source.tensor]
            nodes.append(helper.make_node("Clip" if clip else "Identity", inputs, [target], name=f"{target}/alone"))
        elif not (node.op_type == QUANTIZE and node.output[0] in quantizers):
            nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def tapped(model: onnx.ModelProto, tensors: Collection[str]) -> onnx.ModelProto:
    """The graph with more outputs and nothing else: its own first, then those of `tensors` that are inner ones."""
    made = _copy(model)
    own = {value.name for value in model.graph.output}
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in own)
    return made


def cut(model: onnx.ModelProto, ends: Sequence[str], more: Collection[str] = ()) -> onnx.ModelProto:
    """The graph in pieces: what reads one of `ends` reads a new input of that name and FED instead.

    Outputs are `ends`, as each piece makes them, then `more`.
    """
    made = _copy(model)
    known = set(ends)
    read = set()
    for node in made.graph.node:
        for at, name in enumerate(node.input):
            if name in known:
                node.input[at] = f"{name}{FED}"
                read.add(name)
    made.graph.input.extend(helper.make_tensor_value_info(f"{name}{FED}", _FLOAT, None) for name in ends if name in read)
    del made.graph.output[:]
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys((*ends, *more)))
    return made


def spliced(
    target: onnx.ModelProto,
    source: onnx.ModelProto,
    outputs: Sequence[str],
    ends: Collection[str],
    switch: Callable[[str], str] | None = None,
) -> onnx.ModelProto:
    """`target` with some units as `source` computes them from the tensors of `target`.

    Args:
        target: an FP32 graph; it is copied.
        source: an FP32 graph with the same ends and the same input.
        outputs: ends of the units to take over.
        ends: all ends, where units stop.
        switch: end -> name of a boolean scalar; there a new input of that name decides, True for `source`, and both are
            computed. None takes over at once, and what nothing needs any more is dropped.
    """
    made = _copy(target)
    index = index_graph(source)
    stops = {*ends, *index.inputs, *_shapes_known(source, target)}
    stored = {tensor.name: tensor for tensor in source.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    switches: dict[str, None] = {}
    for node in list(made.graph.node):
        nodes.append(node)
        for at, end in enumerate(node.output):
            if end not in outputs:
                continue
            node.output[at] = f"{end}/own"
            result = f"{end}/spliced" if switch else end
            nodes += _part_for(source, index, end, result, stops, stored, made)
            if switch:
                switches[switch(end)] = None
                nodes.append(helper.make_node("Where", [switch(end), result, f"{end}/own"], [end], name=f"{end}/switch"))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []) for name in switches)
    return made if switch else prefix(made, tuple(value.name for value in made.graph.output))


def _part_for(
    source: onnx.ModelProto,
    index: GraphIndex,
    end: str,
    result: str,
    stops: Collection[str],
    stored: dict[str, onnx.TensorProto],
    made: onnx.ModelProto,
) -> list[onnx.NodeProto]:
    """Nodes of `source` that make one end from the others, under names of their own; their constants go to `made`."""
    part, taken = [], {value.name for value in made.graph.initializer}

    def renamed(name: str) -> str:
        if name == end:
            return result
        return name if not name or name in stops else f"{end}:{name}"

    for at in needed_nodes(source, index, end, stops)[0]:
        node = onnx.NodeProto()
        node.CopyFrom(source.graph.node[at])
        for name in node.input:
            if name in stored and renamed(name) not in taken:
                taken.add(renamed(name))
                constant = made.graph.initializer.add()
                constant.CopyFrom(stored[name])
                constant.name = renamed(name)
        node.name = f"{end}:{index.names[at]}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        part.append(node)
    return part


def _shapes_known(source: onnx.ModelProto, target: onnx.ModelProto) -> set[str]:
    """Shapes in `source` that `target` has under the same name: a part of a graph need not have what they are the shape of."""
    known = {*index_graph(target).producers, *(value.name for value in target.graph.input)}
    return {name for node in source.graph.node if node.op_type in SHAPE_OPS for name in node.output} & known


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made
