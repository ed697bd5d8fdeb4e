"""Inline the functions that a model brings along."""

from pathlib import Path

import onnx
from onnx import inliner

from calib.errors import GraphError
from edge.onnx_import.graph_edit import all_nodes, subgraphs
from edge.onnx_import.imported import Change


def inline_functions(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, list[Change]]:
    """The model with nodes in place of calls of local functions. Raises GraphError for a function that calls itself."""
    if not model.functions:
        return model, []
    functions = {(function.domain, function.name): function for function in model.functions}
    calls = {key: {called for called in _called(function.node) if called in functions} for key, function in functions.items()}
    while calls:
        leaves = {key for key, called in calls.items() if not called}
        if not leaves:
            raise GraphError("a local function calls itself", where=f"{path}, function {min(calls)[1]:.80}")
        calls = {key: called - leaves for key, called in calls.items() if key not in leaves}
    changes = [
        Change("inlined", node.name or ", ".join(node.output[:1]), f"local function {node.domain}.{node.op_type}")
        for node in all_nodes(model.graph)
        if (node.domain, node.op_type) in functions
    ]
    try:
        inlined = inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # the bindings of onnx raise many kinds
        raise GraphError("local functions cannot be inlined", where=path, found=f"{error!s:.300}") from error
    del inlined.functions[:]
    return inlined, changes


def _called(nodes: object) -> set[tuple[str, str]]:
    called: set[tuple[str, str]] = set()
    for node in nodes:  # type: ignore[attr-defined]  # protobuf's repeated fields have no common type
        called.add((node.domain, node.op_type))
        for graph in subgraphs(node):
            called |= _called(graph.node)
    return called
