r"""What TensorRT's engine inspector says of an engine that was built with detailed profiling verbosity.

    {"Layers": [{"Name": ..., "LayerType": "gemm" | "CaskConvolution" | "kgen" | "Reformat" | ...,
                 "Inputs":  [{"Name": ..., "Format/Datatype": "Int8"}, ...],        10.x
                 "Inputs":  [{"Name": ..., "Format": ..., "DataType": "Int8"}, ...],  11.x
                 "Outputs": [...], "Weights": {"Type": "Int8", ...}, "TacticName": ...,
                 "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}, ...]}

(NVIDIA, TensorRT documentation, "Engine Inspector", and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x".)

A node of the ONNX graph is found by the metadata of the layers, or by their names, joined with " + " where several nodes are
computed at once. It is INT8 when every layer that may compute its product is. A layer is INT8 in one of two ways:

    its operands    two inputs, or one and the layer's weights, both INT8, in a kernel whose name tells no float arithmetic
    its tactic      names INT8 arithmetic (i8i32: products of int8 summed in int32), and no operand contradicts it

The second is needed where the layer shows one operand only, since constants are often left out; where it shows
"N/A due to dynamic shapes"; and for every "fusion", whose inputs come in any order and may be those of other operations.
Generated kernels ("kgen") do not tell what a product inside them is computed in: a node that only they mention is "unknown".
"""

from __future__ import annotations

import json
import re
from typing import Any

from calib.errors import InputError
from engines.layer_records import UNKNOWN, EngineEvidence, LayerEvidence, common_type, merge_evidence

_MENTION = re.compile(r"\[ONNX Layer: ([^\]\n]+)\]")
_PRODUCT = re.compile(r"gemm|conv|matrixmultiply|matmul|fusion|fully_?connected|corr", re.IGNORECASE)
_REFORMAT = re.compile(r"reformat", re.IGNORECASE)
_FUSION = re.compile(r"fusion", re.IGNORECASE)
_INT8_TACTIC = re.compile(r"i8i32|imma|(?<![a-z0-9])int8(?![a-z0-9])", re.IGNORECASE)
_FLOAT_TACTIC = re.compile(  # "sm80_xmma_gemm_f16f16_f16f32_f32", "ampere_h16816gemm", "ampere_fp16_s16816gemm_fp16"
    r"f16f|f32f32|bf16bf16|tf32|e4m3|e5m2|hmma|(?<![a-z0-9])[hs](?:gemm|884|1688|16816)", re.IGNORECASE
)
_TYPE_KEYS = ("DataType", "Datatype", "Data Type", "Format/Datatype", "Format/DataType", "Format")
_TYPES = (  # pattern -> type, the first that fits: "Row major linear FP16 format", "Half", "Thirty-two wide ... Int8 format"
    (re.compile(r"\bu?int8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\bfp8\b|\bfloat8|e4m3", re.IGNORECASE), "fp8"),
    (re.compile(r"\bbf(loat)?16\b|\bbfloat\b", re.IGNORECASE), "bf16"),
    (re.compile(r"\bfp16\b|\bhalf\b|\bfloat16\b", re.IGNORECASE), "fp16"),
    (re.compile(r"\bfp32\b|\bfloat(32)?\b", re.IGNORECASE), "fp32"),
)


def read_inspector(text: str, nodes: frozenset[str]) -> EngineEvidence:
    """What an engine's layer information (JSON) says of each node named in it, out of `nodes`.

    Raises InputError when it is no such text, or holds names alone: the engine was built without detailed verbosity.
    """
    layers = inspected_layers(text)
    products: list[tuple[str, str, str]] = []
    mentioned: dict[str, str] = {}
    for layer in layers:
        kind, actual, source = _read_layer(layer)
        for node in _nodes_of(layer, nodes):
            if kind == "product":
                products.append((node, actual, source))
            else:
                mentioned.setdefault(node, source)
    evidence = merge_evidence(products)
    for node, source in mentioned.items():
        evidence.setdefault(node, LayerEvidence(UNKNOWN, f"{source}, which does not tell"))
    reformats = sum(bool(_REFORMAT.search(str(layer.get("LayerType", "")))) for layer in layers)
    return EngineEvidence(evidence, kernels=len(layers), reformats=reformats)


def inspected_layers(text: str) -> list[dict[str, Any]]:
    """The layers of an inspector's JSON. Raises InputError when it is none, or holds names alone."""
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("the engine inspector's answer is not understood", found=f"{text[:80]!r}") from error
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise InputError(
            "the engine tells no more than the names of its layers",
            allowed="an engine built with detailed profiling verbosity",
            next_command="build the engine with ufovit build",
        )
    return layers


def _nodes_of(layer: dict[str, Any], nodes: frozenset[str]) -> list[str]:
    """The nodes that a layer computes: those of its metadata, else those that its name is joined of."""
    mentioned = _MENTION.findall(str(layer.get("Metadata", "")))
    parts = mentioned or [part.strip() for part in str(layer.get("Name", "")).split(" + ")]
    return [part for part in dict.fromkeys(parts) if part in nodes]


def _read_layer(layer: dict[str, Any]) -> tuple[str, str, str]:
    """Whether a layer multiplies ("product") or not ("other"), in which type, and where that was read."""
    kind = str(layer.get("LayerType", "?"))
    if not _PRODUCT.search(kind):
        return "other", UNKNOWN, f"computed in a layer of type {kind}"
    inputs, weights, tactic = layer.get("Inputs"), layer.get("Weights"), str(layer.get("TacticName", ""))
    types = [type_of_tensor(tensor) for tensor in inputs] if isinstance(inputs, list) else []
    operands = types[:2]
    if isinstance(weights, dict) and "Type" in weights:  # a convolution: its second input, if any, is added
        operands = [*types[:1], _type_in(str(weights["Type"]))]
    source = f"{kind} on {' x '.join(operands) or 'nothing'}, tactic {tactic or 'not told'}"
    return "product", _actual(operands, types, tactic, is_fusion=_FUSION.search(kind) is not None), source


def _actual(operands: list[str], types: list[str], tactic: str, *, is_fusion: bool) -> str:
    """The type of a product from its operands, the types of all inputs and the name of its tactic; see the top of the file."""
    says_float = _FLOAT_TACTIC.search(tactic) is not None
    says_int8 = _INT8_TACTIC.search(tactic) is not None and not says_float
    if says_int8 and ("int8" in types if is_fusion else {"int8"} == {*operands} - {UNKNOWN}):
        return "int8"
    common = common_type(operands)
    proven = len(operands) == 2 and not says_float and not is_fusion
    return UNKNOWN if common == "int8" and not proven else common


def type_of_tensor(tensor: Any) -> str:
    """The type of a tensor of a layer, in the keys of either release; "unknown" where it is not told."""
    if not isinstance(tensor, dict):
        return UNKNOWN
    return next((kind for key in _TYPE_KEYS if (kind := _type_in(str(tensor.get(key, "")))) != UNKNOWN), UNKNOWN)


def _type_in(text: str) -> str:
    return next((name for pattern, name in _TYPES if pattern.search(text)), UNKNOWN)
