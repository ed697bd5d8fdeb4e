#!/usr/bin/env python3
"""The table of scripts/bench/autocast.sh: FP16 graphs of AutoCast and of this toolkit, judged in the same way.

    python scripts/bench/autocast.py FOLDER

A node in FP32 computes a float tensor that stays FLOAT; Casts and constants are not counted. Nodes in FP32 that read one
another are one island. SQNR of the worst output against the float graph, on the images of FOLDER/NAME.npy: emulated as FP16
hardware computes the graph (what TensorRT-RTX widens, in FP32), and as ONNX Runtime runs it, which hides most of FP16.
"certified": the graph that a build types after `certify`, repaired on the same images for the target rtx.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calib.errors import InputError
from calib.files import sha256_bytes
from calib.graph import index_graph, infer_types
from calib.ort_session import TappedGraph
from edge.stability.certify import CertifyConfig
from edge.stability.float_formats import Float32
from edge.stability.fp16_network import compare_outputs, fp32_outputs, kept_nodes
from edge.stability.instrumented_graph import Tensors
from edge.stability.network_certification import certify_network
from edge.stability.target_precisions import target_precisions
from engines.fp16_emulation import emulated_graph
from engines.typed_graph import type_graph

IMAGES = 8


@dataclass(frozen=True)
class Counts:
    """What a typed graph leaves in FP32."""

    nodes: int
    islands: int
    casts: int


def count_fp32(typed: onnx.ModelProto) -> Counts:
    """Count the nodes that compute in FP32, their islands, and the Casts of the whole graph."""
    types, index = infer_types(typed), index_graph(typed)
    names = {
        name
        for node in typed.graph.node
        if node.op_type not in ("Cast", "Constant")
        for name in node.output
        if name in types and types[name].dtype == onnx.TensorProto.FLOAT and name not in index.constant_like
    }
    island = {index.producers[name]: index.producers[name] for name in names}

    def root(node: int) -> int:
        while island[node] != node:
            node = island[node]
        return node

    for name in names:
        for consumer in index.consumers.get(name, ()):
            if consumer in island:
                island[root(index.producers[name])] = root(consumer)
    casts = sum(node.op_type == "Cast" and node.input[0] not in index.constant_like for node in typed.graph.node)
    return Counts(len(island), len({root(node) for node in island}), casts)


def run(graph: onnx.ModelProto, outputs: tuple[str, ...], images: Float32) -> list[Tensors]:
    """Outputs of a graph, image after image."""
    session = TappedGraph(graph, outputs)
    return [{name: values[0] for name, values in session(image[None]).items()} for image in images]


def row(name: str, tool: str, expected: list[Tensors], typed: onnx.ModelProto, images: Float32) -> str:
    """A row of the table."""
    counts = count_fp32(typed)
    sqnr = []
    for graph in (emulated_graph(typed, precisions=target_precisions("rtx")), typed):
        found = compare_outputs(expected, run(graph, tuple(expected[0]), images))
        sqnr.append(f"{found.sqnr_db:.1f}" + (f", {found.not_finite} not finite" if found.not_finite else ""))
    return f"| {name} | {tool} | {counts.nodes} | {counts.islands} | {counts.casts} | {sqnr[0]} | {sqnr[1]} |"


def certified_graph(model: onnx.ModelProto, images: Float32) -> onnx.ModelProto:
    """The typed graph after all repairs; inputs are taken to lie within the range of the images."""
    axes = (0, *range(2, images.ndim))
    low, high = (bound(images, axis=axes, keepdims=True)[0].astype(np.float64) for bound in (np.min, np.max))
    done = certify_network(
        model,
        lambda: [images],
        interval=(low, high),
        data_sha256=sha256_bytes(images.tobytes()),
        config=CertifyConfig(("fp16",), backend="trt_rtx", repair=True, emulated_images=0),
    )
    kept = kept_nodes(done.model, done.xnorms) if done.xnorms else frozenset()
    return type_graph(done.model, keep_fp32=kept | set(done.certificate.fp32_nodes))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare FP16 graphs of AutoCast with those of this toolkit.")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    lines = [
        "| network | graph | nodes in FP32 | islands | Casts | SQNR emulated (dB) | SQNR in ONNX Runtime (dB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(args.folder.glob("*.onnx")):
        model, images = onnx.load(path), np.load(path.with_suffix(".npy"))[:IMAGES]
        expected = fp32_outputs(model, images)
        other = args.folder / "autocast" / path.name
        tools: dict[str, Callable[[], onnx.ModelProto]] = {
            "all FP16": lambda model=model: type_graph(model),  # type: ignore[misc]  # a lambda's defaults have no types
            "AutoCast": lambda other=other: onnx.load(other),  # type: ignore[misc]
            "certified": lambda model=model, images=images: certified_graph(model, images),  # type: ignore[misc]
        }
        for tool, make in tools.items():
            if tool == "AutoCast" and not other.exists():
                continue
            try:
                typed = make()
                del typed.graph.value_info[:]  # AutoCast's may hold shapes that ONNX Runtime refuses at run time
                lines.append(row(path.stem, tool, expected, typed, images))
            except InputError as error:
                lines.append(f"| {path.stem} | {tool} | - | - | - | {' '.join(str(error).split())[:80]} | - |")
            print(lines[-1], flush=True)
    args.folder.joinpath("autocast.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
