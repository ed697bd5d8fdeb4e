"""Group normalization by InstanceNormalization: kept as it is, and named.

    Reshape (N, G, -1), InstanceNormalization, Reshape back, Mul gain, Add bias

GroupNormalization would be one node, but changed its meaning from opset 18 to 21, and whether TensorRT computes its
statistics in FP32 is not known; for InstanceNormalization neither.
"""

import onnx

from edge.onnx_import.graph_rewriting import GraphRewriting
from edge.onnx_import.rewritten import Rewritten

KIND = "group_norm"
_REASON = "group normalization stays InstanceNormalization between two Reshape nodes, in the precision of its neighbours"


def find_group_norms(model: onnx.ModelProto) -> list[Rewritten]:
    """Every InstanceNormalization that stands for a group normalization; the model is not changed."""
    graph = GraphRewriting(model)
    places: list[Rewritten] = []
    for node in graph.forward():
        if node.op_type != "InstanceNormalization":
            continue
        if graph.producer(node.input[0], "Reshape") is not None:
            places.append(Rewritten(KIND, graph.name(node), "", _REASON))
    return places
