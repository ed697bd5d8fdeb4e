#!/usr/bin/env python3
"""Compare what could take steps (kernel launches) off an INT8 engine: steps, megabytes, INT8 share, SQNR, agreement. No GPU.

    scripts/install.sh build rtx
    ufovit build ufovit_t int8 --target rtx --image-size 224 --out build/steps-224
    python scripts/bench/step_candidates.py build/steps-224 --images 500

BUILD is a finished build folder of a classifier: its refined graph, calibration and preprocessing are read. Every candidate is
quantized with the same scales, typed in FP16 and built by TensorRT-RTX for compute capability 8.6. SQNR and agreement compare
the logits of the Q/DQ graph, ONNX Runtime on the CPU, with those of the float graph on the shipped test images.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calib.calibration_table import load_table
from calib.files import sha256_bytes
from calib.graph import attribute, index_graph
from calib.graph_editor import GraphEditor
from calib.metrics import sqnr_db, top1_agreement
from calib.placement import without
from calib.qdq_placement import QuantScheme
from calib.qdq_writer import serialize
from calib.quantize import quantize_graph
from edge.assets import TEST_IMAGES
from edge.images.labelled_images import open_unlabelled
from edge.images.preprocess import read_preprocess
from edge.pipeline.placement_option import STEM_LAYERS
from edge.runtime.ort_runner import BATCH, OrtRunner, run_all
from engines.build_folder.file_names import CALIBRATION, QUANTIZED, REFINED, TYPED
from engines.build_folder.folder import BuildFolder
from engines.build_spec import BatchRange, BuilderOptions, BuildSpec
from engines.layer_requests import read_layers
from engines.rtx_plan_text import read_steps
from engines.targets import TARGETS
from engines.token_layouts import merge_layouts
from engines.trt.rtx_backend import build_plan
from engines.typed_graph import type_graph

CAPABILITY = "8.6"


@dataclass(frozen=True)
class Candidate:
    """What stays in float beside the stem's first two convolutions, and what is rewritten."""

    name: str
    depthwise: bool = False
    products: tuple[int, ...] = ()
    norm_after: bool = False
    layouts: bool = True


CANDIDATES = (
    Candidate("as exported", layouts=False),
    Candidate("depthwise convolutions in float, as exported", depthwise=True, layouts=False),
    Candidate("layouts"),
    Candidate("layouts, depthwise convolutions in float", depthwise=True),
    Candidate("the same, first product of attentions too", depthwise=True, products=(0,)),
    Candidate("the same, second product instead", depthwise=True, products=(1,)),
    Candidate("the same, both products", depthwise=True, products=(0, 1)),
    Candidate("the same, norm of K^T V after the second product", depthwise=True, products=(0, 1), norm_after=True),
    Candidate("the same, first product in INT8", depthwise=True, products=(1,), norm_after=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare what could take steps off an INT8 engine.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--images", type=int, default=500)
    args = parser.parse_args()
    folder = BuildFolder(args.build)
    images = open_unlabelled(TEST_IMAGES).take(args.images)
    batches = list(images.batches(read_preprocess(folder.manifest), BATCH))
    reference = run_all(OrtRunner(args.build / REFINED, throughput=True), batches)[0]
    print(f"{len(images)} images of {image_size(batches)} px\n\n| candidate | steps | MB | INT8 share | SQNR | agreement |")
    print("|---|---|---|---|---|---|")
    judged: dict[str, str] = {}
    for candidate in CANDIDATES:
        quantized = quantize(args.build, candidate)
        digest = sha256_bytes(serialize(quantized))  # candidates that differ in layouts alone have the same logits
        if digest not in judged:
            logits = run_all(OrtRunner(args.build / QUANTIZED, data=serialize(quantized), throughput=True), batches)[0]
            judged[digest] = f"{sqnr_db(reference, logits):.1f} dB | {top1_agreement(reference, logits):.2%}"
        print(f"| {candidate.name} | {count_steps(candidate, quantized)} | {judged[digest]} |", flush=True)


def image_size(batches: list[NDArray[np.float32]]) -> str:
    return "x".join(map(str, batches[0].shape[2:]))


def quantize(build: Path, candidate: Candidate) -> onnx.ModelProto:
    """The Q/DQ graph of a candidate, with the scales of the build."""
    model, table = onnx.load(build / REFINED), load_table(build / CALIBRATION)
    in_float = [name for at in candidate.products for name in attention(model)[at]]
    scheme = without(QuantScheme(exclude=STEM_LAYERS), [*in_float, *(depthwise(model) if candidate.depthwise else ())])
    return quantize_graph(norm_after_product(model) if candidate.norm_after else model, table, scheme, candidate.name)


def count_steps(candidate: Candidate, quantized: onnx.ModelProto) -> str:
    """Steps, megabytes and INT8 share of the engine of a Q/DQ graph."""
    layers, typed = read_layers(quantized), type_graph(quantized)
    share = sum(layer.macs for layer in layers if layer.requested == "int8") / sum(layer.macs for layer in layers)
    target = replace(TARGETS["rtx"], compute_capabilities=(CAPABILITY,))
    spec = BuildSpec(Path(TYPED), target, "int8", BatchRange(1, 1, 8), options=BuilderOptions())
    plan = build_plan(spec, serialize(merge_layouts(typed) if candidate.layouts else typed), lambda _share: None).data
    return f"{len(read_steps(plan))} | {len(plan) / 1e6:.1f} | {share:.1%}"


def depthwise(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions with one channel per group."""
    return [node.name for node in model.graph.node if node.op_type == "Conv" and attribute(node, "group", 1) > 1]


def attention(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Names of the products of two activations: those that nothing normalizes before, and those after a norm."""
    index = index_graph(model)
    products = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and not any(tensor in index.constant_like for tensor in node.input)
    ]
    second = [node.name for node in products if (of := index.producer(node.input[1])) is not None and of.op_type == "Div"]
    return [node.name for node in products if node.name not in second], second


def norm_after_product(model: onnx.ModelProto) -> onnx.ModelProto:
    """Q (K / n) -> (Q K) / n where n (B, H, 1, D) has one value for every column of K (B, H, D, D)."""
    editor = GraphEditor(model)
    for name in attention(editor.model)[1]:
        product = editor.node(name)
        division = editor.index.producer(product.input[1])
        assert division is not None
        result, unscaled = product.output[0], editor.new_name(f"{product.output[0]}/unscaled")
        product.input[1], product.output[0] = division.input[0], unscaled
        moved = onnx.helper.make_node("Div", [unscaled, division.input[1]], [result], name=editor.new_name(f"{name}/norm"))
        editor.insert_after(result, moved)
    edited = editor.finish()
    read = {tensor for node in edited.graph.node for tensor in node.input}
    nodes = [node for node in edited.graph.node if node.op_type != "Div" or node.output[0] in read]
    del edited.graph.node[:]
    edited.graph.node.extend(nodes)
    return edited


if __name__ == "__main__":
    main()
