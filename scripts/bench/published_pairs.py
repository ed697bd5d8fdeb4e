#!/usr/bin/env python3
"""Compare the estimate of INT8's speed-up over FP16 with published pairs of latencies, without a GPU.

    scripts/install.sh build rtx
    python scripts/bench/published_pairs.py FOLDER [--out works.json]

FOLDER holds resnet18.onnx, resnet50.onnx, mobilenet_v2.onnx and vit_small.onnx, as libraries export them at 224 px. Each is
built for TensorRT-RTX in FP16 and in INT8; the scales are all the same, because the steps of a plan do not depend on them. The
published ViT is a ViT-B, whose engine has the steps of a ViT-S: 4 times the products and weights, twice the activations. Its
attention products stay in float, as in the published engine. The graph of RF-DETR is not available here: its backbone, a
ViT-S, stands for it. --out writes what the engines run, as the tests read it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import astuple, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import onnx

from calib.calibration_table import CalibrationTable, TensorScale
from calib.files import sha256_bytes, write_json
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.qdq_writer import insert_qdq
from calib.scales import QMAX, activation_scale
from edge.onnx_import import import_onnx, rewrite
from edge.onnx_import.imported import ImportOptions
from engines.backends import load_backend
from engines.build_spec import BatchRange, BuildSpec, Precision
from engines.layer_requests import graph_facts
from engines.roofline import RATES, EngineWork, MachineRates, StepWork, engine_work, estimate_speed_up
from engines.rtx_plan_text import read_plan
from engines.targets import TARGETS
from engines.typed_graph import type_graph

ORIN_NANO = RATES["orin-nano"]
RTX_3060_LAPTOP = MachineRates("GeForce RTX 3060 Laptop GPU", 104, 52, 336, (1.0, 4.0))
RTX_5070 = MachineRates("GeForce RTX 5070", 247, 123.5, 672, (1.0, 4.0), traffic=(0.2, 1.0))


@dataclass(frozen=True)
class Pair:
    """A published pair of latencies of one network on one GPU."""

    network: str
    rates: MachineRates
    batch: int
    fp16_ms: float
    int8_ms: float
    factors: tuple[int, int, int, int] = (1, 1, 1, 1)


AS_VIT_B = (4, 2, 4, 4)
"""Factors from ViT-S to ViT-B: weights, activations, products in INT8, products in float."""
PAIRS = (  # the first seven: onnxsim/onnxsim, scripts/nvidia/README.md; TensorRT 10.3, trtexec, MAXN_SUPER
    Pair("resnet18", ORIN_NANO, 1, 0.758, 0.485),
    Pair("resnet18", ORIN_NANO, 8, 3.537, 1.927),
    Pair("resnet50", ORIN_NANO, 1, 1.814, 1.190),
    Pair("resnet50", ORIN_NANO, 8, 8.816, 4.930),
    Pair("mobilenet_v2", ORIN_NANO, 1, 0.850, 0.781),
    Pair("mobilenet_v2", ORIN_NANO, 8, 3.925, 2.446),
    Pair("vit_small", ORIN_NANO, 1, 5.68, 4.92, AS_VIT_B),  # of ViT-B/16
    Pair("resnet18", RTX_3060_LAPTOP, 1, 0.527, 0.418),  # yester31/quantization_ex, TensorRT 8.6
    Pair("vit_small", RTX_5070, 8, 1.0, 1.13),  # RF-DETR nano, 13 % slower: roboflow/rf-detr#1024, TensorRT 11.3
    Pair("vit_small", RATES["thor"], 1, 22, 20),  # RF-DETR-Seg XL: roboflow/rf-detr#955
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the estimate of INT8's speed-up with published pairs.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    works = {name: build_both(args.folder / f"{name}.onnx") for name in dict.fromkeys(pair.network for pair in PAIRS)}
    if args.out:
        write_json(args.out, {name: {key: as_rows(work) for key, work in both.items()} for name, both in works.items()})
    print("| network | GPU | batch | published | estimated | decided by |\n|---|---|---|---|---|---|")
    for pair in PAIRS:
        int8, fp16 = (scaled(works[pair.network][precision], pair.factors) for precision in ("int8", "fp16"))
        estimate = estimate_speed_up(int8, fp16, pair.rates, pair.batch)
        cells = (f"{pair.fp16_ms / pair.int8_ms:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}", estimate.decided_by)
        print(f"| {pair.network} | {pair.rates.name} | {pair.batch} | {' | '.join(cells)} |")


def build_both(path: Path) -> dict[str, EngineWork]:
    """Build a network in FP16 and in INT8, and return what each runs as an engine of TensorRT."""
    imported = import_onnx(path, ImportOptions())
    model = imported.model
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    rewrite(model, [np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)], imported)
    points = plan_quantization(model).points
    weighted = {point.node for point in points if point.kind == "weight"}
    vit = path.stem.startswith("vit")
    plan = plan_quantization(model, QuantScheme(tuple({p.node for p in points} - weighted) if vit else ()))
    scale = activation_scale(1.0, "every tensor")
    scales = {name: TensorScale(scale * QMAX, scale, "minmax") for name in plan.activations}
    table = CalibrationTable(sha256_bytes(model.SerializeToString()), "0" * 64, 1, "minmax", scales, synthetic=True)
    graphs: dict[Precision, onnx.ModelProto] = {"fp16": model, "int8": insert_qdq(model, table, plan)}
    return {name: run_of(type_graph(graph), name) for name, graph in graphs.items()}


def run_of(model: onnx.ModelProto, precision: Precision) -> EngineWork:
    """Build a plan of a typed graph and read what it runs."""
    spec = BuildSpec(Path("graph.onnx"), TARGETS["rtx"], precision, BatchRange(1, 8, 8), 0.0 if precision == "int8" else None)
    built = load_backend("trt_rtx").build(spec, model.SerializeToString(), lambda _share: None)
    facts = graph_facts(model)
    return engine_work(read_plan(built.data, frozenset(facts.traceable)), facts.layers)


def scaled(work: EngineWork, factors: tuple[int, int, int, int]) -> EngineWork:
    """The work of a wider network of the same steps."""
    return EngineWork(
        *(
            tuple(StepWork(*(f * v for f, v in zip(factors, astuple(step), strict=True))) for step in steps)
            for steps in (work.planned, work.unpadded, work.merged)
        )
    )


def as_rows(work: EngineWork) -> dict[str, list[list[int]]]:
    """The steps as lists of numbers."""
    return {name: [list(astuple(step)) for step in getattr(work, name)] for name in ("unpadded", "merged")}


if __name__ == "__main__":
    main()
