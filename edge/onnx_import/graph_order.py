"""Check that every tensor is computed once and before it is read; sort nodes that stand in another order; name every node."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx

from calib.errors import GraphError
from calib.graph import tensors_read
from edge.onnx_import.graph_edit import all_nodes, subgraphs, unused_name
from edge.onnx_import.imported import Change


def order_nodes(model: onnx.ModelProto, path: Path) -> list[Change]:
    """Sort the nodes of a model and of its subgraphs so that each stands after those that it reads.

    Raises GraphError, naming node and tensor, for a cycle, a tensor that nothing computes and one that is computed twice.
    """
    listed = Counter(value.name for value in model.graph.output)
    _refuse_repeated(listed, "an output is listed twice", path)
    return _order(model.graph, frozenset(), path)


def _order(graph: onnx.GraphProto, outer: frozenset[str], path: Path) -> list[Change]:
    inputs = {value.name for value in graph.input}
    _refuse_repeated(Counter(value.name for value in graph.input), "an input is declared twice", path)
    _refuse_repeated(Counter(tensor.name for tensor in graph.initializer), "an initializer is stored twice", path)
    stored = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    computed = Counter([name for node in graph.node for name in node.output if name])
    _refuse_repeated(computed + Counter(list(inputs | stored)), "a tensor is computed twice", path)
    known, made = outer | inputs | stored, frozenset(computed)  # a set: a difference with the keys of a dict walks over all
    for node in graph.node:
        missing = tensors_read([node], ()) - known - made - {""} - _inner_names(node)
        if missing:
            raise GraphError("a node reads a tensor that nothing computes", where=_where(path, node), found=min(missing)[:80])
    absent = {value.name for value in graph.output} - known - made
    if absent:
        raise GraphError("an output of the graph is computed by nothing", where=path, found=min(absent)[:80])
    changes = _sort(graph, known, path)
    for node in graph.node:
        for inner in subgraphs(node):
            changes += _order(inner, known | made, path)
    return changes


def _sort(graph: onnx.GraphProto, known: frozenset[str] | set[str], path: Path) -> list[Change]:
    """A stable topological sort, in place."""
    waiting = {i: tensors_read([node]) - known - {""} - _inner_names(node) for i, node in enumerate(graph.node)}
    readers: dict[str, list[int]] = {}
    for i, names in waiting.items():
        for name in names:
            readers.setdefault(name, []).append(i)
    order: list[int] = []
    ready = [i for i in reversed(waiting) if not waiting[i]]
    while ready:
        i = ready.pop()
        order.append(i)
        for name in graph.node[i].output:
            freed = []
            for reader in readers.get(name, ()):
                waiting[reader].discard(name)
                if not waiting[reader]:
                    freed.append(reader)
            ready += sorted(freed, reverse=True)
    if len(order) < len(graph.node):
        stuck = min(set(waiting) - set(order))
        raise GraphError("the graph has a cycle", where=_where(path, graph.node[stuck]), found=min(waiting[stuck])[:80])
    read_late, done = False, set(known)
    for node in graph.node:
        read_late |= not tensors_read([node]) - {""} - _inner_names(node) <= done
        done.update(node.output)
    if not read_late:
        return []
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return [Change("order", graph.name, "nodes sorted: some stood before what they read")]


def _inner_names(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of a node define themselves."""
    names: set[str] = set()
    for graph in subgraphs(node):
        names |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            names |= {*inner.output} | _inner_names(inner)
    return names


def _refuse_repeated(counts: Counter[str], what: str, path: Path) -> None:
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise GraphError(what, where=path, found=repeated[0][:80])


def _where(path: Path, node: onnx.NodeProto) -> str:
    return f"{path}, node {(node.name or ', '.join(node.output[:1]))[:80]}"


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name: its own, numbered where two have it, or that of its first output."""
    taken: set[str] = set()
    for node in all_nodes(model.graph):
        node.name = unused_name(node.name or _first(node.output) or node.op_type, taken)


def _first(names: Iterable[str]) -> str:
    return next((name for name in names if name), "")
