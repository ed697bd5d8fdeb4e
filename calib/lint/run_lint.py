"""All rules on one graph."""

from __future__ import annotations

import onnx

from calib.graph import index_graph, infer_types, opset_version
from calib.lint.finding import Finding
from calib.lint.parameter_rules import lint_graph_level, lint_parameters
from calib.lint.placement_rules import lint_placement


def lint_graph(model: onnx.ModelProto) -> tuple[Finding, ...]:
    """All findings in graph order, graph-wide ones first; empty for a graph that becomes INT8 where it says so.

    A float graph without any Q/DQ gets one finding. Nodes without Q/DQ on any input are float by request: no finding.
    Raises InputError when shape inference fails on the graph.
    """
    index = index_graph(model)
    found = lint_graph_level(model, index.names)
    types = infer_types(model)
    for name, node in zip(index.names, model.graph.node, strict=True):
        found += lint_parameters(name, node, index, types, opset_version(model))
        found += lint_placement(name, node, index)
    return tuple(found)
