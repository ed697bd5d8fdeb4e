"""Read layer precisions from what OpenVINO executes: the runtime model of a compiled graph.

Every operator of the runtime model names its type, the kernel that was chosen for it with the precision it computes in
(`primitiveType`, such as "brgemm_avx512_i8"), and the layers of the graph that were fused into it. A layer that no product
names is left out and so counts as not INT8. It is what this machine's processor runs: another one may choose other kernels.
"""

import re
from pathlib import Path
from typing import Any

import onnx

from engines.layer_records import UNKNOWN, EngineEvidence, GraphFacts, merge_evidence
from engines.openvino.api import compile_graph, read_graph

_PRODUCTS = frozenset(("Convolution", "Deconvolution", "FullyConnected", "GroupConvolution", "MatMul", "RNNCell", "RNNSeq"))
_PRECISIONS = {"i8": "int8", "u8": "int8", "f32": "fp32", "bf16": "bf16", "f16": "fp16"}
"""An operator takes uint8 codes where OpenVINO has shifted symmetric ones: its products are the same integers."""
_ADDED = re.compile(r"/(WithoutBiases|DequantizationMultiply)$")
_NOT_RUN = frozenset(("Const", "Input", "Output", "Parameter", "Result"))


def executed_evidence(data: bytes, graph: bytes, facts: GraphFacts) -> EngineEvidence:
    """Evidence for the layers of a graph in the engine `data`, compiled here for one image."""
    path = Path("engine.onnx")
    free = next(iter(facts.input.shape), -1) < 1
    compiled = compile_graph(read_graph(data, path), path, batch=1 if free else None)
    known = frozenset(facts.traceable)
    layer_of: dict[str, str] = {}
    for node in onnx.load_model_from_string(graph).graph.node:
        if node.name in known:  # what computes an output of the graph goes by the name of that output
            layer_of |= {f"{node.output[0]}{suffix}": node.name for suffix in ("", "_original")}
    layer_of |= {name: name for name in known}
    products, executed, reorders = [], 0, 0
    for operator in compiled.get_runtime_model().get_ordered_ops():
        info = {key: _text(value) for key, value in operator.get_rt_info().items()}
        kind, kernel = info.get("layerType", ""), info.get("primitiveType", "")
        executed += kind not in _NOT_RUN
        reorders += kind == "Reorder"
        if kind in _PRODUCTS:
            precision = _PRECISIONS.get(kernel.rpartition("_")[2].lower(), UNKNOWN)
            names = map(_unsplit, info.get("originalLayersNames", "").split(","))
            layers = dict.fromkeys(layer_of[name] for name in names if name in layer_of)
            products += [(layer, precision, f"OpenVINO runs {kind} with {kernel}") for layer in layers]
    return EngineEvidence(merge_evidence(products), kernels=executed, reformats=reorders)


def _unsplit(name: str) -> str:
    """The name of a layer without what OpenVINO appends when it splits one."""
    while (shorter := _ADDED.sub("", name)) != name:
        name = shorter
    return name


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
