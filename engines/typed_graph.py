"""Convert an FP32 graph to a strongly typed FP16 graph. In a strongly typed network the graph alone sets every precision.

    input FP32 -> Cast -> FP16 network -> Cast -> output FP32

* Every FLOAT tensor becomes FLOAT16, initializers included; the graph's inputs and outputs stay FLOAT.
* A node named in `keep_fp32` computes in FLOAT (an FP32 island): edges where the type changes get a Cast, one per tensor and
  type; edges inside an island get none.
* Q/DQ. INT8 codes have no float type, so the input and output of a pair may differ in type without a Cast: Q has the type of
  its input (weights: FLOAT, so that their codes do not change), DQ the type of its consumers. Both must use the same scale, so
  every scale is first rounded to an FP16 value, whichever type it is stored in (relative change <= 2^-11).
* A node whose operator does not support FP16 in the ONNX standard stays FP32.
* A Clip with a lower bound alone becomes a Max.

LayerNormalization stays one node: its `stash_type` computes the statistics in FP32, where a decomposed one would not.
Equal inputs give equal bytes. The model's metadata holds how many Casts were added and how many weights lost precision in FP16:
"ufovit.typed.casts", "ufovit.typed.flushed" (to zero) and "ufovit.typed.subnormal" (|w| < 2^-14). The graph is edited as a
protobuf: with onnx-ir it takes longer by more than a third and the bytes differ (docs/engines.md).
"""

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.errors import GraphError, UsageError
from calib.graph import index_graph, opset_version, without_large_constants
from engines.fp16 import round_scale, round_weights

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_SUFFIX = {_FLOAT: "fp32", _HALF: "fp16"}
_OLDEST_OPSET = 19
_CONSTANT_OPS = ("Constant", "ConstantOfShape")
"""Operators whose output type is set by the attribute `value`; FLOAT without it."""


def type_graph(model: onnx.ModelProto, *, keep_fp32: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """Convert an FP32 graph, with or without Q/DQ, to a strongly typed FP16 graph; see the module's docstring.

    Args:
        model: an ONNX graph of opset >= 19 (FP16 scales of Q/DQ) without subgraphs or functions.
        keep_fp32: names of the nodes that compute in FP32, e.g. those of every XNorm and the K^T V that feeds it.

    Raises GraphError if a weight overflows FP16 or is not finite (names it), FP16 cannot represent a scale, the graph is typed
    already or its types cannot be inferred; UsageError if it has no node of a name in `keep_fp32`.
    """
    _check(model, keep_fp32)
    try:
        inferred = _infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError("the types of the graph cannot be inferred", found=" ".join(str(error).split())[:500]) from error
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    _lower_clips_to_max(typed.graph)
    graph = _Typing(typed, _float_tensors(inferred), keep_fp32)
    graph.rewrite()
    for name, count in graph.counts.items():
        typed.metadata_props.add(key=f"ufovit.typed.{name}", value=str(count))
    del typed.graph.value_info[:]
    try:
        shapes = _infer_shapes(typed)
        del typed.graph.output[:]
        typed.graph.output.extend(shapes.output)
        typed.graph.value_info.extend(shapes.value_info)
        onnx.checker.check_model(typed)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise GraphError("the graph cannot be typed consistently in FP16", found=error) from error
    return typed


def _infer_shapes(model: onnx.ModelProto) -> onnx.GraphProto:
    light = without_large_constants(model)
    return onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True).graph


def _check(model: onnx.ModelProto, keep_fp32: frozenset[str]) -> None:
    graph = model.graph
    opset = opset_version(model)
    if opset < _OLDEST_OPSET:
        raise GraphError("the opset is too old for FP16 scales", found=opset, allowed=f">= {_OLDEST_OPSET}")
    if model.functions or any(a.HasField("g") or a.graphs for n in graph.node for a in n.attribute):
        raise GraphError("subgraphs and functions cannot be typed", allowed="a flat graph, e.g. the output of onnxsim")
    half = [i.name for i in graph.initializer if i.data_type == _HALF]
    if half or any(v.type.tensor_type.elem_type == _HALF for v in (*graph.input, *graph.output)):
        raise GraphError("the graph is typed already", found=f"FP16 tensors {half[:3]}", allowed="an FP32 graph")
    unknown = sorted(keep_fp32 - {n.name for n in graph.node})
    if unknown:
        raise UsageError("keep_fp32 names nodes that are not in the graph", found=", ".join(unknown[:8]))


def _float_tensors(graph: onnx.GraphProto) -> set[str]:
    tensors = {v.name for v in (*graph.input, *graph.value_info, *graph.output) if v.type.tensor_type.elem_type == _FLOAT}
    return tensors | {i.name for i in graph.initializer if i.data_type == _FLOAT}


def _lower_clips_to_max(graph: onnx.GraphProto) -> None:
    """Replace a Clip with a lower bound only by the equivalent Max.

    TensorRT's parser sets the upper bound of such a Clip to the largest FP32 value, which FP16 cannot represent.
    """
    for node in graph.node:
        if node.op_type == "Clip" and len(node.input) > 1 and node.input[1] and not "".join(node.input[2:]):
            node.op_type = "Max"
            del node.input[2:]


class _Typing:
    """Rewrite one graph: first node types, then edges; a tensor read in another type than its producer's gets a Cast."""

    def __init__(self, model: onnx.ModelProto, float_tensors: set[str], keep_fp32: frozenset[str]) -> None:
        self.graph = model.graph
        self.index = index_graph(model)
        self.weights = {i.name: i for i in model.graph.initializer}
        self.is_float = float_tensors
        self.counts = Counter(casts=0, flushed=0, subnormal=0)
        self._kinds = self._node_kinds(keep_fp32)
        self._tensor_kind = {out: self._kinds[i] for out, i in self.index.producers.items()}
        self._tensor_kind.update({v.name: _FLOAT for v in model.graph.input})
        self._copies: dict[tuple[str, int, bool], str] = {}

    def _node_kinds(self, keep_fp32: frozenset[str]) -> list[int]:
        """FLOAT or FLOAT16 for every node, in graph order."""
        nodes = self.graph.node
        kinds = [_FLOAT if n.name in keep_fp32 or not _supports_fp16(n) else _HALF for n in nodes]
        for i, node in enumerate(nodes):
            if node.op_type == "QuantizeLinear":
                source = node.input[0]
                producer = self.index.producers.get(source)
                kinds[i] = _FLOAT if source in self.weights else _HALF if producer is None else kinds[producer]
            elif node.op_type == "DequantizeLinear":
                consumers = [kinds[c] for c in self.index.consumers.get(node.output[0], ())]
                kinds[i] = _FLOAT if consumers and all(k == _FLOAT for k in consumers) else _HALF
        return kinds

    def rewrite(self) -> None:
        """Rewrite the graph in place."""
        outputs = {v.name for v in self.graph.output}
        nodes: list[onnx.NodeProto] = []
        for node, kind in zip(list(self.graph.node), self._kinds, strict=True):
            scale_input = 1 if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
            for i, name in enumerate(node.input):
                if name in self.is_float and is_retyped(node, i):
                    node.input[i] = self._tensor_as(name, kind, nodes, is_scale=i == scale_input)
            _retype_attributes(node, kind, self.counts)
            nodes.append(node)
            for i, name in enumerate(node.output):
                if name in outputs and name in self.is_float and kind == _HALF:
                    node.output[i] = f"{name}/fp16"
                    self._tensor_kind[name] = _FLOAT
                    self._copies[name, _HALF, False] = f"{name}/fp16"
                    nodes.append(self._cast(f"{name}/fp16", name, _FLOAT))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | outputs
        used_weights = [w for name, w in self.weights.items() if name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(used_weights)

    def _tensor_as(self, name: str, kind: int, nodes: list[onnx.NodeProto], *, is_scale: bool) -> str:
        """Name of a tensor in type `kind`; adds a weight copy or a Cast on first use."""
        is_weight = name in self.weights
        if not is_weight and self._tensor_kind[name] == kind:
            return name
        key = (name, kind, is_scale and is_weight)
        if key not in self._copies:
            if is_weight:
                self._copies[key] = self._copy_weight(name, kind, is_scale=is_scale)
            else:
                self._copies[key] = f"{name}/{_SUFFIX[kind]}"
                nodes.append(self._cast(name, self._copies[key], kind))
        return self._copies[key]

    def _copy_weight(self, name: str, kind: int, *, is_scale: bool) -> str:
        values = numpy_helper.to_array(self.weights[name])
        if is_scale:
            values = round_scale(values, name)
        elif kind == _HALF:
            values = round_weights(values, name, self.counts)
        else:
            return name
        copy = f"{name}/{_SUFFIX[kind]}"
        self.weights[copy] = numpy_helper.from_array(values.astype(np.float16 if kind == _HALF else np.float32), copy)
        return copy

    def _cast(self, source: str, target: str, kind: int) -> onnx.NodeProto:
        self.counts["casts"] += 1
        return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)


def _schema(node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(node.op_type, node.domain) if onnx.defs.has(node.op_type, node.domain) else None


def _supports_fp16(node: onnx.NodeProto) -> bool:
    schema = _schema(node)
    if schema is None or (node.op_type in _CONSTANT_OPS and not any(a.name == "value" for a in node.attribute)):
        return False
    return any("tensor(float16)" in c.allowed_type_strs for c in schema.type_constraints)


def is_retyped(node: onnx.NodeProto, position: int) -> bool:
    """Whether the standard allows other types for an input; Resize's `scales`, for example, is always FLOAT."""
    schema = _schema(node)
    if schema is None:
        return False
    declared = schema.inputs[min(position, len(schema.inputs) - 1)].type_str
    return not declared.startswith("tensor(")


def _retype_attributes(node: onnx.NodeProto, kind: int, counts: Counter[str]) -> None:
    """Change Casts to FLOAT, and float constants in attributes, to the node's type."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = kind
        elif attribute.name == "value" and attribute.t.data_type == _FLOAT and kind == _HALF:
            values = round_weights(numpy_helper.to_array(attribute.t), node.name, counts)
            attribute.t.CopyFrom(numpy_helper.from_array(values))
