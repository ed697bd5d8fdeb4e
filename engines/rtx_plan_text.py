r"""Read layer precisions from the program text inside a TensorRT-RTX plan.

A plan contains, as text, the program that the runtime executes. Every tensor is declared with its type, every step lists its
operands and the ONNX nodes that it computes:

    tensor={ ... dims={ 192 576 } name="__mye411713_dconst" ... type=int8 }
    sub_tensor={ base="layer_norm_q.1" ... name="__mye479179^deref" ... type=int8 }
    fully_connected={ name="blocks.0.attn.v/MatMul+blocks.0.attn.k/MatMul" output={"__mye402388" }
                      input={"__mye479179^deref" "__mye411713_dconst" "..._alpha" "..._beta" } ... }
    corrltn={ name="stem.0/Conv" output={...} input={...} ... }
    deconvolution={ name="up" output={...} input={...} ... }
    function={ name=__myl_MulAddCast ... layers="[ONNX Layer: ...] ..." }

A matrix product (`fully_connected`), convolution (`corrltn`) or transposed convolution (`deconvolution`) is INT8 when both of
its operands, the first two inputs, are declared int8 in every step that has the node's name. A node without such a step is
"unknown", even if other text mentions it: a generated kernel (`function`) may compute a product too, but its text does not
report the type.

This proves the operand types of the program in the deployed bytes. It does not prove the machine instructions, because kernels
are compiled on the GPU when the plan is loaded, nor the speed. The format is undocumented; in a release with another format
every layer is "unknown", so the receipt fails and never passes wrongly.
"""

import re
from collections.abc import Iterator

from engines.layer_records import UNKNOWN, EngineEvidence, LayerEvidence, common_type, merge_evidence

_TENSOR = re.compile(rb'tensor=\{[^\n]*? name="([^"\n]+)"[^\n]*? type=(\w+) \}')
_STEP = re.compile(rb'\n +(fully_connected|corrltn|deconvolution)=\{ name="([^"\n]+)" output=\{[^}\n]*\} input=\{([^}\n]*)\}')
_QUOTED = re.compile(rb'"([^"\n]+)"')
_METADATA_NODE = re.compile(rb"\[ONNX Layer: ([^\]\n]+)\]")
_TYPES = {b"half": "fp16", b"float": "fp32", b"bfloat16": "bf16", b"bfloat": "bf16"}
_KINDS = {b"fully_connected": "matrix product", b"corrltn": "convolution", b"deconvolution": "transposed convolution"}
_KERNEL = re.compile(rb"\n +(fully_connected|corrltn|deconvolution|function)=\{ name=")


def read_plan(plan: bytes, nodes: frozenset[str]) -> EngineEvidence:
    """Evidence for each of `nodes` that the plan mentions, and the number of kernels of one inference."""
    evidence = merge_evidence(_products(plan, nodes))
    for mention in dict.fromkeys(_METADATA_NODE.findall(plan)):
        node = mention.decode(errors="replace")
        if node in nodes and node not in evidence:
            evidence[node] = LayerEvidence(UNKNOWN, "computed inside a generated kernel or folded away")
    return EngineEvidence(evidence, kernels=len(_KERNEL.findall(plan)) or None)


def _products(plan: bytes, nodes: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    """(node, operand type, source) of every matrix product and convolution."""
    types = _tensor_types(plan)
    for step in _STEP.finditer(plan):
        kind, label = _KINDS[step[1]], step[2].decode(errors="replace")
        operands = [types.get(name, UNKNOWN) for name in _QUOTED.findall(step[3])[:2]]
        for node in [label] if label in nodes else label.split("+"):  # several nodes if the step fuses them
            if node in nodes:
                yield node, common_type(operands), f"{kind} on {' x '.join(operands)}"


def _tensor_types(plan: bytes) -> dict[bytes, str]:
    """Name -> type of every declared tensor; "unknown" for a name declared with two types."""
    types: dict[bytes, str] = {}
    for name, declared in _TENSOR.findall(plan):
        kind = _TYPES.get(declared, declared.decode())
        types[name] = kind if types.get(name, kind) == kind else UNKNOWN
    return types
