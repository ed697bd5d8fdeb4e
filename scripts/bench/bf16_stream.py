#!/usr/bin/env python3
"""Measure a residual stream that FP16 cannot hold, in an FP32 island and in BF16: steps and bytes of the plan, SQNR. No GPU.

    scripts/install.sh build rtx
    python scripts/bench/bf16_stream.py

Four residual blocks (LayerNorm, 192 -> 768, ReLU, 768 -> 192, a gain, Add) on 197 tokens, random weights; the stream reaches
1e5 and more. "FP16" is the same network with a stream that FP16 holds. Steps and bytes are read from TensorRT-RTX plans. SQNR
compares the outputs with float64: products sum exactly, and every stored tensor is rounded to its type.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calib.metrics import sqnr_db
from edge.stability.float_formats import BF16, FP16, FloatFormat
from engines.build_spec import BuilderOptions
from engines.rtx_plan_text import read_steps
from engines.trt.api import Builder
from engines.typed_graph import type_graph

BLOCKS, TOKENS, WIDTH, HIDDEN, CLASSES, EPS = 4, 197, 192, 768, 10, 1e-5
SCALE = 1e5
CAPABILITIES = ("8.6", "12.0")
Float64 = NDArray[np.float64]
Format = FloatFormat | None


def weights(scale: float) -> dict[str, NDArray[np.float32]]:
    """All constants; the stream is about `scale` times a standard normal tensor."""
    random = np.random.default_rng(0)

    def linear(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        return (gain * random.standard_normal((rows, columns)) / math.sqrt(rows)).astype(np.float32)

    blocks = {f"up{at}": linear(WIDTH, HIDDEN) for at in range(BLOCKS)}
    blocks |= {f"down{at}": linear(HIDDEN, WIDTH, 100) for at in range(BLOCKS)}
    ends = {"embed": linear(WIDTH, WIDTH), "head": linear(WIDTH, CLASSES)}
    gains = {"scale": np.array(scale), "gain": np.array(scale / 100), "one": np.ones(WIDTH), "zero": np.zeros(WIDTH)}
    return blocks | ends | {name: values.astype(np.float32) for name, values in gains.items()}


def network(scale: float) -> tuple[onnx.ModelProto, frozenset[str]]:
    """The FP32 graph, and the nodes of its stream."""
    nodes: list[onnx.NodeProto] = []
    stream: set[str] = set()

    def node(operator: str, name: str, *inputs: str, in_stream: bool = False) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{name}/out"], name=name))
        stream.update([name] if in_stream else [])
        return f"{name}/out"

    x = node("Mul", "stream", node("MatMul", "embedding", "x", "embed"), "scale", in_stream=True)
    for at in range(BLOCKS):
        y = node("LayerNormalization", f"norm{at}", x, "one", "zero", in_stream=True)
        y = node("Relu", f"relu{at}", node("MatMul", f"hidden{at}", y, f"up{at}"))
        y = node("Mul", f"gained{at}", node("MatMul", f"branch{at}", y, f"down{at}"), "gain", in_stream=True)
        x = node("Add", f"sum{at}", x, y, in_stream=True)
    node("MatMul", "y", node("LayerNormalization", "last", x, "one", "zero", in_stream=True), "head")
    nodes[-1].output[0] = "y"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, TOKENS, width))
        for name, width in (("x", WIDTH), ("y", CLASSES))
    ]
    constants = [numpy_helper.from_array(values, name) for name, values in weights(scale).items()]
    graph = helper.make_graph(nodes, "residual stream", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), frozenset(stream)


def in_bf16(typed: onnx.ModelProto, island: frozenset[str]) -> onnx.ModelProto:
    """A typed graph with BF16 in the place of FP32 in its island."""
    inside = {name for node in typed.graph.node if node.name in island for name in node.input}
    for node in typed.graph.node:
        if node.op_type == "Cast" and node.output[0] in inside:
            node.attribute[0].i = TensorProto.BFLOAT16
    for tensor in typed.graph.initializer:
        if tensor.name in inside:
            upper = BF16.round(numpy_helper.to_array(tensor)).view(np.uint32) >> 16
            raw = upper.astype(np.uint16).tobytes()
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, tensor.dims, raw, raw=True))
    del typed.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(typed, check_type=True, strict_mode=True)


def plan_row(model: onnx.ModelProto, capability: str) -> str:
    """Steps, and bytes of activations and of weights, of the plan."""
    builder = Builder("rtx")
    parsed, config = builder.parse(model.SerializeToString()), builder.make_config(BuilderOptions())
    builder.set_compute_capabilities(config, (capability,))
    steps = read_steps(builder.build(parsed, config, lambda _share: None))
    moved = sum(step.activation_bytes or 0 for step in steps)
    return f"{len(steps)} | {moved:,} | {sum(step.weight_bytes for step in steps):,}"


def run(x: Float64, constants: Mapping[str, NDArray[np.float32]], half: Format, wide: Format) -> Float64:
    """The outputs with stored tensors in `half`, those of the stream in `wide`; None rounds nothing."""

    def stored(values: Float64, fmt: Format) -> Float64:
        return values if fmt is None else np.asarray(fmt.round(values.astype(np.float32)), np.float64)

    def times(values: Float64, name: str) -> Float64:
        return stored(values @ stored(constants[name].astype(np.float64), half), half)

    def norm(values: Float64) -> Float64:
        centred = values - values.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
        return stored(stored(normed, wide), half)

    stream = stored(times(stored(x, half), "embed") * float(constants["scale"]), wide)
    for at in range(BLOCKS):
        branch = times(np.maximum(times(norm(stream), f"up{at}"), 0), f"down{at}")
        stream = stored(stream + stored(stored(branch, wide) * float(constants["gain"]), wide), wide)
    return times(norm(stream), "head")


def main() -> None:
    (large, island), (small, _) = network(SCALE), network(1.0)
    print("| stream | compute capability | steps | bytes of activations | bytes of weights |\n|---|---|---|---|---|")
    for capability in CAPABILITIES:
        models = {
            "FP16": type_graph(small),
            "FP32 island": type_graph(large, keep_fp32=island),
            "BF16": in_bf16(type_graph(large, keep_fp32=island), island),
        }
        for name, model in models.items():
            print(f"| {name} | {capability} | {plan_row(model, capability)} |", flush=True)
    x, constants = np.random.default_rng(1).standard_normal((8, TOKENS, WIDTH)), weights(SCALE)
    exact = run(x, constants, None, None)
    for name, wide in (("FP32 island", None), ("BF16", BF16)):
        print(f"{name}: {sqnr_db(exact, run(x, constants, FP16, wide)):.1f} dB")


if __name__ == "__main__":
    main()
