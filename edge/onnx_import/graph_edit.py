"""Small edits that the passes share, subgraphs included: walk, rename, replace readers, remove what nothing reads."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calib.graph import tensors_read

DEFAULT_DOMAINS = ("", "ai.onnx")


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs among the attributes of a node (If, Loop, Scan)."""
    return [graph for item in node.attribute for graph in (*item.graphs, *([item.g] if item.HasField("g") else []))]


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and every graph inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of the graphs inside it."""
    for inner in all_graphs(graph):
        yield from inner.node


def is_operator(node: onnx.NodeProto, *operators: str) -> bool:
    """Whether a node is one of these operators of the ONNX standard."""
    return node.op_type in operators and node.domain in DEFAULT_DOMAINS


def replace_readers(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Let every node, the subgraphs' too, read another tensor in place of one; what computes them is left as it is."""
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            replace_readers(inner, renamed)
            for value in inner.output:
                value.name = renamed.get(value.name, value.name)


def set_initializers(graph: onnx.GraphProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Add initializers; whatever computed these tensors loses its output and is removed when no other output is read."""
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    for node in graph.node:
        node.output[:] = ["" if name in values else name for name in node.output]


def prune(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers of the main graph that nothing reads, types of inner tensors and unused operator sets."""
    graph = model.graph
    read = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if any(name and name in read for name in node.output):
            kept.append(node)
            read |= tensors_read([node])
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    replace_items(graph.node, reversed(kept))
    replace_items(graph.initializer, initializers)
    del graph.value_info[:]
    domains = {"" if node.domain in DEFAULT_DOMAINS else node.domain for node in all_nodes(graph)} | {""}
    replace_items(
        model.opset_import, [o for o in model.opset_import if ("" if o.domain in DEFAULT_DOMAINS else o.domain) in domains]
    )


def replace_items(field: Any, values: Iterable[Any]) -> None:
    """Set a repeated field to some of its own items."""
    kept = list(values)
    copies = [type(value)() for value in kept]
    for copy, value in zip(copies, kept, strict=True):
        copy.CopyFrom(value)
    del field[:]
    field.extend(copies)


def unused_name(preferred: str, taken: set[str]) -> str:
    """A name that is not yet taken, numbered if the preferred one is; it is taken from then on."""
    name, count = preferred, 1
    while name in taken:
        count += 1
        name = f"{preferred}_{count}"
    taken.add(name)
    return name
