r"""What one inference of an engine runs: its steps (kernel launches) by kind, and the bytes that each moves.

At batch 1 launches and memory traffic decide about the latency of a small network, not its multiply-accumulates, so that the
steps of an engine are a measure of a quantization beside its accuracy. `engines.rtx_plan_text` reads them from a TensorRT-RTX
plan without a GPU, `engines.engine_inspector` from the layer information of TensorRT.

    bytes of a step = sum over the distinct tensors that it reads or writes of (product of the dims) * bytes per element

for one image; tensors in host memory (shapes) do not count. This is what a step must move if nothing stays in a cache: a lower
bound of the requests, an upper bound of the traffic to DRAM. Standard library only: a device reads the totals from a manifest.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

KINDS = ("product", "attention", "reduction", "pointwise", "reformat", "pad", "copy", "other")
"""Kinds of a step.

    product     matrix product or convolution, with whatever is fused into it
    attention   fused attention: two products and what lies between them
    reduction   norms, softmax, means, pooling, with whatever is fused into them
    pointwise   element by element, and nothing of the above
    reformat    only changes the type or the order of the elements: casts, quantization, transposes
    pad         only appends zeros, so that a later step gets a size that it supports
    copy        only moves elements: slices, concatenations
    other       anything else, and what the engine does not name
"""
_OPERATION = re.compile(r"[A-Z][a-z0-9]*")
_QUANTIZE = re.compile(r"(Mul)?MinMaxRounCast")
_MOVES = frozenset(("Resh", "Tran", "Move", "Slic", "Conc", "Repl", "Gath", "Cast"))
_REDUCES = frozenset(("Mean", "Sum", "Maxr", "Minr", "Prod"))
_PRODUCTS = frozenset(("Fc", "Corr", "Deco", "Gemm", "Conv"))
_QDQ = ("/QuantizeLinear", "/DequantizeLinear")
_SEPARATOR = re.compile(r"([./])")
_SMALLEST_BLOCK = 3


@dataclass(frozen=True)
class PlanStep:
    """One step of an inference.

    Attributes:
        kind: one of KINDS.
        name: of the kernel: the operations that it computes, without prefix and hash.
        nodes: ONNX nodes that it computes, none if the engine does not say.
        weight_bytes: bytes of the constants that it reads.
        activation_bytes: bytes of the other tensors that it reads and writes, for one image (the batch where that is fixed);
            None if the engine does not report their dims.
        output_bytes: those of the tensors that it writes.
        padding_bytes: those of zeros that were appended to fit a kernel, in what it writes and in what it reads.
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    weight_bytes: int
    activation_bytes: int | None
    output_bytes: int | None = None
    padding_bytes: int = 0


@dataclass(frozen=True)
class StepTotal:
    """The number of the steps of one name, and the sums of their bytes; `uncounted` of them have unknown dims."""

    name: str
    steps: int
    weight_bytes: int
    activation_bytes: int
    uncounted: int = 0

    @property
    def moved_bytes(self) -> int:
        """Bytes moved for one image."""
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class PlanKernels:
    """The steps of one inference.

    Attributes:
        total: of all steps.
        kinds: total of each kind that occurs, in the order of KINDS.
        blocks: total of each block of the network, in the order of execution; empty where node names do not tell blocks.
        block: name of the block with most steps, the first of several, "" without blocks.
        block_steps: the steps of that block in order.
    """

    total: StepTotal
    kinds: tuple[StepTotal, ...]
    blocks: tuple[StepTotal, ...] = ()
    block: str = ""
    block_steps: tuple[PlanStep, ...] = ()

    def steps_of(self, kind: str) -> int:
        """Number of steps of a kind."""
        return sum(total.steps for total in self.kinds if total.name == kind)


def summarize_steps(steps: Iterable[PlanStep]) -> PlanKernels | None:
    """Totals of the steps of an inference, None if there are none."""
    steps = tuple(steps)
    if not steps:
        return None
    kinds = _group((kind, step) for kind in KINDS for step in steps if step.kind == kind)
    named: list[tuple[str, PlanStep]] = []
    for step in steps:  # a step without nodes prepares the next one or finishes the last
        named.append((block_of_step(step) if step.nodes or not named else named[-1][0], step))
    blocks = {name: found for name, found in _group(named).items() if name and len(found) >= _SMALLEST_BLOCK}
    largest = max(blocks, key=lambda name: len(blocks[name]), default="")
    return PlanKernels(_total("all", steps), _totals(kinds), _totals(blocks), largest, tuple(blocks.get(largest, ())))


def block_of_step(step: PlanStep) -> str:
    """The block that most of a step's nodes belong to; Q/DQ nodes count only where there are no others. "" if none has one.

    Steps that end one block and begin the next belong to the block of which they compute more nodes.
    """
    nodes = [node for node in step.nodes if not node.endswith(_QDQ)] or step.nodes
    blocks = [block for node in nodes if (block := block_of_node(node))]
    return max(dict.fromkeys(blocks), key=blocks.count, default="")


def block_of_node(node: str) -> str:
    """The path of a node up to its first number, `blocks.3.attn.q/MatMul` -> `blocks.3`; "" if that is the whole name."""
    parts = _SEPARATOR.split(node)
    end = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return "".join(parts[: end + 1]) if end < len(parts) - 1 else ""


def kind_of_generated(name: str, operands: int, *, reduces: bool = False) -> str:
    """The kind of a generated kernel, from its name, which lists its operations: `__myl_MulAddCastMeanSub` is a reduction.

    Args:
        operands: number of tensors that it reads, scalars not counted: padding has one, a concatenation more.
        reduces: the engine reports that it sums over elements; names of long kernels are cut.
    """
    text = _QUANTIZE.sub("Cast", name)
    operations = frozenset(_OPERATION.findall(text))
    if name.startswith("_gemm_mha"):
        kind = "attention"
    elif operations & _PRODUCTS:
        kind = "product"
    elif reduces or operations & _REDUCES:
        kind = "reduction"
    elif not operations:
        kind = "other"
    elif not operations <= _MOVES:
        kind = "pointwise"
    elif {"Repl", "Conc"} <= operations and operands == 1:
        kind = "pad"
    else:
        kind = "reformat" if operations & {"Tran", "Cast"} else "copy"
    return kind


def sum_known(sizes: Iterable[int | None]) -> int | None:
    """The sum of sizes in bytes, None if one of them is not known."""
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


def _group(named: Iterable[tuple[str, PlanStep]]) -> dict[str, list[PlanStep]]:
    groups: dict[str, list[PlanStep]] = {}
    for name, step in named:
        groups.setdefault(name, []).append(step)
    return groups


def _totals(groups: Mapping[str, Sequence[PlanStep]]) -> tuple[StepTotal, ...]:
    return tuple(_total(name, steps) for name, steps in groups.items())


def _total(name: str, steps: Sequence[PlanStep]) -> StepTotal:
    known = [step.activation_bytes for step in steps if step.activation_bytes is not None]
    return StepTotal(name, len(steps), sum(step.weight_bytes for step in steps), sum(known), len(steps) - len(known))
