"""What may stand where around an XNorm: which nodes keep FP32, and no Q/DQ in front of the norm."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from calib.graph import GraphIndex, index_graph
from edge.stability.finders.xnorm import XNormSite

_REARRANGING = frozenset({"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze"})


def fp32_nodes(model: onnx.ModelProto, sites: tuple[XNormSite, ...], islands: Collection[str]) -> frozenset[str]:
    """Names of the nodes that stay in FP32 when the rest of the graph is FP16.

    Args:
        model: the graph, with or without Q/DQ.
        sites: of this graph.
        islands: names of the sites that compute in FP32 altogether, the K^T V that feeds them included.

    Of every other site only K^T V itself stays: Casts around a MatMul ask TensorRT for FP32 accumulators with FP16 operands,
    and a sum over all tokens in FP16 would lose digits that no scale brings back. A product of INT8 operands is summed in
    INT32 anyway and needs none.
    """
    index = index_graph(model)
    operators = dict(zip(index.names, model.graph.node, strict=True))
    kept: set[str] = set()
    for site in sites:
        if site.name in islands:
            kept.update(site.nodes)
        elif site.operand == "kv" and not all(
            _maker(model, index, t) == "DequantizeLinear" for t in operators[site.nodes[0]].input
        ):
            kept.add(site.nodes[0])
    return frozenset(kept)


def quantized_in_front(model: onnx.ModelProto, sites: tuple[XNormSite, ...]) -> tuple[str, ...]:
    """Names of the sites whose argument passes a Q/DQ pair between the product that makes it and the norm."""
    index = index_graph(model)
    found = []
    for site in sites:
        tensor = site.argument
        while _maker(model, index, tensor) in _REARRANGING:
            tensor = model.graph.node[index.producers[tensor]].input[0]
        if _maker(model, index, tensor) == "DequantizeLinear":
            found.append(site.name)
    return tuple(found)


def _maker(model: onnx.ModelProto, index: GraphIndex, tensor: str) -> str:
    """The operator that makes a tensor, "" for none."""
    position = index.producers.get(tensor)
    return "" if position is None else str(model.graph.node[position].op_type)
