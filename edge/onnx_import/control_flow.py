"""If nodes whose condition is a constant are replaced by the branch that is taken; other control flow stays, and is named."""

from pathlib import Path

import onnx

from calib.errors import GraphError
from calib.graph import to_array
from edge.onnx_import.graph_edit import all_nodes, is_operator, replace_readers, unused_name
from edge.onnx_import.imported import Change

CONTROL_FLOW = ("If", "Loop", "Scan")


def take_branches(model: onnx.ModelProto, path: Path) -> list[Change]:
    """Replace every If of the main graph whose condition is an initializer, in place. Raises GraphError for an empty one."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    changes: list[Change] = []
    nodes: list[onnx.NodeProto] = []
    taken = {name for node in all_nodes(graph) for name in (*node.input, *node.output)} | constants.keys()
    for node in graph.node:
        if not is_operator(node, "If") or node.input[0] not in constants:
            nodes.append(node)
            continue
        condition = to_array(constants[node.input[0]])
        if condition.size != 1:
            raise GraphError(
                "the condition of an If is not one value", where=f"{path}, node {node.name}", found=condition.shape
            )
        side = "then" if condition.item() else "else"
        (branch,) = [item.g for item in node.attribute if item.name == f"{side}_branch"]
        nodes += _inline(node, branch, graph, taken)
        changes.append(Change("branch", node.name or node.output[0], f"condition is constant: {side} branch taken"))
    if changes:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return changes


def _inline(node: onnx.NodeProto, branch: onnx.GraphProto, graph: onnx.GraphProto, taken: set[str]) -> list[onnx.NodeProto]:
    """The nodes of a branch, with names of their own, whose results have the names of the node's outputs."""
    inner = {name for step in branch.node for name in step.output if name} | {tensor.name for tensor in branch.initializer}
    prefix = node.name or node.output[0]
    renamed = {name: unused_name(f"{prefix}/{name}", taken) for name in sorted(inner)}
    body = onnx.GraphProto.FromString(branch.SerializeToString())
    replace_readers(body, renamed)
    for step in body.node:
        step.output[:] = [renamed.get(name, name) for name in step.output]
        step.name = f"{prefix}/{step.name}" if step.name else ""
    for tensor in body.initializer:
        tensor.name = renamed[tensor.name]
    graph.initializer.extend(body.initializer)
    ends = [
        onnx.helper.make_node("Identity", [renamed.get(value.name, value.name)], [output], name=f"{prefix}/{output}")
        for value, output in zip(branch.output, node.output, strict=False)
        if output
    ]
    return [*body.node, *ends]
