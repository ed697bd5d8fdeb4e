#!/usr/bin/env python3
"""Measure latency on this CPU at batch 1: one build in every runtime, and growth with the pixels beside a softmax twin.

    scripts/install.sh build openvino
    python scripts/bench/cpu_latency.py runtimes build/ufovit_t-int8-cpu    one INT8 build of target cpu in every runtime
    python scripts/bench/cpu_latency.py sizes                               ufovit_t and its twin, 224 to 896 px, random weights

Every row runs in a process of its own with all cores; the processes take turns, in a new random order every round, so that what
else the machine does hits all of them alike: compare the ratios of one table, not the milliseconds of two. FP32 graphs are
those before calibration. `--more NAME=FILE` adds an INT8 file of another tool for OpenVINO to `runtimes`, .onnx or .xml. SQNR
compares the first output with FP32 in ONNX Runtime on `--images FILE.npy` (N, C, H, W), random numbers without.

The twin has softmax attention, softmax(Q Kᵀ / sqrt(D)) V, in the place of every UFO attention, and the same widths and layers.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calib.metrics import sqnr_db

FP32_ORT = "FP32, ONNX Runtime"
WARM_UP = 3
PAUSE_S = 0.005
Row = tuple[str, str, Path]
"""Name, runtime, file."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure latency on this CPU.")
    parser.add_argument("table", choices=["runtimes", "sizes", "worker"])
    parser.add_argument("arguments", nargs="*", type=Path)
    parser.add_argument("--more", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--image-sizes", default="224,448,896", help="for sizes, pixels")
    parser.add_argument("--model", default="ufovit_t", help="for sizes")
    parser.add_argument("--runtime", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table == "worker":
        serve(args.runtime, *args.arguments)
    elif args.table == "runtimes":
        runtimes(args.arguments[0], [more.partition("=") for more in args.more], args.images, args.rounds)
    else:
        sizes(args.model, [int(size) for size in args.image_sizes.split(",")], args.rounds)


# One process ---------------------------------------------------------------------------------------------------------------


def serve(runtime: str, file: Path, images: Path, outputs: Path) -> None:
    """Answer every line "time" with the milliseconds of one image, "outputs" by writing those of all images."""
    from edge.runtime.ort_runner import OrtRunner

    arrays = np.load(images)
    run = OrtRunner(file) if runtime == "ort" else openvino(file, bfloat16=runtime == "openvino-bf16")
    for _ in range(WARM_UP):
        run(arrays[:1])
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "outputs\n":
            np.save(outputs, np.concatenate([run(arrays[i : i + 1])[0] for i in range(len(arrays))]))
            print("written", flush=True)
        else:
            start = time.perf_counter()
            run(arrays[:1])
            print(1e3 * (time.perf_counter() - start), flush=True)


def openvino(file: Path, *, bfloat16: bool) -> Any:
    """A network compiled for one image; in bfloat16, OpenVINO's own default on a CPU that has it, or as a build runs."""
    from edge.runtime.openvino_runner import OpenVinoRunner
    from engines.openvino.api import load

    if not bfloat16 and file.suffix == ".onnx":
        return OpenVinoRunner(file)
    core = load().Core()
    model = core.read_model(file)
    model.reshape({port: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(images: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        request.infer([images], share_inputs=True)
        return (request.get_output_tensor(0).data.copy(),)

    return run


class Worker:
    """A process that runs one file."""

    def __init__(self, row: Row, images: Path, outputs: Path) -> None:
        self.outputs = outputs
        command = [sys.executable, __file__, "worker", *map(str, (row[2], images, outputs)), "--runtime", row[1]]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.name, self.times_ms = row[0], list[float]()
        self._read("ready")

    def _read(self, expected: str = "") -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line or (expected and line != expected):
            sys.exit(f"{self.name}: the process ended")
        return line

    def ask(self, line: str) -> str:
        """The answer to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(rows: list[Row], images: npt.NDArray[Any], rounds: int) -> dict[str, tuple[float, float]]:
    """Row -> median milliseconds, and SQNR of its outputs against those of the first row."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, images)
        workers = [Worker(row, file, Path(folder) / f"{number}.npy") for number, row in enumerate(rows)]
        for _ in range(rounds):
            for worker in random.sample(workers, len(workers)):
                time.sleep(PAUSE_S)
                worker.times_ms.append(float(worker.ask("time")))
        for worker in workers:
            worker.ask("outputs")
            worker.close()
        outputs = [np.load(worker.outputs) for worker in workers]
        medians = [float(np.median(worker.times_ms)) for worker in workers]
        return {w.name: (ms, sqnr_db(outputs[0], o)) for w, ms, o in zip(workers, medians, outputs, strict=True)}


# Tables --------------------------------------------------------------------------------------------------------------------


def runtimes(build: Path, more: list[tuple[str, str, str]], images: Path | None, rounds: int) -> None:
    from engines.build import build as build_engine
    from engines.build_folder.folder import BuildFolder
    from engines.build_spec import BuildSpec
    from engines.select_target import with_backend
    from engines.targets import TARGETS

    manifest = BuildFolder(build).manifest
    assert manifest.qdq_onnx is not None
    shape = manifest.input.shape[1:]
    arrays = np.load(images) if images else np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    float_graph = build / manifest.onnx.file
    with tempfile.TemporaryDirectory() as folder:
        rows: list[Row] = [
            (FP32_ORT, "ort", float_graph),
            ("FP32, OpenVINO", "openvino", float_graph),
            ("FP32 graph in BF16, OpenVINO", "openvino-bf16", float_graph),
        ]
        for backend, name in (("ort", "ONNX Runtime"), ("openvino", "OpenVINO")):
            spec = BuildSpec(build / manifest.qdq_onnx.file, with_backend(TARGETS["cpu"], backend), "int8", int8_floor=0.0)
            file = Path(folder) / f"{backend}.onnx"
            file.write_bytes(build_engine(spec).data)
            rows.append((f"INT8, {name}", backend, file))
        rows += [(name, "openvino", Path(file)) for name, _, file in more]
        results = measure(rows, arrays, rounds)
    print(f"{manifest.model}, {shape[-2]}x{shape[-1]} px, batch 1, {rounds} rounds, {versions()}.\n")
    print("| runtime | median ms | times FP32 in ONNX Runtime | SQNR (dB) |\n|---|---|---|---|")
    for name, (ms, sqnr) in results.items():
        shown = "-" if name == FP32_ORT else f"{sqnr:.1f}"
        print(f"| {name} | {ms:.1f} | {ms / results[FP32_ORT][0]:.2f} | {shown} |", flush=True)


def sizes(model: str, image_sizes: list[int], rounds: int) -> None:
    print(f"{model}, random weights, batch 1, median ms of {rounds} rounds, {versions()}.\n")
    columns = [
        f"{net}, {kind}" for net in ("UFO", "softmax") for kind in ("FP32, ONNX Runtime", "FP32, OpenVINO", "INT8, OpenVINO")
    ]
    print(f"| px | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    medians = []
    for size in image_sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows = [row for softmax in (False, True) for row in sized_rows(model, size, Path(folder), softmax=softmax)]
            images = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
            results = measure(rows, images, max(5, rounds * image_sizes[0] // size))
        medians.append([results[column][0] for column in columns])
        print(f"| {size} | " + " | ".join(f"{ms:.1f}" for ms in medians[-1]) + " |", flush=True)
    pixels = (image_sizes[-1] / image_sizes[0]) ** 2
    growth = [last / first for first, last in zip(medians[0], medians[-1], strict=True)]
    print(f"| {pixels:g} times the pixels | " + " | ".join(f"{times:.1f} x" for times in growth) + " |")


def sized_rows(model: str, size: int, folder: Path, *, softmax: bool) -> list[Row]:
    """The FP32 graph and the INT8 engine for OpenVINO of one network of random weights."""
    import onnx

    from calib import CollectConfig, collect_table, insert_qdq, plan_quantization
    from edge.model.checkpoint import random_network
    from edge.model.export import to_onnx
    from edge.model.export_foldings import fold
    from edge.model.sizes import config
    from engines.openvino import quantize_early

    name = "softmax" if softmax else "UFO"
    network = fold(random_network(config(model, image_size=size, classes=10), 0))
    if softmax:
        to_softmax(network)
    float_file, int8_file = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
    graph = to_onnx(network)
    onnx.save(graph, float_file)
    plan = plan_quantization(graph)
    image = np.random.default_rng(1).normal(size=(1, 3, size, size)).astype(np.float32)
    table = collect_table(float_file, [image] * 2, plan, data_sha256="", config=CollectConfig(method="minmax", min_images=1))
    onnx.save(quantize_early(insert_qdq(graph, table, plan)), int8_file)
    return [
        (f"{name}, FP32, ONNX Runtime", "ort", float_file),
        (f"{name}, FP32, OpenVINO", "openvino", float_file),
        (f"{name}, INT8, OpenVINO", "openvino", int8_file),
    ]


def to_softmax(network: Any) -> None:
    """Replace the attention of every block by softmax attention over the same projections."""
    from torch import Tensor

    from edge.model.attention import UfoAttention

    class SoftmaxAttention(UfoAttention):
        def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
            q, k, v = (self.split_heads(layer(x)) for layer, x in ((self.q, queries), (self.k, tokens), (self.v, tokens)))
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, M, N)
            projected: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            return projected

    for module in network.modules():
        if isinstance(module, UfoAttention):
            module.__class__ = SoftmaxAttention


def versions() -> str:
    from engines.hardware import processor
    from engines.hardware import versions as installed

    libraries = installed("onnxruntime", "openvino")
    return f"{processor()}, ONNX Runtime {libraries['onnxruntime']}, OpenVINO {libraries['openvino']}"


if __name__ == "__main__":
    main()
