r"""What a TensorRT-RTX plan says of itself.

A plan holds, as text, the program that the runtime executes. Every tensor is declared with its type, every step names its
operands and the ONNX nodes that it computes:

    tensor={ ... dims={ 192 576 } name="__mye411713_dconst" ... type=int8 }
    sub_tensor={ base="layer_norm_q.1" ... name="__mye479179^deref" ... type=int8 }
    fully_connected={ name="blocks.0.attn.v/MatMul+blocks.0.attn.k/MatMul" output={"__mye402388" }
                      input={"__mye479179^deref" "__mye411713_dconst" "..._alpha" "..._beta" } ... }
    corrltn={ name="stem.0/Conv" output={...} input={...} ... }
    function={ name=__myl_MulAddCast ... layers="[ONNX Layer: ...] ..." }

A matrix product (`fully_connected`) or convolution (`corrltn`) is INT8 when both of its operands, the first two inputs, are
declared int8 in every step that carries the node's name. A node that no such step names is "unknown", whatever else may
mention it: a generated kernel (`function`) may compute a product too, but its text does not tell in which type.

What this proves: the operand types of the program inside the very bytes that are deployed. What it cannot prove: the machine
instructions, since kernels are compiled on the GPU when the plan is loaded, and the speed. The format is undocumented; a
release that writes it otherwise makes everything "unknown", hence a failed receipt and never a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from engines.layer_records import UNKNOWN, EngineEvidence, LayerEvidence, common_type, merge_evidence

_TENSOR = re.compile(rb'tensor=\{[^\n]*? name="([^"\n]+)"[^\n]*? type=(\w+) \}')
_STEP = re.compile(rb'\n +(fully_connected|corrltn)=\{ name="([^"\n]+)" output=\{[^}\n]*\} input=\{([^}\n]*)\}')
_QUOTED = re.compile(rb'"([^"\n]+)"')
_MENTION = re.compile(rb"\[ONNX Layer: ([^\]\n]+)\]")
_TYPES = {"int8": "int8", "half": "fp16", "float": "fp32", "bfloat16": "bf16", "bfloat": "bf16"}
_KINDS = {"fully_connected": "matrix product", "corrltn": "convolution"}
_KERNEL = re.compile(rb"\n +(fully_connected|corrltn|function)=\{ name=")


def read_plan(plan: bytes, nodes: frozenset[str]) -> EngineEvidence:
    """What the plan says of each node named in it, out of `nodes`, and how many steps one inference takes."""
    evidence = merge_evidence(_products(plan, nodes))
    for mention in dict.fromkeys(_MENTION.findall(plan)):
        node = mention.decode(errors="replace")
        if node in nodes and node not in evidence:
            evidence[node] = LayerEvidence(UNKNOWN, "computed inside a generated kernel or folded away")
    return EngineEvidence(evidence, kernels=len(_KERNEL.findall(plan)) or None)


def _products(plan: bytes, nodes: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    """(node, type of its operands, where that stands) of every product or convolution."""
    types = _tensor_types(plan)
    for kind, label, operands in _steps(plan):
        kinds = [types.get(name, UNKNOWN) for name in operands[:2]]
        for node in _split(label, nodes):
            yield node, common_type(kinds), f"{kind} on {' x '.join(kinds)}"


def _tensor_types(plan: bytes) -> dict[str, str]:
    """Name -> type of every declared tensor; a name declared with two types is of unknown type."""
    types: dict[str, str] = {}
    for match in _TENSOR.finditer(plan):
        name, kind = match[1].decode(errors="replace"), match[2].decode()
        kind = _TYPES.get(kind, kind)
        types[name] = kind if types.get(name, kind) == kind else UNKNOWN
    return types


def _steps(plan: bytes) -> Iterator[tuple[str, str, list[str]]]:
    for match in _STEP.finditer(plan):
        operands = [name.decode(errors="replace") for name in _QUOTED.findall(match[3])]
        yield _KINDS[match[1].decode()], match[2].decode(errors="replace"), operands


def _split(label: str, nodes: frozenset[str]) -> list[str]:
    """The nodes of a step: one name, or several joined by "+" where the step computes several at once."""
    if label in nodes:
        return [label]
    return [part for part in label.split("+") if part in nodes]
