"""Run all lint rules on one graph."""

import onnx

from calib.graph import index_graph, infer_types, opset_version
from calib.lint.finding import LintFinding
from calib.lint.parameter_rules import lint_graph_level, lint_parameters
from calib.lint.placement_rules import lint_placement


def lint_graph(model: onnx.ModelProto) -> tuple[LintFinding, ...]:
    """All findings, graph-wide ones first, then in graph order; empty for a graph that becomes INT8 wherever it has Q/DQ.

    A float graph without any Q/DQ gets one finding. Nodes without Q/DQ on any input are float by request: no finding.
    """
    index = index_graph(model)
    findings = list(lint_graph_level(model, index.names))
    types = infer_types(model)
    for name, node in index.nodes.items():
        findings += lint_parameters(name, node, index, types, opset_version(model))
        findings += lint_placement(name, node, index)
    return tuple(findings)
