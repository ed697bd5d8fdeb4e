"""Describe an ONNX file: the graph, the files of its weights, what is quantized in it and what is not."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import InputError
from calib.files import sha256_bytes, sha256_file
from edge.inspect.description import Description, Listing, cut_text, size_text
from edge.inspect.read_described import read_described

if TYPE_CHECKING:
    import onnx

LISTED_FINDINGS = 20
_LONGEST_PROPERTY = 100
_LONGEST_REASON = 400


def describe_onnx(path: Path) -> Description:
    """An ONNX graph and the files of its weights: inputs, outputs, operators, Q/DQ, multiply-accumulates, layers in float.

    Of a quantized graph the lint findings, too. Files of weights are read as an import reads them.
    """
    data, recorded = read_described(path)
    model, weights = _with_weights(data, path)
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    operators = Counter(node.op_type for node in graph.node)
    facts = {
        "file": f"{size_text(len(data))}, sha256 {sha256_bytes(data)}",
        **weights,
        **recorded,
        "input": "; ".join(_tensor(v) for v in graph.input if v.name not in constants),
        "output": "; ".join(_tensor(v) for v in graph.output),
        "opset": ", ".join(f"{o.version}{f' of {o.domain}' if o.domain else ''}" for o in model.opset_import),
        "nodes": f"{len(graph.node)}: " + ", ".join(f"{n} {name}" for name, n in operators.most_common()),
        "constants": f"{len(graph.initializer)}, {sum(math.prod(t.dims) for t in graph.initializer):,} numbers",
        "multiply-accumulates": _macs(model),
        "Q/DQ": _quantized(model),
    }
    facts |= {f"metadata {p.key}": cut_text(p.value, _LONGEST_PROPERTY) for p in model.metadata_props if p.value}
    synthetic = any(p.key == "calib.synthetic" for p in model.metadata_props)
    warnings = ("SYNTHETIC IMAGES: the scales were not calibrated on real images",) if synthetic else ()
    return Description("ONNX graph", facts, (*_float_layers(model), *_findings(model)), warnings)


def _tensor(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    kind = value.type.tensor_type
    sides = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in kind.shape.dim]
    return f"{value.name}: {TensorProto.DataType.Name(kind.elem_type).lower()} ({', '.join(sides)})"


def _macs(model: onnx.ModelProto) -> str:
    """Counted for one image, or why the shapes of the graph cannot be inferred."""
    from calib.macs import count_macs

    try:
        macs = count_macs(model)
    except InputError as error:
        return f"cannot be counted: {str(error).splitlines()[0]}"
    missing = f"; {len(macs.not_counted)} not counted: {', '.join(list(macs.not_counted)[:4])}" if macs.not_counted else ""
    return f"{macs.total:,} in {len(macs.nodes)} layers, for one image{missing}"


def _with_weights(data: bytes, path: Path) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with all its weights, and a fact on each file beside it that holds some."""
    from onnx import TensorProto

    from calib.graph import check_model, decode_model
    from edge.onnx_import.external_data import read_model, tensors_of

    model = decode_model(data, path)
    if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors_of(model)):
        check_model(model, path)
        return model, {}
    model, digest, joined = read_model(path)
    files = [path.parent / change.node for change in joined]
    facts = {f"weights in {file.name}": f"{size_text(file.stat().st_size)}, sha256 {sha256_file(file)}" for file in files}
    return model, {**facts, "graph and weights": f"sha256 {digest}"}


def _float_layers(model: onnx.ModelProto) -> tuple[Listing, ...]:
    """Layers that multiply in float: of a quantized graph, or of a float graph once it is calibrated. Nothing is run."""
    from calib.qdq_writer import read_qdq

    quantized = bool(read_qdq(model))
    try:
        return _layers_in_float(model) if quantized else _layers_left_in_float(model)
    except InputError as error:
        if quantized:  # `_macs` and `_findings` give the reason
            return ()
        return (Listing("Calibration refuses this graph as it is", ("reason",), ((cut_text(error, _LONGEST_REASON),),)),)


def _layers_in_float(model: onnx.ModelProto) -> tuple[Listing, ...]:
    """Layers of a quantized graph that do not request INT8, most multiply-accumulates first."""
    from engines.layer_requests import read_layers
    from engines.precision_receipt import share_text

    layers = read_layers(model, measure=False)
    total = max(sum(layer.macs for layer in layers), 1)
    left = sorted((layer for layer in layers if layer.requested != "int8"), key=lambda layer: -layer.macs)
    rows = tuple((layer.name, layer.op_type, layer.requested, share_text(layer.macs / total), layer.problem) for layer in left)
    columns = ("layer", "operator", "requested", "share", "reason")
    return (Listing(f"Layers in float: {len(rows)}", columns, rows[:LISTED_FINDINGS]),) if rows else ()


def _layers_left_in_float(model: onnx.ModelProto) -> tuple[Listing, ...]:
    """Layers of a float graph that calibration cannot quantize, those in bodies included, in graph order."""
    from calib.qdq_placement import plan_quantization
    from engines.layer_requests import read_layers
    from engines.precision_receipt import share_text

    plan, layers = plan_quantization(model), read_layers(model, measure=False)
    total, quantized = max(sum(layer.macs for layer in layers), 1), set(plan.nodes)
    rows = tuple(
        (layer.name, layer.op_type, share_text(layer.macs / total), plan.skipped.get(layer.name) or layer.problem)
        for layer in layers
        if layer.name not in quantized
    )
    title = f"Layers that calibration leaves in float: {len(rows)}"
    return (Listing(title, ("layer", "operator", "share", "reason"), rows[:LISTED_FINDINGS]),) if rows else ()


def _quantized(model: onnx.ModelProto) -> str:
    from calib.qdq_writer import read_qdq

    kinds = Counter(info.kind for info in read_qdq(model).values())
    return f"{kinds['activation']} activations, {kinds['weight']} weights" if kinds else "none: a float graph"


def _findings(model: onnx.ModelProto) -> tuple[Listing, ...]:
    """Lint findings of a graph with Q/DQ; none of a float graph."""
    from calib.lint import lint_graph

    if not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        return ()
    rows = [(f.severity, f.node, f.message) for f in lint_graph(model)]
    title = f"{len(rows)} findings of the lint" if rows else "The lint has no findings"
    return (Listing(title, ("severity", "node", "finding"), tuple(rows[:LISTED_FINDINGS])),)
