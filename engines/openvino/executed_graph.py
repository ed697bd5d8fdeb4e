"""Read layer precisions from what OpenVINO executes: the runtime model of a compiled graph.

Every operator of the runtime model names its type, the kernel that was chosen for it with the precision it computes in
(`primitiveType`, such as "brgemm_avx512_i8"), and the layers of the graph that were fused into it. A generated kernel
("Subgraph") may hold both products of an attention: they are INT8 when the kernel and everything that it reads are, since its
products take two INT8 operands or none; where operands differ it is unknown. A product whose layer lost its name is that of the
only layer that leads to what was fused into it, and that no other operator names. A layer that is not found is left out and so
counts as not INT8. All of it is what this machine's processor runs: another one may choose other kernels.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from engines.layer_records import UNKNOWN, EngineEvidence, GraphFacts, merge_evidence
from engines.openvino.api import compile_graph, read_graph

_PRODUCTS = frozenset(("Convolution", "Deconvolution", "FullyConnected", "GroupConvolution", "MatMul", "RNNCell", "RNNSeq"))
_GENERATED = "Subgraph"
_PRECISIONS = {"i8": "int8", "u8": "int8", "f32": "fp32", "bf16": "bf16", "f16": "fp16"}
"""An operator takes uint8 codes where OpenVINO has shifted symmetric ones: its products are the same integers."""
_ADDED = re.compile(r"/(WithoutBiases|DequantizationMultiply)$")
_QDQ = frozenset(("DequantizeLinear", "QuantizeLinear"))
_NOT_RUN = frozenset(("Const", "Input", "Output", "Reshape"))
"""Types of operators that compute and move nothing."""


def executed_evidence(data: bytes, graph: bytes, facts: GraphFacts) -> EngineEvidence:
    """Evidence for the layers of `graph` in the engine `data`, compiled here for one image."""
    path = Path("engine.onnx")
    free = next(iter(facts.input.shape), -1) < 1
    compiled = compile_graph(read_graph(data, path), path, batch=1 if free else None)
    model = onnx.load_model_from_string(graph)
    layer_of = _layer_names(model, facts)
    products: list[tuple[str, str, str]] = []
    nameless: list[tuple[list[str], str, str]] = []
    kinds = []
    constant: set[str] = set()
    for operator in compiled.get_runtime_model().get_ordered_ops():
        info = _info(operator)
        kind, kernel, sources = info.get("layerType", ""), info.get("primitiveType", ""), _sources(operator)
        if kind == "Const" or (sources and constant.issuperset(name for name, _ in sources)):
            constant.add(operator.get_friendly_name())
            continue
        kinds.append(kind)
        names = info.get("originalLayersNames", "").split(",")
        precision = _PRECISIONS.get(kernel.rpartition("_")[2].lower(), UNKNOWN)
        if kind == _GENERATED:
            read = {precision, *(_PRECISIONS.get(type_name, UNKNOWN) for name, type_name in sources if name not in constant)}
            precision = precision if len(read) == 1 else UNKNOWN
        elif kind in _PRODUCTS:
            names = [_unsplit(name) for name in names]
        else:
            continue
        layers = dict.fromkeys(layer_of[name] for name in names if name in layer_of)
        source = f"OpenVINO runs {kind} with {kernel}"
        products += [(layer, precision, source) for layer in layers]
        if kind in _PRODUCTS and not layers:
            nameless.append((names, precision, source))
    named = {layer for layer, _, _ in products}
    for names, precision, source in nameless:
        leading = _leading_layers(model, names, facts) - named
        products += [(layer, precision, source) for layer in leading if len(leading) == 1]
    executed = [kind for kind in kinds if kind not in _NOT_RUN]
    return EngineEvidence(merge_evidence(products), kernels=len(executed), reformats=executed.count("Reorder"))


def _leading_layers(model: onnx.ModelProto, names: list[str], facts: GraphFacts) -> set[str]:
    """The layers that lead to some nodes, through nothing that multiplies or quantizes."""
    producers = {output: node for node in model.graph.node for output in node.output}
    waiting = [node for node in model.graph.node if node.name in names and node.op_type not in _QDQ]
    layers, known, visited = set(), {layer.name for layer in facts.layers}, set()
    while waiting:
        node = waiting.pop()
        if node.name in known:
            layers.add(node.name)
        elif node.op_type not in _QDQ and node.output[0] not in visited:
            visited.add(node.output[0])
            waiting += [producers[tensor] for tensor in node.input if tensor in producers]
    return layers & frozenset(facts.traceable)


def _layer_names(model: onnx.ModelProto, facts: GraphFacts) -> Mapping[str, str]:
    """What OpenVINO may call a layer -> its name: what computes an output of the graph goes by the name of that output."""
    known = frozenset(facts.traceable)
    nodes = [node for node in model.graph.node if node.name in known]
    outputs = {f"{node.output[0]}{suffix}": node.name for node in nodes for suffix in ("", "_original")}
    return outputs | {name: name for name in known}


def _info(operator: Any) -> dict[str, str]:
    values = operator.get_rt_info().items()
    return {key: str(value.astype(str)) if hasattr(value, "astype") else str(value) for key, value in values}


def _sources(operator: Any) -> list[tuple[str, str]]:
    """Name of the operator and type of the tensor for each input."""
    sources = []
    for port in operator.inputs():
        output = port.get_source_output()
        node = output.get_node()
        types = _info(node).get("outputPrecisions", "").split(",")
        sources.append((node.get_friendly_name(), types[min(output.get_index(), len(types) - 1)].lower()))
    return sources


def _unsplit(name: str) -> str:
    """The name of a layer without what OpenVINO appends when it splits one."""
    while (shorter := _ADDED.sub("", name)) != name:
        name = shorter
    return name
