"""A graph as layer spans that can be compared and computed one by one, however their inside was rewritten.

A span ends in the output of a layer that multiplies (its bias included), in a sum of two activations such as the residual
stream, or in the graph's output, and begins after the ends of the spans before it:

    end of a span -> norm, GELU, Q/DQ, Cast ... -> MatMul -> bias -> end of this span

Folding, refinement, quantization and typing change what is inside: factors move from a norm into the weights after it, Q/DQ
and Casts appear. The ends stay the same tensors under the same names, up to powers of two, which is why errors are measured
there and nowhere else. Norms are part of the layer that reads them.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import onnx

from calib.graph import GraphIndex, index_graph
from calib.graph_segments import SHAPE_OPS, needed_nodes
from calib.macs import multiplies
from edge.attribution.attribution_record import NotCompared


@dataclass(frozen=True)
class LayerSpan:
    """One span.

    Attributes:
        name: the node that multiplies, that adds, or that computes the graph's output.
        op_type: its operator.
        output: the tensor in which the span ends.
        reads: ends of earlier spans, and the graph's input, that it computes from; ascending by name.
        nodes: names of all its nodes that depend on these, in graph order; spans may share some, such as a norm.
    """

    name: str
    op_type: str
    output: str
    reads: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


def find_spans(model: onnx.ModelProto) -> tuple[LayerSpan, ...]:
    """The spans of a float graph in graph order."""
    index, nodes = index_graph(model), model.graph.node
    outputs = {value.name for value in model.graph.output}
    ends: dict[str, int] = {}
    for at, node in enumerate(nodes):
        if not node.output or index.constant_like.intersection(node.output):
            continue
        if multiplies(node):
            ends[_biased(model, index, _main_output(node, index, outputs), outputs)] = at
        elif node.op_type == "Add" and not any(name in index.constant_like for name in node.input):
            ends[node.output[0]] = at
    for name in outputs - ends.keys():
        ends[name] = index.producers[name]
    ordered = sorted(ends, key=lambda end: index.producers[end])
    return _delimited(model, [LayerSpan(index.names[ends[end]], nodes[ends[end]].op_type, end) for end in ordered])


def shared_spans(base: onnx.ModelProto, judged: onnx.ModelProto) -> tuple[tuple[LayerSpan, ...], tuple[NotCompared, ...]]:
    """The spans of a float graph whose ends another graph has too, and those that it lacks.

    Where an end is missing, the spans after it reach back to the ones before it, so that nothing goes unmeasured.
    """
    produced = index_graph(judged).producers
    spans = find_spans(base)
    shared = [span for span in spans if span.output in produced]
    missing = [NotCompared(s.name, f"the judged graph has no tensor {s.output}") for s in spans if s.output not in produced]
    return _delimited(base, shared) if missing else spans, tuple(missing)


def rewired_spans(spans: tuple[LayerSpan, ...], judged: onnx.ModelProto) -> dict[str, str]:
    """Spans that the judged graph computes from other tensors: name -> what it reads instead, in words.

    The graph's input does not count: a Cast of the images may be inserted before their shape is read.
    """
    index = index_graph(judged)
    stops = {*(span.output for span in spans), *index.inputs}
    rewired = {}
    for span in spans:
        reads = _inside(judged, index, span.output, stops)[1]
        if {*reads} - {*index.inputs} != {*span.reads} - {*index.inputs}:
            rewired[span.name] = f"reads {', '.join(reads) or 'nothing'} instead of {', '.join(span.reads) or 'nothing'}"
    return rewired


def _delimited(model: onnx.ModelProto, spans: list[LayerSpan]) -> tuple[LayerSpan, ...]:
    """The spans with what they read and hold, given that these and no others lie between them."""
    index = index_graph(model)
    stops = {*(span.output for span in spans), *index.inputs}
    delimited = []
    for span in spans:
        nodes, reads = _inside(model, index, span.output, stops)
        delimited.append(replace(span, nodes=nodes, reads=reads))
    return tuple(delimited)


def _inside(model: onnx.ModelProto, index: GraphIndex, end: str, stops: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """What computes a tensor, back to `stops`: names of the nodes that depend on these, and the stops that they read.

    What depends on shapes and constants alone is left out.
    """
    needed = [at for at in needed_nodes(index, [end], stops) if model.graph.node[at].op_type not in SHAPE_OPS]
    reads = {name for at in needed for name in index.reads[at] if name in stops}
    depends, inside = set(reads), []
    for at in needed:
        if depends & index.reads[at]:
            depends.update(model.graph.node[at].output)
            inside.append(index.names[at])
    return tuple(inside), tuple(sorted(reads))


def _main_output(node: onnx.NodeProto, index: GraphIndex, outputs: Collection[str]) -> str:
    """The first output of a node that is read; of a recurrent layer it may be the last state alone."""
    read = (name for name in node.output if name and (name in index.consumers or name in outputs))
    return str(next(read, node.output[0]))


def _biased(model: onnx.ModelProto, index: GraphIndex, output: str, outputs: Collection[str]) -> str:
    """The tensor after the addition of a constant, where nothing else reads the product; else the product."""
    readers = index.consumers.get(output, ())
    if len(readers) != 1 or output in outputs:
        return output
    node = model.graph.node[readers[0]]
    added = node.op_type == "Add" and any(name in index.constants for name in node.input)
    return str(node.output[0]) if added else output
