"""Load and index an ONNX graph: node names, constants, producers and consumers of tensors, inferred types and shapes.

Protobuf is indexed here, and edited in `calib.graph_editor`, directly: with onnx-ir these passes take about twice as long and
give other bytes, by which calibration tables and manifests identify a graph (docs/calibration-benchmarks.md).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calib.errors import GraphError
from calib.files import describe_foreign, read_regular
from calib.graph_checks import LARGEST_BYTES, LARGEST_VALUES, check_contents, check_size

_LARGEST_SHAPE_CONSTANT = 1024
"""Elements up to which an initializer's values are kept for shape inference: target shapes, axes, slice bounds."""


@dataclass(frozen=True)
class GraphIndex:
    """Look-up tables of one graph; node numbers are positions in `graph.node`.

    Attributes:
        names: a unique name per node, see `node_names`.
        nodes: unique name -> node, in graph order; the nodes of the model itself, not copies.
        constants: initializers and outputs of Constant nodes. An initializer that is also a graph input is only a default
            value since IR version 4, hence not a constant.
        constant_like: names of all tensors computed from constants alone.
        producers: tensor -> node that computes it.
        consumers: tensor -> nodes that read it, ascending, each once.
        reads: per node, the tensors that it or a subgraph in it reads.
        inputs: graph inputs without constants.
    """

    names: tuple[str, ...]
    nodes: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]
    constant_like: frozenset[str]
    producers: Mapping[str, int]
    consumers: Mapping[str, tuple[int, ...]]
    reads: tuple[frozenset[str], ...]
    inputs: tuple[str, ...]

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that computes a tensor; None for an input, an initializer and an unknown name."""
        return self.nodes[self.names[self.producers[tensor]]] if tensor in self.producers else None


@dataclass(frozen=True)
class TensorType:
    """Element type (onnx.TensorProto.DataType) and shape of a tensor; None for an unknown dimension, or for an unknown rank."""

    dtype: int
    shape: tuple[int | None, ...] | None


def load_graph(path: Path) -> tuple[onnx.ModelProto, bytes]:
    """An ONNX file as a model and as the bytes that were parsed, so that their digest identifies what is used.

    Raises GraphError for a file that is missing, is not ONNX, keeps its weights in other files, or holds what no graph can; see
    `calib.graph_checks`.
    """
    data = read_regular(path, GraphError, largest=LARGEST_BYTES)
    return parse_graph(data, path), data


def parse_graph(data: bytes, path: Path) -> onnx.ModelProto:
    """Parse the bytes of an ONNX file; errors name `path`, see `load_graph`."""
    model = decode_model(data, path)
    check_model(model, path)
    return model


def decode_model(data: bytes, path: Path) -> onnx.ModelProto:
    """The model in the bytes of an ONNX file, its contents not yet checked. Raises GraphError for bytes that are not ONNX."""
    foreign = describe_foreign(data)
    command = "git lfs pull" if foreign and "LFS" in foreign else None
    try:
        check_size(data, path)
        model = onnx.load_model_from_string(data)
    except (DecodeError, GraphError) as error:
        if foreign is None and isinstance(error, GraphError):
            raise
        what = "not an ONNX file, or a truncated one"
        raise GraphError(what, where=path, found=foreign or error, next_command=command) from error
    if foreign is not None and not model.graph.node:
        raise GraphError("not an ONNX file, or one without a graph", where=path, found=foreign, next_command=command)
    return model


def check_model(model: onnx.ModelProto, path: Path) -> None:
    """Raises GraphError for a model without a graph, and for all that `calib.graph_checks` refuses."""
    if not model.graph.node or not model.graph.output:
        raise GraphError("not an ONNX file, or one without a graph", where=path)
    check_contents(model, path)


def index_graph(model: onnx.ModelProto) -> GraphIndex:
    """Index the main graph of a model; subgraphs of If, Loop and Scan are not entered."""
    graph = model.graph
    initializers = {t.name: t for t in graph.initializer}
    defaults = {v.name for v in graph.input if v.name in initializers} if model.ir_version >= 4 else set()
    constants = {name: t for name, t in initializers.items() if name not in defaults}
    for node in graph.node:
        value = attribute(node, "value", None) if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto):
            constants[node.output[0]] = value
    constant_like = set(constants)
    producers: dict[str, int] = {}
    consumers: dict[str, list[int]] = {}
    for i, node in enumerate(graph.node):
        producers.update((name, i) for name in node.output if name)
        for name in dict.fromkeys(n for n in node.input if n):
            consumers.setdefault(name, []).append(i)
        if node.input and all(n in constant_like for n in node.input if n):
            constant_like.update(n for n in node.output if n)
    names = node_names(graph.node)
    return GraphIndex(
        names=names,
        nodes=dict(zip(names, graph.node, strict=True)),
        constants=constants,
        constant_like=frozenset(constant_like),
        producers=producers,
        consumers={name: tuple(readers) for name, readers in consumers.items()},
        reads=tuple(frozenset(tensors_read([node])) for node in graph.node),
        inputs=tuple(v.name for v in graph.input if v.name not in initializers or v.name in defaults),
    )


def node_names(nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """A unique name per node: its own where that is set and unique, else its first output."""
    counts = Counter(node.name for node in nodes)
    return tuple(node.name if node.name and counts[node.name] == 1 else node.output[0] for node in nodes)


def tensors_read(nodes: Iterable[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto] = ()) -> set[str]:
    """Names of all tensors that nodes, the subgraphs in them included, read, and those of `outputs`."""
    read = {value.name for value in outputs}
    for node in nodes:
        read.update(node.input)
        read |= tensors_read_by_subgraphs(node)
    return read


def tensors_read_by_subgraphs(node: onnx.NodeProto) -> set[str]:
    """Names of all tensors that the subgraphs of a node (If, Loop, Scan) read or return."""
    read: set[str] = set()
    for item in node.attribute:
        for subgraph in (*item.graphs, *([item.g] if item.HasField("g") else [])):
            read |= tensors_read(subgraph.node, subgraph.output)
    return read


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of a node's attribute, or `default`; strings as str."""
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def opset_version(model: onnx.ModelProto) -> int:
    """Version of the default operator set; 1 if none is declared, as in the ONNX specification."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def to_array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """The values of a constant."""
    return np.asarray(numpy_helper.to_array(tensor))


def infer_types(model: onnx.ModelProto, batch: int | None = None) -> dict[str, TensorType]:
    """Types of all tensors known to ONNX's shape inference, constants included; the model is not changed.

    `batch` is the value for a symbolic first dimension of the graph inputs, wherever that symbol occurs.
    Tensors after an operator unknown to ONNX are absent. Raises GraphError when inference fails on the whole graph, and for a
    tensor of more values than a machine can hold.
    """
    light = _without_large_constants(model)
    if batch is not None:
        _fix_batch(light.graph, batch)
    try:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise GraphError("shape inference fails on this graph", found=error) from error
    types = {v.name: _tensor_type(v.type.tensor_type) for v in (*graph.value_info, *graph.input, *graph.output)}
    types.update((t.name, TensorType(t.data_type, tuple(t.dims))) for t in graph.initializer)
    for name, inferred in types.items():
        if math.prod(size for size in inferred.shape or () if size is not None) > LARGEST_VALUES:
            allowed = f"up to {LARGEST_VALUES} values"
            raise GraphError("a tensor of the graph is too large", where=name[:80], found=inferred.shape, allowed=allowed)
    return types


def _without_large_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    source = model.graph
    graph = onnx.GraphProto(
        name=source.name, node=source.node, input=source.input, output=source.output, value_info=source.value_info
    )
    declared = {v.name for v in source.input}
    for tensor in source.initializer:
        if int(np.prod(tensor.dims)) <= _LARGEST_SHAPE_CONSTANT:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    version = max(model.ir_version, 4)
    return onnx.ModelProto(ir_version=version, opset_import=model.opset_import, functions=model.functions, graph=graph)


def _fix_batch(graph: onnx.GraphProto, batch: int) -> None:
    symbols = set()
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            symbols.add(dims[0].dim_param)
            dims[0].dim_value = batch
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in symbols:
                dim.dim_value = batch


def _tensor_type(proto: onnx.TypeProto.Tensor) -> TensorType:
    if not proto.HasField("shape"):
        return TensorType(proto.elem_type, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in proto.shape.dim)
    return TensorType(proto.elem_type, dims)
