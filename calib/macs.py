"""Multiply-accumulates (MACs) per node: the unit of a network's INT8 share. Formulas: `calib.mac_formulas`.

Biases, alpha and beta, and operations on single elements are not counted. Quantize, dequantize and Cast nodes do not change the
result. Bodies of If, Loop and Scan are counted once each, local functions wherever they are called. An operator of another
domain, and one for which there is no formula, is listed as not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx
import onnx.inliner
from onnx import helper

from calib.errors import DataError, GraphError, MissingError
from calib.graph import GraphIndex, TensorType, index_graph, infer_types, tensors_read
from calib.mac_formulas import FORMULAS, WITHOUT_FORMULA, ShapeOf, UnknownShapeError
from calib.ort_session import measure_shapes

MAC_OPS = ("Conv", "Gemm", "MatMul")
"""The operators of two operands that INT8 can compute, see `calib.qdq_placement`."""


@dataclass(frozen=True)
class NodeMacs:
    """The count of one node.

    Attributes:
        name: unique node name, see `calib.graph.node_names`; "NODE/BODY/NAME" inside a body of an If, Loop or Scan.
        macs: multiply-accumulates; 0 where they cannot be counted.
        problem: why they cannot be counted; "" where they are.
        body: whether the node lies in a body, or in a local function without giving its result.
    """

    name: str
    op_type: str
    macs: int
    problem: str = ""
    body: bool = False


@dataclass(frozen=True)
class MacCount:
    """All nodes that multiply, in graph order, a body in the place of its node."""

    nodes: tuple[NodeMacs, ...]

    @cached_property
    def by_name(self) -> Mapping[str, int]:
        """Node name -> multiply-accumulates, 0 for those that cannot be counted."""
        return {node.name: node.macs for node in self.nodes}

    @property
    def total(self) -> int:
        """Sum of what can be counted."""
        return sum(node.macs for node in self.nodes)

    @property
    def not_counted(self) -> Mapping[str, str]:
        """Node name -> why its multiply-accumulates cannot be counted."""
        return {node.name: node.problem for node in self.nodes if node.problem}


def count_macs(model: onnx.ModelProto, batch: int = 1, *, measure: bool = False) -> MacCount:
    """Multiply-accumulates of every node that multiplies.

    Args:
        batch: value of a symbolic first dimension of the inputs; a fixed first dimension stays as it is.
        measure: run the graph once in ONNX Runtime, on zeros, where shapes cannot be inferred.

    What cannot be counted is listed with the reason. Raises GraphError only where shape inference refuses the whole graph.
    """
    flat = _inline_functions(model)
    counted = _count_graph(flat, batch, {}, "")
    if measure and any(node.problem.startswith(_UNKNOWN_SHAPE) for node in counted):
        try:
            measured = measure_shapes(flat, _operands(flat), batch)
        except (GraphError, DataError, MissingError):
            measured = {}
        counted = _count_graph(flat, batch, measured, "")
    return MacCount(tuple(_in_terms_of(model, flat, counted)) if flat is not model else tuple(counted))


_UNKNOWN_SHAPE = "the shape of"


def _inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return model  # their calls are then listed as not counted


def _in_terms_of(model: onnx.ModelProto, flat: onnx.ModelProto, counted: list[NodeMacs]) -> list[NodeMacs]:
    """The counts under the names of the graph before its functions were inlined, in which a call gives its outputs."""
    original, index = index_graph(model), index_graph(flat)
    renamed: dict[str, NodeMacs] = {}
    for node in counted:
        name, body = node.name, node.body
        if not body:
            output = index.nodes[name].output[0]
            body = output not in original.producers
            name = output if body else original.names[original.producers[output]]
        if name in renamed:  # a function with several results
            before = renamed[name]
            renamed[name] = NodeMacs(name, before.op_type, before.macs + node.macs, before.problem or node.problem, body)
        else:
            renamed[name] = NodeMacs(name, node.op_type, node.macs, node.problem, body)
    return list(renamed.values())


def _operands(model: onnx.ModelProto) -> list[str]:
    """Tensors whose shapes the formulas need, in the main graph."""
    nodes = [node for node in model.graph.node if _is_standard(node) and node.op_type in FORMULAS]
    bodies = [node for node in model.graph.node if any(True for _ in _bodies(node))]
    names = [name for node in nodes for name in (*node.input, *node.output)]
    return list(dict.fromkeys(name for name in (*names, *sorted(tensors_read(bodies))) if name))


def _count_graph(
    model: onnx.ModelProto, batch: int | None, measured: Mapping[str, tuple[int, ...]], path: str
) -> list[NodeMacs]:
    index, types = index_graph(model), infer_types(model, batch)
    types.update((n, TensorType(types[n].dtype if n in types else 0, shape)) for n, shape in measured.items())

    def shape_of(tensor: str) -> tuple[int, ...]:
        shape = types[tensor].shape if tensor in types else None
        if shape is None or None in shape:
            known = "unknown" if shape is None else f"({', '.join('?' if d is None else str(d) for d in shape)})"
            raise UnknownShapeError(f"{_UNKNOWN_SHAPE} {tensor} cannot be inferred: {known}")
        return tuple(int(d) for d in shape if d is not None)

    counted: list[NodeMacs] = []
    for name, node in index.nodes.items():
        if multiplies(node):
            counted.append(_count_node(path + name, node, shape_of, body=bool(path)))
        for label, body in _bodies(node):
            inner = f"{path}{name}/{label}/"
            try:
                counted += _count_graph(_body_model(model, node, body, index, types), None, {}, inner)
            except GraphError as error:
                counted.append(NodeMacs(inner.rstrip("/"), node.op_type, 0, error.what, body=True))
    return counted


def multiplies(node: onnx.NodeProto) -> bool:
    """Whether a node itself multiplies, countable or not; what a body of an If, Loop or Scan holds are nodes of their own."""
    if _is_standard(node):
        if node.op_type == "Einsum" and len(node.input) < 2:
            return False  # it only sums, or moves axes
        return node.op_type in FORMULAS or node.op_type in WITHOUT_FORMULA
    return node.op_type not in ("QuantizeLinear", "DequantizeLinear")  # of com.microsoft: the same as ONNX's


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _count_node(name: str, node: onnx.NodeProto, shape_of: ShapeOf, *, body: bool) -> NodeMacs:
    macs, problem = 0, ""
    if not _is_standard(node):
        problem = f"what {node.domain}.{node.op_type} computes is not known"
    elif node.op_type in WITHOUT_FORMULA:
        problem = f"there is no formula for {node.op_type}"
    else:
        try:
            macs = FORMULAS[node.op_type](node, shape_of)
        except UnknownShapeError as error:
            problem = str(error)
        except (IndexError, KeyError, ValueError):  # shapes or an equation that do not fit the operator
            problem = f"the shapes of its operands do not fit {node.op_type}"
    return NodeMacs(name, node.op_type, macs, problem, body)


def _bodies(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    """The graphs among the attributes of a node, with the attribute's name."""
    return [(item.name, item.g) for item in node.attribute if item.HasField("g")]


def _body_model(
    model: onnx.ModelProto, node: onnx.NodeProto, body: onnx.GraphProto, index: GraphIndex, types: Mapping[str, TensorType]
) -> onnx.ModelProto:
    """A body as a model of its own, whose inputs are its own and the tensors of the graph around it that it reads."""
    own = {v.name for v in body.input} | {t.name for t in body.initializer} | {o for n in body.node for o in n.output}
    outer = sorted(name for name in tensors_read(body.node, body.output) - own if name)
    graph = onnx.GraphProto(name="body", node=body.node, initializer=body.initializer, output=body.output)
    graph.initializer.extend(_named(index.constants[name], name) for name in outer if name in index.constants)
    for name in outer:
        if name in types and name not in index.constants:
            graph.input.append(_value(name, types[name]))
    for at, value in enumerate(body.input):
        declared = value.type.tensor_type.HasField("shape")
        given = types.get(_fed_by(node, at)) if node.op_type == "Loop" else None
        graph.input.append(value if declared or given is None else _value(value.name, given))
    return onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, graph=graph)


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """The same constant under the name of the tensor that it gives: a Constant node's value has none."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _fed_by(loop: onnx.NodeProto, at: int) -> str:
    """The tensor that is the first value of an input of a Loop's body: (iteration, condition, carried ...)."""
    return loop.input[at] if 2 <= at < len(loop.input) else ""


def _value(name: str, known: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, known.dtype, known.shape)
