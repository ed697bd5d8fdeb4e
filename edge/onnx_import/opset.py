"""Bring a model to opset 20: upwards by ONNX's converter, downwards where no operator needs a newer one.

below 20   `onnx.version_converter`
above 20   operators that opset 20 does not have, or has with another meaning, are replaced by the function that the ONNX
           standard defines for them; all others only took on more element types, and keep their place
"""

import re
from pathlib import Path

import onnx
from onnx import defs, helper, inliner, version_converter

from calib.errors import GraphError
from calib.graph import opset_version
from edge.onnx_import.graph_edit import DEFAULT_DOMAINS, all_graphs, all_nodes, is_operator, replace_items
from edge.onnx_import.imported import Change

OPSET = 20
"""The newest that the parsers of TensorRT 10.0 and later all read."""
IR_VERSION = 9
"""Of the release of ONNX that brought opset 20."""
_OLDEST = 7
"""ONNX's converter knows nothing older."""
_MEANING_CHANGED = ("GroupNormalization",)
"""Since opset 21 its scale has a value per channel, before one per group."""


def to_opset_20(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, list[Change]]:
    """The model at opset 20. Raises GraphError, naming node and operator, for what cannot be converted."""
    before = opset_version(model)
    newest = defs.onnx_opset_version()
    if not _OLDEST <= before <= newest:
        allowed = f"opset {_OLDEST} to {newest}"
        raise GraphError("operator set is too old or too new", where=path, found=f"opset {before}", allowed=allowed)
    changes = [] if before == OPSET else [Change("opset", path.name, f"from {before} to {OPSET}")]
    if before > OPSET:
        model, expanded = _expand_newer(model, path)
        _check_known(model, before, path)
        changes += expanded
    if before < OPSET:
        model = _upgrade(model, path)
    for entry in model.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = OPSET
    model.ir_version = IR_VERSION
    return model, changes


def _upgrade(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Raises GraphError when the converter lacks an adapter or fails on a node."""
    names = {node.name for node in all_nodes(model.graph)}
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)  # its adapters of Softmax and others need ranks
        converted = version_converter.convert_version(inferred, OPSET)
    except Exception as error:  # the bindings of onnx raise many kinds
        text = str(error)
        nodes = [node for node in all_nodes(model.graph) if re.search(rf"\b{re.escape(node.op_type)}\b", text)]
        where = f"{path}, node {nodes[0].name} ({nodes[0].op_type})" if nodes else path
        command = f"export at opset 13 to {OPSET}"
        raise GraphError("the operator set cannot be converted", where=where, found=text[:300], next_command=command) from error
    _make_unique(converted, names)
    return converted


def _make_unique(model: onnx.ModelProto, names: set[str]) -> None:
    """The converter numbers new tensors per graph: in subgraphs they get names of their own."""
    for number, graph in enumerate(all_graphs(model.graph)):
        if number == 0:
            continue
        renamed = {
            name: f"{name}/{number}"
            for node in graph.node
            for name in node.output
            if re.fullmatch(r"_v_\d+|.*_intermediate", name)
        }
        renamed = {name: new for name, new in renamed.items() if name not in names}
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]


def _expand_newer(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, list[Change]]:
    """Replace operators that opset 20 lacks by the functions that define them; twice, for what these functions call."""
    changes: list[Change] = []
    for _ in range(2):
        newer = [node for node in all_nodes(model.graph) if _needs_newer(node)]
        if not newer:
            break
        changes += [
            Change("expanded", node.name or node.output[0], f"{node.op_type} into the operators that define it")
            for node in newer
        ]
        typed = onnx.ModelProto.FromString(model.SerializeToString())
        declared = {value.name for value in (*typed.graph.input, *typed.graph.value_info)}
        typed.graph.value_info.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            for tensor in typed.graph.initializer
            if tensor.name not in declared
        )
        try:
            typed = onnx.shape_inference.infer_shapes(typed, data_prop=True)
            operators = sorted({("", node.op_type) for node in newer})
            model = inliner.inline_selected_functions(typed, operators, inline_schema_functions=True)
        except Exception as error:  # the bindings of onnx raise many kinds
            where = f"{path}, node {newer[0].name} ({newer[0].op_type})"
            raise GraphError(
                f"an operator is newer than opset {OPSET} and cannot be expanded", where=where, found=f"{error!s:.300}"
            ) from error
        del model.functions[:]
    return model, changes


def _needs_newer(node: onnx.NodeProto) -> bool:
    if node.domain not in DEFAULT_DOMAINS:
        return False
    schema = _schema_at(node.op_type, OPSET)
    return schema is None or is_operator(node, *_MEANING_CHANGED)


def _check_known(model: onnx.ModelProto, before: int, path: Path) -> None:
    """Raises GraphError for a node that uses what opset 20 does not have: an operator, an input or an attribute."""
    for node in all_nodes(model.graph):
        found = _newer_part(node, before) if node.domain in DEFAULT_DOMAINS else None
        if found is not None:
            where = f"{path}, node {node.name or node.output[0]} ({node.op_type})"
            what = f"a node needs an operator set newer than {OPSET}"
            raise GraphError(what, where=where, found=found, next_command=f"export at opset {OPSET}")


def _newer_part(node: onnx.NodeProto, before: int) -> str | None:
    """What opset 20 does not have of a node, if anything; newer attributes that say what opset 20 does anyway are removed."""
    old, new = _schema_at(node.op_type, OPSET), _schema_at(node.op_type, before)
    if old is None or new is None:
        return "an operator that opset 20 does not have"
    if len(node.input) > old.max_input or len(node.output) > old.max_output:
        return "more inputs or outputs than opset 20 has"
    newer = [item for item in node.attribute if item.name not in old.attributes]
    for item in newer:
        known = new.attributes.get(item.name)
        if known is None or item != known.default_value:
            return f"attribute {item.name[:80]}"
    if newer:
        replace_items(node.attribute, [item for item in node.attribute if item.name in old.attributes])
    return None


def _schema_at(operator: str, version: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(operator, version, "")
    except defs.SchemaError:
        return None
