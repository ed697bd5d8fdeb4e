"""Read layer precisions from an optimized ONNX Runtime model: the operator that replaced each layer of the graph.

INT8: QLinearConv, QLinearMatMul, QGemm, MatMulIntegerToFloat, MatMulInteger, ConvInteger. Float: Conv, MatMul, Gemm and their
fused forms. ONNX Runtime keeps the name, or at least the output, of a node that it rewrites; a layer that has lost both is
left out and so counts as not INT8.
"""

import onnx

from calib.graph import attribute, infer_types
from calib.mac_formulas import FORMULAS
from engines.layer_records import EngineEvidence, GraphFacts, LayerEvidence
from engines.layer_requests import TYPE_NAMES

INT8_OPS = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"})
_FLOAT_OPS = frozenset({"Conv", "MatMul", "Gemm", "FusedConv", "FusedMatMul", "FusedGemm", *FORMULAS} - INT8_OPS)


def optimized_evidence(data: bytes, graph: bytes, facts: GraphFacts) -> EngineEvidence:
    """Evidence for the layers of `graph` in the optimized model `data`."""
    optimized, model = onnx.load_model_from_string(data), onnx.load_model_from_string(graph)
    known = frozenset(facts.traceable)
    node_of_output = {node.output[0]: node.name for node in model.graph.node if node.name in known}
    types = _float_types(optimized, model)
    evidence = {}
    for node in optimized.graph.node:
        name = node.name if node.name in known else node_of_output.get(node.output[0], "")
        if not name:
            continue
        if node.op_type in INT8_OPS:
            evidence[name] = LayerEvidence("int8", f"ONNX Runtime runs {node.op_type}")
        elif node.op_type in _FLOAT_OPS:
            kind = types.get(node.input[0], "unknown")
            evidence[name] = LayerEvidence(kind, f"ONNX Runtime has no INT8 kernel for it here and runs {node.op_type}")
    return EngineEvidence(evidence, kernels=len(optimized.graph.node))


def _float_types(optimized: onnx.ModelProto, model: onnx.ModelProto) -> dict[str, str]:
    """Tensor -> type name. ONNX Runtime's own operators have no type inference: the original graph supplies missing types."""
    types = {name: t.dtype for name, t in infer_types(model).items()}
    types |= {node.output[0]: attribute(node, "to", 0) for node in optimized.graph.node if node.op_type == "Cast"}
    return {name: TYPE_NAMES.get(kind, "unknown") for name, kind in types.items()}
