#!/usr/bin/env python3
"""Measure what TensorRT-RTX computes in FP32 inside FP16 operators, from the plans of small graphs, without a GPU.

    scripts/install.sh build rtx
    python scripts/bench/target_precisions.py

Each operator is built as a strongly typed FP16 graph, alone and, where its output allows, in a network (MatMul, residual sum,
operator, gate, MatMul, residual sum), for several compute capabilities. A plan holds the CUDA source of its generated kernels:

    warp_reduction::warp_reduce<AddOp<__myln_float>,__myln_float,__myln_half,...>    operation, accumulator, elements
    block_norm<__myln_float,__myln_half,...>                                          accumulator, elements as stored
    __myln_exp___myln_half___myln_half(...)                                           an elementwise operation and its type

The narrowest that any of the builds shows counts. Kernels that are not generated (matrix products, convolutions, pooling) show
no accumulator: "not told". The format is undocumented; a release with another one gives "not told" everywhere.
DOCUMENTED holds what NVIDIA documents of TensorRT. Writes edge/stability/target_precisions.json.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calib.errors import UfovitError
from calib.files import write_json
from edge.stability.target_precisions import OperatorPrecision, Precision, narrowest
from engines.build_spec import BuilderOptions
from engines.trt.api import Builder
from engines.typed_graph import type_graph

CAPABILITIES = ("7.5", "8.6", "12.0")
TOKENS, MAP = (1, 197, 192), (1, 64, 28, 32)
PRECISION_GUIDE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/precision-control.html"
NORMALIZATION = f"INormalizationLayer accumulates in FP32 unless told otherwise: {PRECISION_GUIDE}"
PRODUCT = f"IMatrixMultiplyLayer chooses the accumulator by input types and performance: {PRECISION_GUIDE}"
DOCUMENTED = {
    "LayerNormalization": ("fp32", "fp32", NORMALIZATION),
    "GroupNormalization": ("fp32", "fp32", f"{NORMALIZATION}; importerUtils.cpp of onnx/onnx-tensorrt, normalizationHelper"),
    "MatMul": ("fp32", "not told", PRODUCT),
    "Gemm": ("fp32", "not told", PRODUCT),
}
"""Operator -> elements, sums, source: TensorRT 10 and 11. The products of FP16 operands are exact in FP32."""

REDUCTION = re.compile(r"\w+::\w+<(Add|Mul)Op<__myln_\w+>,__myln_(\w+),__myln_(\w+),")
NORM = re.compile(r"(\w*norm\w*)<((?:__myln_\w+,)+)")
ARITHMETIC = re.compile(r"__myln_([a-z0-9]+)(?:___myln_(\w+?))?___myln_(half|float)(?:___myln_\w+)?\(")
KERNEL = re.compile(rb'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(__myl_\w+)\(')
STEP = re.compile(rb'\n +(?:runtime_)?function=\{ name=\S+ fqn=(\w+)[^{}]*(?:\{[^{}]*\}[^{}]*)*? layers="([^"]*)"')
TYPES: dict[str, Precision] = {"float": "fp32", "half": "fp16"}


@dataclass(frozen=True)
class Case:
    """One spelling of an operator.

    Attributes:
        operator: ONNX operator.
        kind: "norm", with statistics; "sum" of what the graph stores; "elementwise"; "product".
        shape: of its input.
        constants: its further inputs.
        attributes: as in ONNX.
        second: shape of a second activation that it reads.
        in_network: whether its output can gate its input.
        opset: the oldest that has it, 20 for most.
    """

    operator: str
    kind: str
    shape: tuple[int, ...] = TOKENS
    constants: tuple[Any, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    second: tuple[int, ...] = ()
    in_network: bool = True
    opset: int = 20


def cases() -> list[Case]:
    """All operators that have statistics, accumulate or can overflow inside."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return (random.standard_normal(shape) / 8).astype(np.float32)

    def axes(*values: int) -> Any:
        return np.array(values, np.int64)

    channels, features = np.ones(64, np.float32), np.ones(192, np.float32)
    reductions = [
        Case(operator, kind, shape, (axes(*over),), in_network=shape is TOKENS)
        for operator, kind in (
            ("ReduceL2", "norm"), ("ReduceSumSquare", "norm"), ("ReduceLogSumExp", "norm"), ("ReduceLogSum", "norm"),
            ("ReduceL1", "sum"), ("ReduceSum", "sum"), ("ReduceMean", "sum"),
        )
        for shape, over in ((TOKENS, (-1,)), (TOKENS, (1,)), (MAP, (2, 3)))
    ]  # fmt: skip
    elementwise = ("Exp", "Erf", "Sigmoid", "Tanh", "Softplus", "Mish", "HardSwish", "Sqrt", "Reciprocal", "Log", "Gelu")
    return [
        Case("LayerNormalization", "norm", constants=(features, features)),
        Case("RMSNormalization", "norm", constants=(features,), opset=23),
        Case("InstanceNormalization", "norm", MAP, (channels, channels), in_network=False),
        Case("GroupNormalization", "norm", MAP, (channels, channels), {"num_groups": 8}, in_network=False, opset=21),
        Case("LpNormalization", "norm", attributes={"axis": -1, "p": 2}),
        *reductions,
        Case("Softmax", "norm", attributes={"axis": -1}),
        Case("LogSoftmax", "norm", attributes={"axis": -1}),
        Case("GlobalAveragePool", "sum", MAP, in_network=False),
        Case("AveragePool", "sum", MAP, (), {"kernel_shape": [3, 3]}, in_network=False),
        *(Case(operator, "elementwise") for operator in elementwise),
        Case("Gelu", "elementwise", attributes={"approximate": "tanh"}),
        *(Case("Pow", "elementwise", constants=(np.float32(power),)) for power in (2, 3, 0.5, -0.5)),
        Case("MatMul", "product", constants=(weight(192, 64),), in_network=False),
        Case("MatMul", "product", (1, 192), (weight(192, 64),), in_network=False),
        Case("MatMul", "product", (4, 64, 196), second=(4, 196, 64), in_network=False),
        Case("Gemm", "product", (1, 192), (weight(192, 64),), in_network=False),
        Case("Gemm", "product", (64, 192), (weight(192, 64),), in_network=False),
        Case("Conv", "product", MAP, (weight(32, 64, 3, 3),), in_network=False),
        Case("Conv", "product", MAP, (weight(64, 1, 3, 3),), {"group": 64}, in_network=False),
        Case("ConvTranspose", "product", MAP, (weight(64, 32, 2, 2),), {"strides": [2, 2]}, in_network=False),
    ]


def graph(case: Case, *, in_network: bool) -> onnx.ModelProto:
    """The operator as a node named "node", in FP32."""
    random, width = np.random.default_rng(1), case.shape[-1]
    constants = {f"constant_{i}": np.asarray(value) for i, value in enumerate(case.constants)}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)]
    if case.second:
        inputs.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, case.second))
    source = "stream" if in_network else "x"
    read = [source, *(["second"] if case.second else []), *constants]
    nodes = [helper.make_node(case.operator, read, ["y"], name="node", **case.attributes)]
    if in_network:
        for name in ("before", "after"):
            constants[f"{name}_weight"] = (random.standard_normal((width, width)) / width**0.5).astype(np.float32)
        before = [("MatMul", ["x", "before_weight"], "branch"), ("Add", ["x", "branch"], "stream")]
        after = [
            ("Mul", ["stream", "y"], "gated"),
            ("MatMul", ["gated", "after_weight"], "last"),
            ("Add", ["last", "stream"], "z"),
        ]
        nodes = [
            *(helper.make_node(operator, read, [out], name=out) for operator, read, out in before),
            *nodes,
            *(helper.make_node(operator, read, [out], name=out) for operator, read, out in after),
        ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    shape = case.shape if in_network or case.operator == "GroupNormalization" else None  # ONNX infers none for it
    output = helper.make_tensor_value_info("z" if in_network else "y", TensorProto.FLOAT, shape)
    model = helper.make_graph(nodes, "one operator", inputs, [output], weights)
    made = helper.make_model(model, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


def build_plan(model: onnx.ModelProto, capability: str) -> bytes:
    """The plan of the graph, typed as FP16."""
    builder = Builder("rtx")
    network, config = builder.parse(type_graph(model).SerializeToString()), builder.make_config(BuilderOptions())
    builder.set_compute_capabilities(config, (capability,))
    return builder.build(network, config, lambda _share: None)


def sources_of_node(plan: bytes) -> list[str]:
    """CUDA source of every generated kernel that computes the node, without what all kernels include."""
    of_node = {name for name, layers in STEP.findall(plan) if b"[ONNX Layer: node" in layers}
    parts = KERNEL.split(plan)
    bodies = [
        (name, body.split(b"\0")[0].decode(errors="replace")) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return [body for name, body in bodies if name in of_node]


def read_precision(case: Case, source: str, elementwise: frozenset[str]) -> OperatorPrecision:
    """What the source of a kernel shows of the node."""
    sums: list[Precision] = []
    elements: list[Precision] = []
    evidence: list[str] = []
    for match in REDUCTION.finditer(source):
        sums.append(TYPES.get(match[2], "not told"))
        elements.append(TYPES.get(match[3], "not told"))
        evidence.append(match[0].rstrip(","))
    for match in NORM.finditer(source):
        sums.append(TYPES.get(match[2].split(",")[0].removeprefix("__myln_"), "not told"))
        elements.append(sums[-1])
        evidence.append(match[0].rstrip(","))
    if case.kind == "elementwise":
        used = Counter((name, kind) for name, _, kind in ARITHMETIC.findall(source) if name in elementwise or not elementwise)
        elements = sums = [TYPES[kind] for _name, kind in used]
        evidence = sorted(f"{name} in {kind}" for name, kind in used)
    if case.kind == "sum":
        elements = ["fp32"] if sums else []
    shown = ", ".join(dict.fromkeys(evidence))
    return OperatorPrecision(_narrowest_or_untold(elements), _narrowest_or_untold(sums), shown)


def _narrowest_or_untold(precisions: list[Precision]) -> Precision:
    return narrowest(*precisions) if precisions else "not told"


def arithmetic(source: str) -> frozenset[str]:
    """Names of the operations in a kernel."""
    return frozenset(name for name, _, _ in ARITHMETIC.findall(source))


def measure(case: Case, say: Callable[[str], None]) -> list[OperatorPrecision]:
    """What every build of the operator shows."""
    results, alone = [], frozenset[str]()
    for capability in CAPABILITIES:
        for in_network in (False, True)[: 1 + case.in_network]:
            context = f"{case.operator} {case.kind} {case.shape}, {capability}, {'in a network' if in_network else 'alone'}"
            try:
                source = "\n".join(sources_of_node(build_plan(graph(case, in_network=in_network), capability)))
            except UfovitError as error:
                say(f"{context}: not built: {' '.join(str(error).split())[:160]}")
                continue
            alone = alone if in_network else arithmetic(source)
            results.append(read_precision(case, source, alone if in_network else frozenset()))
            say(f"{context}: {results[-1]}")
    return results


def combine(results: list[OperatorPrecision]) -> OperatorPrecision:
    """The narrowest of several builds, and what shows it."""
    elements, sums = narrowest(*(r.elements for r in results)), narrowest(*(r.sums for r in results))
    decisive = next(r for r in results if elements in (r.elements, r.sums))
    return OperatorPrecision(elements, sums, decisive.evidence or "computed in a kernel whose source is not in the plan")


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description="Measure what TensorRT-RTX computes in FP32 inside FP16 operators.")
    parser.add_argument("--out", type=Path, default=root / "edge/stability/target_precisions.json")
    args = parser.parse_args()
    results: dict[str, list[OperatorPrecision]] = {}
    for case in cases():
        results.setdefault(case.operator, []).extend(measure(case, lambda line: print(line, flush=True)))
    release = version("tensorrt_rtx")
    measured = {name: vars(combine(found)) for name, found in sorted(results.items()) if found}
    documented = {name: dict(zip(("elements", "sums", "evidence"), entry, strict=True)) for name, entry in DOCUMENTED.items()}
    rtx = {"version": release, "source": f"measured: plan text of tensorrt_rtx {release}", "operators": measured}
    tensorrt = {"version": "10, 11", "source": f"documented: {PRECISION_GUIDE}", "operators": documented}
    write_json(args.out, {"rtx": rtx, "tensorrt": tensorrt})
    for name, entry in measured.items():
        print(f"{name:24}{entry['elements']:10}{entry['sums']:10}{entry['evidence'][:100]}")


if __name__ == "__main__":
    main()
