"""What the rest of a build has to respect around an XNorm: which nodes keep FP32, and no Q/DQ before the norm."""

from collections.abc import Collection, Iterable

import onnx

from calib.graph import index_graph
from edge.stability.finders.xnorm import XNormSite

_REARRANGING = frozenset({"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze"})


def fp32_nodes(
    model: onnx.ModelProto, sites: tuple[XNormSite, ...], islands: Collection[str], *, with_norms: bool = True
) -> frozenset[str]:
    """Names of the nodes that stay in FP32 when the rest of a graph, with or without Q/DQ, is FP16.

    `islands` names the sites that compute in FP32 altogether, the K^T V that feeds them included. Every other K^T V stays in
    FP32, too: a sum over all tokens in FP16 would lose digits that no scale can restore. Its norm stays with it, as that takes
    no more Casts and rounds less. A product of INT8 operands is summed in INT32 anyway and needs no Casts; its norm is FP16.
    `with_norms` = False leaves these norms out: what then holds in FP16 holds of INT8 builds as well.
    """
    index = index_graph(model)
    kept: set[str] = set()
    for site in sites:
        if site.name in islands:
            kept.update(site.nodes)
        elif site.operand == "kv":
            producers = [index.producer(tensor) for tensor in index.nodes[site.nodes[0]].input]
            if not all(node is not None and node.op_type == "DequantizeLinear" for node in producers):
                kept.update(site.nodes if with_norms else site.nodes[:1])
    return frozenset(kept)


def quantized_before_norm(model: onnx.ModelProto, sites: Iterable[XNormSite]) -> tuple[str, ...]:
    """Names of the sites whose argument passes a Q/DQ pair between the product that computes it and the norm."""
    index = index_graph(model)
    names = []
    for site in sites:
        tensor = site.argument
        while (node := index.producer(tensor)) is not None and node.op_type in _REARRANGING:
            tensor = node.input[0]
        if node is not None and node.op_type == "DequantizeLinear":
            names.append(site.name)
    return tuple(names)
