"""A graph as units that can be compared and computed one by one, however its inside was rewritten.

A unit ends in the output of a layer that multiplies (its bias included), in a sum of two activations such as the residual
stream, or in the graph's output, and begins behind the ends of the units before it:

    end of a unit -> norm, GELU, Q/DQ, Cast ... -> MatMul -> bias -> end of this unit

Folding, refinement, quantization and typing change what is inside: factors move from a norm into the weights behind it, Q/DQ
and Casts appear. The ends stay the same tensors under the same names, up to powers of two, which is why errors are measured
there and nowhere else. Norms are part of the layer that reads them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import onnx

from calib.graph import GraphIndex, index_graph
from calib.graph_segments import SHAPE_OPS
from calib.macs import MAC_OPS
from edge.attribution.attribution_record import NotCompared


@dataclass(frozen=True)
class Unit:
    """One unit.

    Attributes:
        name: the node that multiplies, that adds, or that makes the graph's output.
        op_type: its operator.
        output: the tensor in which the unit ends.
        reads: ends of earlier units, and the graph's input, that it computes from; ascending by name.
        nodes: names of all its nodes that depend on these, in graph order; units may share some, such as a norm.
    """

    name: str
    op_type: str
    output: str
    reads: tuple[str, ...]
    nodes: tuple[str, ...]


def find_units(model: onnx.ModelProto) -> tuple[Unit, ...]:
    """The units of a float graph in graph order."""
    index, nodes = index_graph(model), model.graph.node
    outputs = {value.name for value in model.graph.output}
    ends: dict[str, int] = {}
    for at, node in enumerate(nodes):
        if not node.output or node.output[0] in index.constant_like:
            continue
        if node.op_type in MAC_OPS:
            ends[_biased(model, index, node.output[0], outputs)] = at
        elif node.op_type == "Add" and not any(name in index.constant_like for name in node.input):
            ends[node.output[0]] = at
    for name in outputs - ends.keys():
        ends[name] = index.producers[name]
    ordered = sorted(ends, key=lambda end: index.producers[end])
    return tuple(_between(model, [Unit(index.names[ends[e]], nodes[ends[e]].op_type, e, (), ()) for e in ordered], ends))


def comparable(base: onnx.ModelProto, judged: onnx.ModelProto) -> tuple[tuple[Unit, ...], tuple[NotCompared, ...]]:
    """The units of a float graph whose ends another graph has too, and those that it lacks.

    Where an end is missing, the units behind it reach back to the ones before it, so that nothing goes unmeasured.
    """
    made = index_graph(judged).producers
    units = find_units(base)
    present = [unit for unit in units if unit.output in made]
    lost = [NotCompared(unit.name, f"the judged graph has no tensor {unit.output}") for unit in units if unit not in present]
    return tuple(_between(base, present, {unit.output for unit in present}) if lost else present), tuple(lost)


def rewired(units: tuple[Unit, ...], judged: onnx.ModelProto) -> dict[str, str]:
    """Units that the judged graph computes from other tensors: name -> what it reads instead, for a person."""
    index = index_graph(judged)
    stops = {*(unit.output for unit in units), *index.inputs}
    found = {}
    for unit in units:
        reads = inside_unit(judged, index, unit.output, stops)[1]
        if {*reads} - {*index.inputs} != {*unit.reads} - {
            *index.inputs
        }:  # a Cast of the image may stand before its shape is read
            found[unit.name] = f"reads {', '.join(reads) or 'nothing'} instead of {', '.join(unit.reads) or 'nothing'}"
    return found


def _between(base: onnx.ModelProto, units: list[Unit], ends: Collection[str]) -> list[Unit]:
    """The same units, with these ends alone between them."""
    index = index_graph(base)
    stops = {*ends, *index.inputs}
    found = []
    for unit in units:
        inside, reads = inside_unit(base, index, unit.output, stops)
        found.append(replace(unit, reads=reads, nodes=tuple(index.names[at] for at in inside)))
    return found


def inside_unit(
    model: onnx.ModelProto, index: GraphIndex, end: str, stops: Collection[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What makes a tensor, back to `stops`: nodes that depend on these, ascending, and the stops that they read.

    What depends on shapes and constants alone is left out.
    """
    needed, reads = needed_nodes(model, index, end, stops)
    depends: set[str] = set(reads)
    inside = []
    for at in needed:
        node = model.graph.node[at]
        if node.op_type not in SHAPE_OPS and depends & index.reads[at]:
            depends.update(node.output)
            inside.append(at)
    return tuple(inside), reads


def needed_nodes(
    model: onnx.ModelProto, index: GraphIndex, end: str, stops: Collection[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """All nodes needed to compute a tensor from `stops`, those of shapes and constants included, and the stops read.

    A stop that is read for its shape alone does not count as read.
    """
    nodes: set[int] = set()
    reads: set[str] = set()
    wanted = [index.producers[end]]
    while wanted:
        at = wanted.pop()
        if at in nodes:
            continue
        nodes.add(at)
        node = model.graph.node[at]
        for name in index.reads[at]:
            if name in stops:
                if node.op_type not in SHAPE_OPS:
                    reads.add(name)
            elif name in index.producers:
                wanted.append(index.producers[name])
    return tuple(sorted(nodes)), tuple(sorted(reads))


def _biased(model: onnx.ModelProto, index: GraphIndex, output: str, outputs: Collection[str]) -> str:
    """The tensor behind the addition of a constant, where nothing else reads the product; else the product."""
    readers = index.consumers.get(output, ())
    if len(readers) != 1 or output in outputs:
        return output
    node = model.graph.node[readers[0]]
    added = node.op_type == "Add" and any(name in index.constants for name in node.input)
    return str(node.output[0]) if added else output
