#!/usr/bin/env python3
"""Evaluate every graph of the benchmark and the FP32 graph on the same labelled images.

    python scripts/bench/peers/evaluate.py FOLDER [--only GLOB] [--eval-images N]

Per graph, in FOLDER/results/DIGEST-N.json: top-1, drop, agreement and SQNR of the logits, in ONNX Runtime on the CPU; the
share of the multiply-accumulates for which the graph requests INT8; whether TensorRT-RTX accepts it, and the share it then runs
in INT8. An existing result is reused: delete the file to evaluate again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from calib.errors import InputError, UfovitError
from calib.files import canonical_json, sha256_bytes, sha256_file, write_json
from calib.graph import load_graph
from calib.json_reader import read_json
from calib.metrics import sqnr_db, top1_agreement
from edge.images.preprocess import Float32
from edge.runtime.ort_runner import BATCH, OrtRunner
from engines.layer_records import Layer
from engines.layer_requests import read_layers

RTX_SECONDS = 180
ZERO_POINT = "the zero-point of operand"


@dataclass(frozen=True)
class Evaluation:
    """The images and the FP32 graph's logits."""

    folder: Path
    images: Float32
    labels: npt.NDArray[np.int64]
    digest: str
    reference: Float32


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the graphs of the benchmark.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="glob of TOOL-SETTING")
    parser.add_argument("--eval-images", type=int, default=None)
    args = parser.parse_args()
    evaluation = open_evaluation(args.folder, args.eval_images)
    evaluate(evaluation, args.folder / "fp32.onnx", "fp32")
    for graph in sorted((args.folder / "out").glob("*.onnx")):
        if fnmatch(graph.stem, args.only):
            evaluate(evaluation, graph, "int8")


def result_path(folder: Path, graph: Path, images: int) -> Path:
    return folder / "results" / f"{sha256_file(graph)[:16]}-{images}.json"


def open_evaluation(folder: Path, count: int | None) -> Evaluation:
    """Select `count` images, evenly spread and always the same, and compute or load the FP32 graph's logits."""
    images, labels = np.load(folder / "eval.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    if count is not None and count < len(images):
        chosen = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
        images, labels = images[chosen], labels[chosen]
    digests = read_json(folder / "info.json")["sha256"]
    digest = sha256_bytes(canonical_json([digests["fp32.onnx"], digests["eval.npy"], digests["labels.npy"], len(images)]))
    stored = folder / "results" / f"reference-{digest[:16]}.npy"
    if not stored.is_file():
        stored.parent.mkdir(exist_ok=True)
        np.save(stored, run(folder / "fp32.onnx", images))
    return Evaluation(folder, images, labels, digest, np.load(stored))


def run(graph: Path, images: Float32) -> Float32:
    """Logits of a graph, in batches of its fixed size if it has one."""
    runner = OrtRunner(graph)
    size = fixed_batch(graph) or BATCH
    return np.concatenate([runner(np.asarray(images[i : i + size]))[0] for i in range(0, len(images), size)])


def fixed_batch(graph: Path) -> int:
    model, _ = load_graph(graph)
    return int(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


def evaluate(evaluation: Evaluation, graph: Path, precision: str) -> None:
    path = result_path(evaluation.folder, graph, len(evaluation.images))
    if path.is_file() and read_json(path)["evaluation_sha256"] == evaluation.digest:
        return
    start = time.monotonic()
    known = [read_json(p) for p in sorted(path.parent.glob(f"{path.name[:16]}-*.json"))]
    rtx = known[0]["rtx"] if known else check_rtx(graph, precision)  # the same for any number of images
    result = {
        "graph": graph.stem,
        "graph_sha256": sha256_file(graph),
        "evaluation_sha256": evaluation.digest,
        "images": len(evaluation.images),
        "rtx": rtx,
        **requested(graph),
        **accuracy(evaluation, graph),
    }
    write_json(path, result)
    print(f"{graph.stem}: {json.dumps(result, sort_keys=True)} in {time.monotonic() - start:.0f} s", flush=True)


def accuracy(evaluation: Evaluation, graph: Path) -> dict[str, Any]:
    """Top-1, drop, agreement and SQNR, or the error."""
    labels, reference = evaluation.labels, evaluation.reference
    try:
        logits = run(graph, evaluation.images)
        top1, top1_fp32 = (float((side.argmax(axis=1) == labels).mean()) for side in (logits, reference))
        sqnr = min(sqnr_db(reference, logits), 300.0)  # equal logits: JSON has no infinity
        agreement = top1_agreement(reference, logits)
    except UfovitError as error:
        return {"error": " ".join(str(error).split())[:300]}
    return {"top1": top1, "drop_points": 100 * (top1_fp32 - top1), "agreement": agreement, "sqnr_db": sqnr, "error": None}


def requested(graph: Path) -> dict[str, Any]:
    """Share of the multiply-accumulates for which the graph requests INT8, with any zero-point."""
    model, _ = load_graph(graph)
    operators = sorted({f"{node.domain}:{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    try:
        layers = read_layers(model)
    except InputError as error:
        return {"int8_requested": None, "requested_error": str(error).splitlines()[0], "foreign_operators": operators}
    share = sum(layer.macs for layer in layers if requests_int8(layer)) / max(sum(layer.macs for layer in layers), 1)
    problems = sorted({layer.problem for layer in layers if layer.requested == "int8" and layer.problem})
    return {"int8_requested": share, "problems": problems, "foreign_operators": operators}


def requests_int8(layer: Layer) -> bool:
    """Whether both operands are INT8 without problems, except for a zero-point, which only TensorRT rejects."""
    return layer.requested == "int8" and all(not part or part.startswith(ZERO_POINT) for part in layer.problem.split("; "))


def check_rtx(graph: Path, precision: str) -> dict[str, Any]:
    """Try TensorRT-RTX in a subprocess, which may crash or hang."""
    command = [sys.executable, str(HERE / "rtx_check.py"), str(graph.resolve()), precision]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RTX_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"accepted": False, "reason": f"no answer within {RTX_SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"accepted": False, "reason": f"exited with status {done.returncode}: {message[:200]}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


if __name__ == "__main__":
    main()
