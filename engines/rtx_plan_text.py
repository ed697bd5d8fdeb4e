r"""Read layer precisions and the steps of an inference from the program text inside a TensorRT-RTX plan.

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

The steps of an inference are the lines of `main { ... }`, without the call that computes shapes. A kernel that the runtime
fuses (`runtime_fusion`) is one step; its parts stand in a program of their own, whose header has the region
`runtime-fusion-consts`, and do not count again. Dims that depend on the batch are names of shape tensors, which `shape_main`
computes from the batch:

    tensor={ ... dims={ "proxy___mye196680.1" 192 } mem_prop=0 name="__myln_k_arg__bb1_53" ... type=float }
    shape_main { memset={ ... output={"__s^49i64" } src="49i64" ... }
                 mul={ ... output={"volume"} input={"batch" "__s^49i64" } ... }
                 copy={ ... output={"proxy___mye196680.1" } input={"volume"} ... } }

This proves the operand types of the program in the deployed bytes. It does not prove the machine instructions, because kernels
are compiled on the GPU when the plan is loaded, nor the speed. The format is undocumented; in a release with another format
every layer is "unknown", so the receipt fails and never passes wrongly.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from engines.layer_records import UNKNOWN, WIDTHS, EngineEvidence, LayerEvidence, common_type, merge_evidence
from engines.plan_kernels import PlanStep, kind_of_generated, sum_known

_TENSOR = re.compile(rb'tensor=\{([^\n]*?) name="([^"\n]+)"[^\n]*? type=(\w+) (?:var_offset="[^"\n]*" )?\}')
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
_MAIN = re.compile(rb"\nmain \{\n(.*?)\n\}", re.DOTALL)
_SHAPES = re.compile(rb"\nshape_main \{\n(.*?)\n\}", re.DOTALL)
_LINE = re.compile(rb'^ +(\w+)=\{ name=(?:"([^"\n]+)"|(\S+))([^\n]*)', re.MULTILINE)
_INPUTS = re.compile(rb' input(?:_args)?=\{((?:"[^"\n]*"|[^}"\n])*)\}')
_OUTPUTS = re.compile(rb' output(?:_args)?=\{((?:"[^"\n]*"|[^}"\n])*)\}')
_DIMS = re.compile(rb" dims=\{([^}\n]*)\}")
_BASE = re.compile(rb' base="([^"\n]+)"')
_VALUE = re.compile(rb' src="(-?\d+)i64"')
_SHAPE_INPUTS = re.compile(rb"\n +shape_inputs=\{([^\n]*)\}")
_HASH = re.compile(r"_0x[0-9a-f]+$")
_NO_STEP = frozenset((b"shape_call", b"assert", b"signal", b"wait"))
_LINE_KINDS = {
    b"fully_connected": "product",
    b"corrltn": "product",
    b"deconvolution": "product",
    b"runtime_fusion": "product",
    b"maxpool": "reduction",
    b"avgpool": "reduction",
    b"copy": "copy",
    b"memset": "copy",
}
_BYTES = {"int8": 1, "uint8": 1, "bool": 1, "fp8": 1, "fp16": 2, "bf16": 2, "fp32": 4, "int32": 4, "int64": 8}
_ARITHMETIC: dict[bytes, Callable[[int, int], int]] = {
    b"mul": operator.mul,
    b"div": operator.floordiv,
    b"add": operator.add,
    b"sub": operator.sub,
    b"min": min,
    b"max": max,
}


@dataclass(frozen=True)
class _Tensor:
    """A declared tensor; `dims` are numbers or names of shape tensors, `host` is true for a shape in host memory."""

    kind: str
    dims: tuple[int | bytes, ...]
    constant: bool
    host: bool


def read_plan(plan: bytes, nodes: frozenset[str]) -> EngineEvidence:
    """Evidence for each of `nodes` that the plan mentions, and the steps of one inference."""
    tensors = _declared_tensors(plan)
    types = {name: tensor.kind for name, tensor in tensors.items()}
    products = list(_products(plan, nodes, types))
    products += _attention(plan, nodes - {node for node, _, _ in products}, types)
    evidence = merge_evidence(products)
    for mention in dict.fromkeys(_METADATA_NODE.findall(plan)):
        node = mention.decode(errors="replace")
        if node in nodes and node not in evidence:
            evidence[node] = LayerEvidence(UNKNOWN, "computed inside a generated kernel or folded away")
    steps = tuple(_steps(plan, tensors))
    return EngineEvidence(evidence, kernels=len(steps) or None, steps=steps)


def read_steps(plan: bytes) -> tuple[PlanStep, ...]:
    """The steps of one inference in order; none for a plan in another format. Its bytes are those of the smallest batch, 1."""
    return tuple(_steps(plan, _declared_tensors(plan)))


def _steps(plan: bytes, tensors: dict[bytes, _Tensor]) -> Iterator[PlanStep]:
    """The steps of every main program that is not a part of a runtime fusion."""
    shapes = _shape_values(plan)
    padding: dict[bytes, int] = {}  # tensor -> bytes of its zeros
    for main in _MAIN.finditer(plan):
        header = plan.rfind(b"header {", 0, main.start())
        if header < 0 or b" name=runtime-fusion-consts " not in plan[header : plan.find(b"\n}", header)]:
            for line in _LINE.finditer(main[1]):
                if line[1] not in _NO_STEP:
                    yield _step(line, tensors, shapes, padding)


def _step(
    line: re.Match[bytes], tensors: dict[bytes, _Tensor], shapes: dict[bytes, int], padding: dict[bytes, int]
) -> PlanStep:
    """One step; adds the zeros of what it writes to `padding`."""
    name, fields = (line[2] or line[3]).decode(errors="replace").removeprefix("__myl_"), line[4]
    inputs, outputs = (
        [
            part
            for found in pattern.findall(fields)
            for part in dict.fromkeys(_QUOTED.findall(found))
            if not (part in tensors and tensors[part].host)
        ]
        for pattern in (_INPUTS, _OUTPUTS)
    )
    sizes = {part: _size(tensors.get(part), shapes) for part in (*inputs, *outputs)}
    constants = {part for part in sizes if part in tensors and tensors[part].constant}
    operands = [part for part in inputs if not (part in tensors and all(size == 1 for size in tensors[part].dims))]
    kind = _LINE_KINDS.get(line[1]) or ("" if line[1].endswith(b"function") else "other")
    kind = kind or kind_of_generated(name, len(operands), reduces=b" kernel_kind=2 " in fields)
    if "ReplConc" in name and kind in ("pad", "pointwise"):
        widths = {part: _BYTES.get(tensors[part].kind, 1) for part in sizes if part in tensors}
        largest = max(((sizes[part] or 0) // widths.get(part, 1) for part in operands if part not in constants), default=0)
        padding |= {part: max(0, (sizes[part] or 0) - largest * widths.get(part, 1)) for part in outputs}
    nodes = (node.decode(errors="replace") for node in _METADATA_NODE.findall(fields))
    return PlanStep(
        kind=kind,
        name=_HASH.sub("", name) if line[1].startswith((b"function", b"runtime")) else line[1].decode(),
        nodes=tuple(dict.fromkeys(nodes)),
        weight_bytes=sum(sizes[part] or 0 for part in constants),
        activation_bytes=sum_known(size for part, size in sizes.items() if part not in constants),
        output_bytes=sum_known(sizes[part] for part in outputs),
        padding_bytes=sum(padding.get(part, 0) for part in sizes),
    )


def _size(tensor: _Tensor | None, shapes: dict[bytes, int]) -> int | None:
    """Bytes of a tensor, None if its type or a dim is not known."""
    if tensor is None or tensor.kind not in _BYTES:
        return None
    dims = [size if isinstance(size, int) else shapes.get(size) for size in tensor.dims]
    known = [size for size in dims if size is not None]
    return math.prod(known) * _BYTES[tensor.kind] if len(known) == len(dims) else None


def _shape_values(plan: bytes) -> dict[bytes, int]:
    """Shape tensor -> its value for batch 1, of those that arithmetic on the batch gives."""
    values = {name: 1 for found in _SHAPE_INPUTS.findall(plan) for name in _QUOTED.findall(found)}
    for program in _SHAPES.findall(plan):
        for line in _LINE.finditer(program):
            inputs = [values.get(name) for found in _INPUTS.findall(line[4]) for name in _QUOTED.findall(found)]
            known = [value for value in inputs if value is not None]
            outputs = [name for found in _OUTPUTS.findall(line[4]) for name in _QUOTED.findall(found)]
            value = _VALUE.search(line[4])
            if line[1] == b"memset" and value:
                values |= dict.fromkeys(outputs, int(value[1]))
            elif line[1] == b"copy" and len(known) == len(inputs) == 1:
                values |= dict.fromkeys(outputs, known[0])
            elif line[1] in _ARITHMETIC and len(known) == len(inputs) == 2 and (line[1] != b"div" or known[1]):
                values |= dict.fromkeys(outputs, _ARITHMETIC[line[1]](*known))
    return values


def _products(plan: bytes, nodes: frozenset[str], types: dict[bytes, str]) -> Iterator[tuple[str, str, str]]:
    """(node, operand type, source) of every matrix product and convolution."""
    for step in _STEP.finditer(plan):
        kind, label = _KINDS[step[1]], step[2].decode(errors="replace")
        operands = [types.get(name, UNKNOWN) for name in _QUOTED.findall(step[3])[:2]]
        mentioned = _METADATA_NODE.findall(step[4])
        for part in [label] if label in nodes else label.split("+"):  # several nodes if the step fuses them
            node = part if part in nodes else _NUMBERED.sub("", part)
            if node in nodes and (node == part or node.encode() in mentioned):
                yield node, common_type(operands), f"{kind} on {' x '.join(operands)}"


def _attention(plan: bytes, nodes: frozenset[str], types: dict[bytes, str]) -> Iterator[tuple[str, str, str]]:
    """(node, operand type, source) of the products inside fused attention; `nodes` have no step of their own."""
    instructions = _attention_instructions(plan)
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


def _declared_tensors(plan: bytes) -> dict[bytes, _Tensor]:
    """Name -> every declared tensor as the main program, which comes first, declares it; "unknown" for one with two types."""
    tensors: dict[bytes, _Tensor] = {}
    for fields, name, declared in _TENSOR.findall(plan):
        kind, known = _TYPES.get(declared, declared.decode()), tensors.get(name)
        if known is not None:
            tensors[name] = replace(known, kind=kind if known.kind == kind else UNKNOWN)
            continue
        dims, base = _DIMS.search(fields), _BASE.match(fields)
        sizes = re.findall(rb'"([^"]+)"|(\d+)', dims[1]) if dims else []
        parent = tensors.get(base[1]) if base else None
        tensors[name] = _Tensor(
            kind=kind,
            dims=tuple(symbol or int(number) for symbol, number in sizes),
            constant=b" const_payload_size=" in fields or (parent is not None and parent.constant),
            host=b" mem_prop=100" in fields,
        )
    return tensors
