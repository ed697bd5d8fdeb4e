"""FP32 graph -> strongly typed FP16 graph: in a strongly typed network only the graph says what runs in which precision.

    image FP32 -> Cast -> FP16 network -> Cast -> logits FP32

* Every FLOAT tensor becomes FLOAT16, initializers included; the graph's inputs and outputs stay FLOAT.
* A node named in `keep_fp32` computes in FLOAT (an FP32 island): Casts stand on the edges where the type changes, one per
  tensor and type, and none between two nodes of one island.
* Q/DQ. INT8 has no float type, so a pair may enter with one type and leave with another, at no Cast: Q has the type of what
  it reads (weights: FLOAT, so that their codes do not change), DQ has the type of those who read it. Both sides must scale
  alike, so every scale is first rounded to an FP16 value, whatever it is stored as (relative change <= 2^-11).
* A node whose operator has no FP16 form in the ONNX standard stays FP32 by itself.
* A Clip with a lower bound alone becomes a Max.

LayerNormalization stays one node: its `stash_type` computes the statistics in FP32, where a decomposed one would not.
Equal inputs give equal bytes. The counts are stored in the model's metadata, see `typing_facts`. The graph is edited as a
protobuf: with onnx-ir it takes longer by more than a third and other bytes come out (docs/engines.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.errors import InputError
from calib.graph import index_graph, opset_version
from engines.fp16 import Rounding, round_scale, round_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_SUFFIX = {_FLOAT: "fp32", _HALF: "fp16"}
_FACTS_PREFIX = "ufovit.typed."
_OLDEST_OPSET = 19
_BORN_FLOAT = ("Constant", "ConstantOfShape")
"""FP16 only where an attribute `value` says so."""


@dataclass(frozen=True)
class TypingFacts:
    """What rounding to FP16 did.

    Attributes:
        casts: Cast nodes added.
        flushed: nonzero weights that became zero.
        subnormal: nonzero weights that became subnormal, |w| < 2^-14, and lost digits.
    """

    casts: int
    flushed: int
    subnormal: int


def type_graph(model: onnx.ModelProto, *, keep_fp32: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """The strongly typed FP16 form of an FP32 graph, plain or with Q/DQ; see the module's docstring.

    Args:
        model: an ONNX graph of opset >= 19 (FP16 scales of Q/DQ) without subgraphs or functions.
        keep_fp32: names of the nodes that compute in FP32, e.g. those of every XNorm and the K^T V that feeds it.

    Raises:
        InputError: a weight overflows FP16 or is no number (names it), a scale becomes zero, a name of `keep_fp32` is
            no node of the graph, the graph is typed already or its types cannot be inferred.
    """
    _check(model, keep_fp32)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise InputError("types of the graph cannot be inferred", found=" ".join(str(error).split())[:500]) from error
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    _lower_clips_to_max(typed.graph)
    graph = _Typing(typed, _element_types(inferred.graph), keep_fp32)
    graph.rewrite()
    facts = TypingFacts(graph.casts, graph.rounding.flushed, graph.rounding.subnormal)
    for field, value in asdict(facts).items():
        typed.metadata_props.add(key=_FACTS_PREFIX + field, value=str(value))
    del typed.graph.value_info[:]
    try:
        typed = onnx.shape_inference.infer_shapes(typed, check_type=True, strict_mode=True)
        onnx.checker.check_model(typed)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise InputError("the graph has no consistent FP16 form", found=error) from error
    return typed


def typing_facts(model: onnx.ModelProto) -> TypingFacts | None:
    """The counts that `type_graph` stored in a model; None for a graph that it did not make."""
    counts = {p.key.removeprefix(_FACTS_PREFIX): p.value for p in model.metadata_props if p.key.startswith(_FACTS_PREFIX)}
    return TypingFacts(**{name: int(value) for name, value in counts.items()}) if counts else None


def _check(model: onnx.ModelProto, keep_fp32: frozenset[str]) -> None:
    graph = model.graph
    opset = opset_version(model)
    if opset < _OLDEST_OPSET:
        raise InputError("opset too old for FP16 scales", found=opset, allowed=f">= {_OLDEST_OPSET}")
    if model.functions or any(a.HasField("g") or a.graphs for n in graph.node for a in n.attribute):
        raise InputError("subgraphs and functions cannot be typed", allowed="a flat graph, e.g. one that onnxsim wrote")
    half = [i.name for i in graph.initializer if i.data_type == _HALF]
    if half or any(v.type.tensor_type.elem_type == _HALF for v in (*graph.input, *graph.output)):
        raise InputError("the graph is typed already", found=f"FP16 tensors {half[:3]}", allowed="an FP32 graph")
    unknown = sorted(keep_fp32 - {n.name for n in graph.node})
    if unknown:
        raise InputError("keep_fp32 names no node of the graph", found=", ".join(unknown[:8]))


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    types.update({i.name: i.data_type for i in graph.initializer})
    return types


def _lower_clips_to_max(graph: onnx.GraphProto) -> None:
    """Clip with a lower bound alone -> Max, which computes the same.

    TensorRT's parser gives such a Clip FP32's largest number as its upper bound, which FP16 does not hold.
    """
    for node in graph.node:
        if node.op_type == "Clip" and len(node.input) > 1 and node.input[1] and not "".join(node.input[2:]):
            node.op_type = "Max"
            del node.input[2:]


class _Typing:
    """One rewrite of one graph. Node types first, then edges: a tensor read in another type than written gets a Cast."""

    def __init__(self, model: onnx.ModelProto, element_types: Mapping[str, int], keep_fp32: frozenset[str]) -> None:
        self.graph = model.graph
        self.index = index_graph(model)
        self.weights = {i.name: i for i in model.graph.initializer}
        self.is_float = {name for name, kind in element_types.items() if kind == _FLOAT}
        self.rounding = Rounding()
        self.casts = 0
        self._kinds = self._node_kinds(keep_fp32)
        self._tensor_kind = {out: self._kinds[i] for out, i in self.index.producers.items()}
        self._tensor_kind.update({v.name: _FLOAT for v in model.graph.input})
        self._copies: dict[tuple[str, int, bool], str] = {}

    def _node_kinds(self, keep_fp32: frozenset[str]) -> list[int]:
        """FLOAT or FLOAT16 for every node, in graph order."""
        nodes = self.graph.node
        kinds = [_FLOAT if n.name in keep_fp32 or not _has_half_form(n) else _HALF for n in nodes]
        for i, node in enumerate(nodes):
            if node.op_type == "QuantizeLinear":
                source = node.input[0]
                written = self.index.producers.get(source)
                kinds[i] = _FLOAT if source in self.weights else _HALF if written is None else kinds[written]
            elif node.op_type == "DequantizeLinear":
                reading = [kinds[r] for r in self.index.consumers.get(node.output[0], ())]
                kinds[i] = _FLOAT if reading and all(k == _FLOAT for k in reading) else _HALF
        return kinds

    def rewrite(self) -> None:
        """Change the graph in place."""
        outputs = {v.name for v in self.graph.output}
        nodes: list[onnx.NodeProto] = []
        for node, kind in zip(list(self.graph.node), self._kinds, strict=True):
            scale_at = 1 if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
            for at, name in enumerate(node.input):
                if name in self.is_float and _is_retyped(node, at):
                    node.input[at] = self._read(name, kind, nodes, is_scale=at == scale_at)
            _retype_attributes(node, kind, self.rounding)
            nodes.append(node)
            for at, name in enumerate(node.output):
                if name in outputs and name in self.is_float and kind == _HALF:
                    node.output[at] = f"{name}/fp16"
                    self._tensor_kind[name] = _FLOAT
                    self._copies[name, _HALF, False] = f"{name}/fp16"
                    nodes.append(self._cast(f"{name}/fp16", name, _FLOAT))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | outputs
        kept = [w for name, w in self.weights.items() if name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _read(self, name: str, kind: int, nodes: list[onnx.NodeProto], *, is_scale: bool) -> str:
        """The name under which a tensor can be read as `kind`; adds a weight copy or a Cast the first time."""
        stored = name in self.weights
        if not stored and self._tensor_kind[name] == kind:
            return name
        key = (name, kind, is_scale and stored)
        if key not in self._copies:
            if stored:
                self._copies[key] = self._store(name, kind, is_scale=is_scale)
            else:
                self._copies[key] = f"{name}/{_SUFFIX[kind]}"
                nodes.append(self._cast(name, self._copies[key], kind))
        return self._copies[key]

    def _store(self, name: str, kind: int, *, is_scale: bool) -> str:
        values = numpy_helper.to_array(self.weights[name])
        if is_scale:
            values = round_scale(values, name)
        elif kind == _HALF:
            values = round_weights(values, name, self.rounding)
        else:
            return name
        copy = f"{name}/{_SUFFIX[kind]}"
        self.weights[copy] = numpy_helper.from_array(values.astype(np.float16 if kind == _HALF else np.float32), copy)
        return copy

    def _cast(self, source: str, target: str, kind: int) -> onnx.NodeProto:
        self.casts += 1
        return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)


def _schema(node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(node.op_type, node.domain) if onnx.defs.has(node.op_type, node.domain) else None


def _has_half_form(node: onnx.NodeProto) -> bool:
    schema = _schema(node)
    if schema is None or (node.op_type in _BORN_FLOAT and not any(a.name == "value" for a in node.attribute)):
        return False
    return any("tensor(float16)" in c.allowed_type_strs for c in schema.type_constraints)


def _is_retyped(node: onnx.NodeProto, at: int) -> bool:
    """Whether an input's type is free in the standard (Resize's `scales`, say, is FLOAT always)."""
    schema = _schema(node)
    if schema is None:
        return False
    declared = schema.inputs[min(at, len(schema.inputs) - 1)].type_str
    return not declared.startswith("tensor(")


def _retype_attributes(node: onnx.NodeProto, kind: int, counts: Rounding) -> None:
    """Casts to FLOAT and constant floats in attributes follow the node's type."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = kind
        elif attribute.name == "value" and attribute.t.data_type == _FLOAT and kind == _HALF:
            values = round_weights(numpy_helper.to_array(attribute.t), node.name, counts)
            attribute.t.CopyFrom(numpy_helper.from_array(values))
