"""Describe ONNX graphs, checkpoints, engines and bundles."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import ArtifactError, InputError
from calib.files import sha256_bytes, sha256_file
from edge.inspect.describe_dataclass import value_text
from edge.inspect.describe_json import RANDOM_STAMP, describe_manifest
from edge.inspect.description import Description, Listing, cut_text, size_text
from edge.inspect.read_described import read_described
from engines.build_folder.file_names import MANIFEST
from engines.build_folder.folder import BuildFolder

if TYPE_CHECKING:
    import onnx

LISTED_FINDINGS = 20
_LONGEST_PROPERTY = 100


def describe_onnx(path: Path) -> Description:
    """An ONNX graph: inputs, outputs, operators, Q/DQ, multiply-accumulates.

    Of a quantized graph the layers left in float and the lint findings, too.
    """
    from calib.graph import parse_graph

    data, recorded = read_described(path)
    model = parse_graph(data, path)
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    operators = Counter(node.op_type for node in graph.node)
    facts = {
        "file": f"{size_text(len(data))}, sha256 {sha256_bytes(data)}",
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


def describe_checkpoint(path: Path) -> Description:
    """A safetensors checkpoint: its tensors and metadata. Needs no torch."""
    from edge.model.metadata import METADATA_KEY, open_safetensors, parse_info

    with open_safetensors(path) as stream:
        metadata = stream.metadata() or {}
        tensors = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118  # no mapping
        shapes = {name: (str(t.get_dtype()), tuple(t.get_shape())) for name, t in tensors.items()}
    numbers: Counter[str] = Counter()
    for dtype, shape in shapes.values():
        numbers[dtype] += math.prod(shape)
    facts = {
        "file": f"{size_text(path.stat().st_size)}, sha256 {sha256_file(path)}",
        "tensors": f"{len(shapes)}, {sum(numbers.values()):,} numbers, buffers included",
        "types": ", ".join(f"{dtype} {n:,}" for dtype, n in numbers.most_common()),
    }
    if METADATA_KEY not in metadata:
        facts |= {f"metadata {key}": cut_text(value, _LONGEST_PROPERTY) for key, value in sorted(metadata.items())}
        return Description("safetensors file, not a checkpoint of this toolkit", facts)
    info = parse_info(metadata[METADATA_KEY], path)
    facts |= {
        "model": f"{info.config.name}, {info.config.image_size} px, {info.config.classes} classes",
        "labels": value_text("labels", info.labels),
        "preprocess": ", ".join(f"{name} {value}" for name, value in sorted(info.preprocess.as_json().items())),
        **{f"training {name}": cut_text(_plain(value), _LONGEST_PROPERTY) for name, value in sorted(info.training.items())},
    }
    return Description("Checkpoint", facts, warnings=(RANDOM_STAMP,) if info.random_weights else ())


def describe_engine(path: Path) -> Description:
    """An engine: its bytes and the manifest in its folder. It is never deserialized here: an engine is executable code."""
    digest = sha256_file(path)
    facts = {"file": f"{size_text(path.stat().st_size)}, sha256 {digest}"}
    build = BuildFolder(path.parent)
    if not build.has(MANIFEST):
        facts["manifest"] = "none in its folder: the origin of this engine is unknown"
        return Description(
            "Engine", facts, warnings=("do not run an engine without a manifest: engine files are executable code",)
        )
    manifest = build.manifest
    if (path.name, digest) != (manifest.engine.file, manifest.engine.sha256):
        raise ArtifactError(
            "engine does not match the manifest in its folder",
            where=path,
            found=f"sha256 {digest}",
            allowed=f"{manifest.engine.file}, sha256 {manifest.engine.sha256}",
            next_command="ufovit build",
        )
    described = describe_manifest(manifest)
    facts |= {name: text for name, text in described.facts.items() if name != "engine"}
    return Description("Engine", facts, described.listings, described.warnings)


def describe_bundle(path: Path) -> Description:
    """A bundle, with every member checked."""
    from engines.build_folder.bundle_format import verify_bundle

    bundle = verify_bundle(path)
    info = bundle.info
    facts = {
        "file": f"{size_text(path.stat().st_size)}, sha256 {bundle.sha256}",
        "builds": f"{info.model} {info.precision}, batch {', '.join(map(str, info.batch))}",
        "graph": f"{info.graph}, {len(info.facts.layers)} layers that multiply",
        "budget": f"{info.budget_points:g} points of top-1",
        "judged on": info.data,
        "reference": f"{info.reference.file}, sha256 {info.reference.sha256}, {info.reference_ran_on}",
    }
    rows = tuple((name, size_text(record.bytes), record.sha256) for name, record in info.members.items())
    members = Listing(f"{len(rows)} members, as recorded", ("member", "size", "sha256"), rows)
    return Description("Bundle", facts, (members,), (RANDOM_STAMP,) if info.random_weights else ())


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


def _float_layers(model: onnx.ModelProto) -> tuple[Listing, ...]:
    """Layers of a quantized graph that do not request INT8, most multiply-accumulates first; nothing is run to count them."""
    from calib.qdq_writer import read_qdq
    from engines.layer_requests import read_layers

    try:
        layers = read_layers(model, measure=False) if read_qdq(model) else ()
    except InputError:  # `_macs` and `_findings` give the reason
        return ()
    total = max(sum(layer.macs for layer in layers), 1)
    left = sorted((layer for layer in layers if layer.requested != "int8"), key=lambda layer: -layer.macs)
    rows = tuple((layer.name, layer.op_type, layer.requested, f"{layer.macs / total:.2%}", layer.problem) for layer in left)
    columns = ("layer", "operator", "requested", "share", "reason")
    return (Listing(f"Layers in float: {len(rows)}", columns, rows[:LISTED_FINDINGS]),) if rows else ()


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


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
