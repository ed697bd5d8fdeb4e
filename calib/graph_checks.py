"""Check an ONNX file before anything is computed from it, so that damage is refused here and nowhere else fails on it.

    check_size       the bytes: how many messages a parser would allocate, which may be a hundred times their size
    check_contents   the model: every tensor holds the values that it declares, in this file; every node fits its operator

Protobuf parses many a foreign file, and every field may hold anything: a size of -1 or 2**40, an unknown element type, a node
without inputs, bytes that are not UTF-8.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from calib.errors import GraphError

LARGEST_BYTES = (1 << 31) - 1
"""Of an ONNX file: the limit of protobuf."""
LARGEST_VALUES = 1 << 28
"""Of one tensor that is computed, 1 GiB in FP32: beyond it nothing is allocated."""
_MOST_FIELDS = 2_000_000
_SMALL_BYTES = 2 * _MOST_FIELDS
"""A field takes two bytes or more: a smaller file is not counted."""
_NEWEST_OPSET = 1000


def check_size(data: bytes, path: Path) -> None:
    """Raises GraphError for bytes of which a parser would make more than _MOST_FIELDS fields, or that are not protobuf."""
    if len(data) <= _SMALL_BYTES:
        return
    fields, parts = 0, [(onnx.ModelProto.DESCRIPTOR, 0, len(data))]
    try:
        while parts:
            message, position, end = parts.pop()
            inner = _messages_in(message)
            while position < end:
                fields += 1
                if fields > _MOST_FIELDS:
                    what, found = "the ONNX file has too many parts", f"more than {_MOST_FIELDS} fields"
                    raise GraphError(what, where=path, found=found, allowed="weights as raw data")
                tag, position = _varint(data, position)
                kind, number = tag & 7, tag >> 3
                if kind == 0:
                    _, position = _varint(data, position)
                elif kind == 2:
                    length, position = _varint(data, position)
                    if number in inner:
                        parts.append((inner[number], position, min(position + length, end)))
                    position += length
                else:
                    position += {1: 8, 5: 4}[kind]  # KeyError for groups, which ONNX does not have
    except (IndexError, KeyError) as error:
        raise GraphError("not an ONNX file, or a truncated one", where=path) from error


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of protobuf, and the position after it."""
    value = data[position]
    position += 1
    if value < 128:
        return value, position
    value, shift = value & 127, 7
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128 or shift > 63:
            return value, position
        shift += 7


@lru_cache
def _messages_in(message: Any) -> dict[int, Any]:
    """Number of a field -> its message, for the fields of a message that are messages."""
    return {field.number: field.message_type for field in message.fields if field.message_type is not None}


def check_contents(model: onnx.ModelProto, path: Path) -> None:
    """Raises GraphError, naming the tensor or node, for contents on which a reader would fail."""
    properties = (text for entry in model.metadata_props for text in (entry.key, entry.value))
    _check_texts("a property", (*properties, *(entry.domain for entry in model.opset_import)), path)
    opsets = _opsets(model, path)
    for function in model.functions:  # its operators may be of other versions
        for node in function.node:
            _check_attributes(node, path)
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        _check_texts("the name of a graph", [graph.name], path)
        _check_texts("a name of a tensor", (v.name for v in (*graph.input, *graph.output, *graph.value_info)), path)
        for sparse in graph.sparse_initializer:
            _check_tensor(sparse.values, path)
            _check_tensor(sparse.indices, path)
            if not _is_size(sparse.dims):
                raise GraphError("a sparse tensor is too large", where=path, allowed=f"up to {LARGEST_VALUES} values")
        for tensor in graph.initializer:
            _check_tensor(tensor, path)
        for node in graph.node:
            _check_node(node, opsets, path)
            graphs += _check_attributes(node, path)
    _check_signature(model.graph, path)


def _check_texts(what: str, texts: Iterable[Any], path: Path) -> None:
    """Protobuf returns bytes where a text is not UTF-8."""
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise GraphError(f"{what} is not UTF-8", where=path, found=f"{wrong!r:.80}")


def _opsets(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    for domain, version in opsets.items():
        if not 0 < version <= _NEWEST_OPSET:
            raise GraphError("unknown operator set", where=path, found=f"version {version} of {domain[:40] or 'ai.onnx'}")
    return opsets


def _check_signature(graph: onnx.GraphProto, path: Path) -> None:
    """Inputs and outputs: known element types, no negative sizes; for inputs, no zeros either, and no more than fits."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    for value, smallest in (*((v, 1) for v in inputs), *((v, 0) for v in graph.output)):
        kind, where = value.type.tensor_type, f"{path}, {value.name[:80]}"
        if kind.elem_type not in onnx.TensorProto.DataType.values():
            raise GraphError("unknown element type", where=where, found=kind.elem_type)
        _check_texts("a name of a size", (d.dim_param for d in kind.shape.dim), path)
        sizes = [d.dim_value for d in kind.shape.dim if d.HasField("dim_value")]
        if min(sizes, default=1) < smallest or not _is_size(sizes):
            raise GraphError(
                "impossible size of an input or output",
                where=where,
                found=sizes[:8],
                allowed=f"positive sizes with a product of up to {LARGEST_VALUES}, or names for free ones",
                next_command="export the graph with a fixed size and a named batch",
            )


def _is_size(sizes: Any) -> bool:
    return all(size >= 0 for size in sizes) and math.prod(sizes) <= LARGEST_VALUES


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    """A constant: it is in this file, and holds as many values of a known type as it declares."""
    _check_texts("a name of a tensor", [tensor.name], path)
    where = f"{path}, tensor {tensor.name[:80]}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        found = ", ".join(f"{entry.value:.80}" for entry in tensor.external_data if entry.key == "location")
        what, allowed = "weights are stored outside the ONNX file", "one file that holds everything"
        raise GraphError(what, where=where, found=found or None, allowed=allowed)
    held = 2 * tensor.ByteSize()  # two values per byte in the smallest types
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > held:
        found = f"sizes {list(tensor.dims[:8])}"
        raise GraphError("a tensor does not hold what it declares", where=where, found=found, allowed=f"up to {held} values")
    try:
        numpy_helper.to_array(tensor)
    except Exception as error:  # by element type and field, onnx and NumPy raise many kinds
        raise GraphError("a tensor cannot be read", where=where, found=f"{error!s:.200}") from error


def _check_node(node: onnx.NodeProto, opsets: dict[str, int], path: Path) -> None:
    """A node has the number of inputs and outputs, and the types of attributes, of its operator where that is a known one."""
    _check_texts("a name in a node", (node.name, node.op_type, node.domain, *node.input, *node.output), path)
    where = f"{path}, node {(node.name or ', '.join(node.output[:1]))[:80]}"
    if not node.output:
        raise GraphError("a node has no outputs", where=where, found=node.op_type[:80])
    domain = "" if node.domain == "ai.onnx" else node.domain
    schemas = [_schema(node.op_type, version, domain) for version in (opsets.get(domain, 1), _NEWEST_OPSET)]
    problems = [_misfit(node, schema) if schema else None for schema in schemas]
    if all(problems):  # a graph that declares an older operator set than it uses is refused by who needs a newer one
        what, found, allowed = problems[0] or ("", "", "")
        raise GraphError(what, where=where, found=found, allowed=allowed)


def _misfit(node: onnx.NodeProto, schema: Any) -> tuple[str, object, object] | None:
    """(problem, found, allowed) of a node that does not fit its operator."""
    for what, count, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            return f"wrong number of {what} of {node.op_type}", count, least if least == most else f"{least} to {most}"
    for item in node.attribute:
        known = schema.attributes.get(item.name)
        if known is None:
            continue
        if int(known.type.value) != item.type:
            found = onnx.AttributeProto.AttributeType.Name(item.type)
            return f"wrong type of {node.op_type}'s {item.name}", found, known.type.name
        if item.type == onnx.AttributeProto.STRING and not _is_utf8(item.s):
            return f"{node.op_type}'s {item.name} is not UTF-8", f"{item.s!r:.80}", "UTF-8"
    return None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=1024)
def _schema(operator: str, version: int, domain: str) -> Any:
    """The definition of an operator in the ONNX standard; None for one that it does not know."""
    try:
        return onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return None


def _check_attributes(node: onnx.NodeProto, path: Path) -> list[onnx.GraphProto]:
    """Check names and tensors among the attributes of a node; returns the graphs among them."""
    _check_texts("a name of an attribute", (item.name for item in node.attribute), path)
    for item in node.attribute:
        for tensor in (*item.tensors, *([item.t] if item.HasField("t") else [])):
            _check_tensor(tensor, path)
    return [graph for item in node.attribute for graph in (*item.graphs, *([item.g] if item.HasField("g") else []))]
