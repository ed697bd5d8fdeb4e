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
    function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0xf9e3 ... input_args={q k ... v ...} ... layers="..." }

A matrix product (`fully_connected`), convolution (`corrltn`) or transposed convolution (`deconvolution`) is INT8 when both of
its operands, the first two inputs, are declared int8 in every step that has the node's name. A node named like its output
gets a number after its name (`fc_U23`); such a step counts where its `layers` contain the node.

Fused attention (`_gemm_mha_v2`) computes two products, and the plan declares no tensor for the probabilities between them. But
it contains the source of the kernel, under its `fqn`, which names the matrix instructions of both products:

    using Kernel_traits = fmha::Kernel_traits_v2<fmha::Ampere_imma_int8_int32_traits, fmha::Ampere_imma_int8_int32_traits, ...
    extern "C" __global__ void _gemm_mha_v2_0xf9e3(__myln_int8* __v1, ...

The two are INT8 when both instructions are, and queries, keys and values are declared int8. This holds for the nodes among the
step's `layers` that have no step of their own, if there are two of them.

A node without such a step is "unknown", even if other text mentions it: another generated kernel (`function`) may compute a
product too, but its text does not report the type.

This proves the operand types of the program in the deployed bytes. It does not prove the machine instructions, because kernels
are compiled on the GPU when the plan is loaded, nor the speed. The format is undocumented; in a release with another format
every layer is "unknown", so the receipt fails and never passes wrongly.
"""

import re
from collections.abc import Iterator

from engines.layer_records import UNKNOWN, WIDTHS, EngineEvidence, LayerEvidence, common_type, merge_evidence

_TENSOR = re.compile(rb'tensor=\{[^\n]*? name="([^"\n]+)"[^\n]*? type=(\w+) (?:var_offset="[^"\n]*" )?\}')
_STEP = re.compile(
    rb'\n +(fully_connected|corrltn|deconvolution)=\{ name="([^"\n]+)" output=\{[^}\n]*\} input=\{([^}\n]*)\}([^\n]*)'
)
_QUOTED = re.compile(rb'"([^"\n]+)"')
_METADATA_NODE = re.compile(rb"\[ONNX Layer: ([^\]\n]+)\]")
_NUMBERED = re.compile(r"_U\d+$")
_TYPES = {b"half": "fp16", b"float": "fp32", b"bfloat16": "bf16", b"bfloat": "bf16"}
_KINDS = {b"fully_connected": "matrix product", b"corrltn": "convolution", b"deconvolution": "transposed convolution"}
_ATTENTION = re.compile(
    rb'\n +function=\{ name=_gemm_mha_v2 fqn=(\w+) [^\n]*? input_args=\{([^}\n]*)\}[^\n]*? layers="([^"\n]*)"'
)
_ATTENTION_SOURCE = re.compile(
    rb"using Kernel_traits = fmha::Kernel_traits_v2\w*<\s*fmha::(\w+),\s*fmha::(\w+),|__global__ void (_gemm_mha_v2_\w+)\("
)
_INSTRUCTIONS = {b"imma_int8_int32": "int8", b"hmma_fp16": "fp16", b"hmma_fp32": "fp16", b"hmma_bf16": "bf16"}
"""Kernel traits without architecture -> type of the operands; FP32 is that of the sums of FP16 products."""
_KERNEL = re.compile(rb"\n +(fully_connected|corrltn|deconvolution|function)=\{ name=")


def read_plan(plan: bytes, nodes: frozenset[str]) -> EngineEvidence:
    """Evidence for each of `nodes` that the plan mentions, and the number of kernels of one inference."""
    products = list(_products(plan, nodes))
    products += _attention(plan, nodes - {node for node, _, _ in products})
    evidence = merge_evidence(products)
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
        mentioned = _METADATA_NODE.findall(step[4])
        for part in [label] if label in nodes else label.split("+"):  # several nodes if the step fuses them
            node = part if part in nodes else _NUMBERED.sub("", part)
            if node in nodes and (node == part or node.encode() in mentioned):
                yield node, common_type(operands), f"{kind} on {' x '.join(operands)}"


def _attention(plan: bytes, nodes: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    """(node, operand type, source) of the products inside fused attention; `nodes` have no step of their own."""
    types, instructions = _tensor_types(plan), _attention_instructions(plan)
    for step in _ATTENTION.finditer(plan):
        mentioned = [name.decode(errors="replace") for name in _METADATA_NODE.findall(step[3])]
        inside = [node for node in dict.fromkeys(mentioned) if node in nodes]
        operands = [types.get(name, UNKNOWN) for name in _QUOTED.findall(step[2])]
        tensors = [kind for kind in operands if kind in WIDTHS]
        used = instructions.get(step[1], (UNKNOWN, UNKNOWN))
        proven = len(inside) == 2 and len(set(used)) == 1 and tensors.count(used[0]) >= 3  # q, k, v
        source = f"fused attention on {' x '.join(tensors)}, instructions {' and '.join(used)}"
        yield from ((node, used[0] if proven else UNKNOWN, source) for node in inside)


def _attention_instructions(plan: bytes) -> dict[bytes, tuple[str, str]]:
    """Name of a fused attention kernel -> operand types of its two products, by the source that precedes the name."""
    named: dict[bytes, tuple[str, str]] = {}
    current = (UNKNOWN, UNKNOWN)
    for first, second, kernel in _ATTENTION_SOURCE.findall(plan):
        if kernel:
            named[kernel] = current if named.get(kernel, current) == current else (UNKNOWN, UNKNOWN)
            current = (UNKNOWN, UNKNOWN)
        else:
            current = (_operand_type(first), _operand_type(second))
    return named


def _operand_type(traits: bytes) -> str:
    """`Ampere_imma_int8_int32_traits` -> int8."""
    return _INSTRUCTIONS.get(traits.partition(b"_")[2].removesuffix(b"_traits"), UNKNOWN)


def _tensor_types(plan: bytes) -> dict[bytes, str]:
    """Name -> type of every declared tensor; "unknown" for a name declared with two types."""
    types: dict[bytes, str] = {}
    for name, declared in _TENSOR.findall(plan):
        kind = _TYPES.get(declared, declared.decode())
        types[name] = kind if types.get(name, kind) == kind else UNKNOWN
    return types
