#!/usr/bin/env python3
"""Measure calibration: memory, speed compared with onnxruntime.quantization, number of images.

    scripts/bench/peers.sh ufovit_t                 creates the graph and the images
    python scripts/bench/calibration.py memory      peak memory over 128 and over 4,096 images
    python scripts/bench/calibration.py speed       method entropy, compared with ONNX Runtime's entropy calibrator
    python scripts/bench/calibration.py images      range shift and SQNR of the logits by number of images

Memory is the peak resident set of the process, sampled every 20 ms. Seconds are from the call to the finished ranges, without
imports. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from calib.calibration_table import CalibrationTable, save_table
from calib.collect import CollectConfig, collect_table
from calib.errors import MissingError, UfovitError
from calib.graph import load_graph
from calib.metrics import sqnr_db
from calib.ort_session import TappedGraph
from calib.qdq_placement import QuantPlan, plan_quantization
from calib.qdq_writer import insert_qdq

FOLDER = ROOT / "build/bench/peers/ufovit_t"
MAKE = "scripts/bench/peers.sh ufovit_t"
BATCH = 16
POLL_S = 0.02
Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """One calibration in a subprocess: `tool` is "ours" or "onnxruntime"."""

    tool: str
    graph: str
    images: str
    count: int
    method: str = "entropy"
    batch: int = BATCH


@dataclass(frozen=True)
class Measurement:
    """Seconds of the calibration, peak memory of its process, and number of tensors with a range."""

    seconds: float
    peak_mib: float
    tensors: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure calibration.")
    parser.add_argument("table", choices=[*TABLES, "task"])
    parser.add_argument("--graph", type=Path, default=FOLDER / "fp32.onnx", help="float graph with one input")
    parser.add_argument("--images", type=Path, default=FOLDER / "calib.npy", help="preprocessed images, float32 (N, ...)")
    parser.add_argument("--eval", type=Path, default=FOLDER / "eval.npy", help="for memory and images: evaluation images")
    parser.add_argument("--eval-count", type=int, default=1000, help="for images: number of evaluation images")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=5, help="for speed: number of alternating runs")
    parser.add_argument("--draws", type=int, default=5, help="for images: number of subsets of each size")
    parser.add_argument("--method", default=None, help="for images: mse; for memory and speed: entropy")
    parser.add_argument("--task", default="", help="internal")
    args = parser.parse_args()
    try:
        if args.table == "task":
            print(json.dumps(run_task(Task(**json.loads(args.task)))))
            return
        for path in (args.graph, args.images, args.eval):
            if not path.is_file():
                raise MissingError("the graph or the images of the benchmark are missing", where=path, next_command=MAKE)
        TABLES[args.table](args)
    except UfovitError as error:
        sys.exit(str(error))


# --- tables


def memory(args: argparse.Namespace) -> None:
    print(f"{args.graph.name}, batches of {args.batch}, {versions()}.\n")
    print("| images | peak MiB | seconds |\n|---|---|---|")
    peaks = []
    for count in (128, 4096):
        task = Task("ours", str(args.graph), str(args.eval), count, args.method or "entropy", batch=args.batch)
        measurement = measure(task)
        peaks.append(measurement.peak_mib)
        print(f"| {count:,} | {measurement.peak_mib:.0f} | {measurement.seconds:.1f} |", flush=True)
    print(f"\n4,096 images take {peaks[1] / peaks[0]:.2f} times the memory of 128.")


def speed(args: argparse.Namespace) -> None:
    count = len(np.load(args.images, mmap_mode="r"))
    base = Task("ours", str(args.graph), str(args.images), count, args.method or "entropy", batch=args.batch)
    runs = {
        "ufovit-edge": base,
        "onnxruntime.quantization": Task(**{**asdict(base), "tool": "onnxruntime"}),
    }
    measurements: dict[str, list[Measurement]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, task in runs.items():
            measurements[name].append(measure(task))
            print(f"{name}: {measurements[name][-1]}", file=sys.stderr)
    baseline = measurements["onnxruntime.quantization"]
    print(f"{args.graph.name}, {count} images, batches of {args.batch}, {base.method}, {args.rounds} rounds, {versions()}.\n")
    print("| calibrator | tensors | seconds, median (min to max) | speedup over onnxruntime | peak MiB |")
    print("|---|---|---|---|---|")
    for name, own in measurements.items():
        seconds = [run.seconds for run in own]
        ratio = statistics.median(b.seconds / a.seconds for a, b in zip(own, baseline, strict=True))
        peak = max(run.peak_mib for run in own)
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        print(f"| {name} | {own[0].tensors} | {spread} | {ratio:.2f} | {peak:.0f} |")


def images(args: argparse.Namespace) -> None:
    calib, plan = np.load(args.images), plan_of(args.graph)
    judged = np.load(args.eval, mmap_mode="r")
    judged = np.ascontiguousarray(judged[:: max(1, len(judged) // args.eval_count)][: args.eval_count])
    model, _ = load_graph(args.graph)
    (logits,) = (output.name for output in model.graph.output)
    reference = run(TappedGraph(model, (logits,), threads=0), logits, judged, args.batch)
    sizes = [size for size in (32, 64, 128, 256) if size < len(calib)] + [len(calib)]
    print(f"{args.graph.name}, {args.method or 'mse'}, SQNR of Q/DQ logits on {len(judged)} images, {versions()}.\n")
    print("| images | subsets | median range shift | largest range shift | SQNR of the logits, dB |\n|---|---|---|---|---|")
    for size in sizes:
        rows = []
        for draw in range(args.draws if size < len(calib) else 1):
            chosen = np.random.default_rng(draw).permutation(len(calib))[:size]
            parts = [calib[chosen[start : start + args.batch]] for start in range(0, size, args.batch)]
            table = calibrate(args.graph, parts, plan, CollectConfig(args.method or "mse", at_once=2))
            quantized = TappedGraph(insert_qdq(model, table, plan), (logits,), threads=0)
            assert table.range_shift is not None
            sqnr = sqnr_db(reference, run(quantized, logits, judged, args.batch))
            rows.append((table.range_shift.median, table.range_shift.largest, sqnr))
            print(f"{size} images, subset {draw}: {rows[-1]}", file=sys.stderr, flush=True)
        medians, largest, sqnrs = zip(*rows, strict=True)
        cells = (span(medians, "{:.1%}"), span(largest, "{:.0%}"), span(sqnrs, "{:.2f}"))
        print(f"| {size} | {len(rows)} | " + " | ".join(cells) + " |", flush=True)


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "memory": memory,
    "speed": speed,
    "images": images,
}


# --- one calibration in a subprocess


def measure(task: Task) -> Measurement:
    """Run a task in a subprocess and sample its resident set."""
    command = [sys.executable, __file__, "task", "--task", json.dumps(asdict(task))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_kib(process.pid))
            time.sleep(POLL_S)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise MissingError("a calibration of the benchmark failed", found=f"{task}: exit status {process.returncode}")
    return Measurement(peak_mib=peak / 1024, **json.loads(output.splitlines()[-1]))


def resident_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)


def run_task(task: Task) -> dict[str, Any]:
    plan = plan_of(Path(task.graph))
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        tensors = (ours if task.tool == "ours" else onnxruntime_calibration)(task, plan, Path(folder))
        return {"seconds": time.monotonic() - started, "tensors": tensors}


def ours(task: Task, plan: QuantPlan, folder: Path) -> int:
    config = CollectConfig(task.method, at_once=2)  # like `ufovit calibrate`
    table = calibrate(Path(task.graph), stored(task), plan, config)
    save_table(folder / "calibration.json", table)
    return len(table.tensors)


def onnxruntime_calibration(task: Task, plan: QuantPlan, folder: Path) -> int:
    """Run ONNX Runtime's entropy calibrator through its public API on the tensors of our plan."""
    from onnxruntime.quantization import calibrate as library

    class Reader(library.CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self.batches = stored(task)

        def get_next(self) -> dict[str, Images] | None:
            batch = next(self.batches, None)
            return None if batch is None else {source: batch}

    def select(_: Any, model: Any) -> tuple[set[str], dict[str, Any]]:
        infos = [*model.graph.value_info, *model.graph.output, *model.graph.input]
        return set(plan.activations), {info.name: info for info in infos}

    (source,) = (value.name for value in load_graph(Path(task.graph))[0].graph.input)
    with mock.patch.object(library.EntropyCalibrater, "select_tensors_to_calibrate", select):
        calibrator = library.create_calibrator(
            task.graph,
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=library.CalibrationMethod.Entropy,
        )
    calibrator.collect_data(Reader())
    return len(calibrator.compute_data().data)


# --- shared


def plan_of(graph: Path) -> QuantPlan:
    return plan_quantization(load_graph(graph)[0])


def stored(task: Task) -> Iterator[Images]:
    """The first `count` images of a file, batch by batch; read, because mapped pages would count as memory."""
    mapped = np.load(task.images, mmap_mode="r")
    shape, offset, available = mapped.shape[1:], mapped.offset, len(mapped)
    del mapped
    if available < task.count:
        raise MissingError("too few images for this table", where=task.images, found=available, allowed=task.count)
    size = int(np.prod(shape))
    with Path(task.images).open("rb") as stream:
        stream.seek(offset)
        for start in range(0, task.count, task.batch):
            rows = min(task.batch, task.count - start)
            yield np.frombuffer(stream.read(4 * rows * size), np.float32).reshape(rows, *shape)


def calibrate(graph: Path, batches: Any, plan: QuantPlan, config: CollectConfig) -> CalibrationTable:
    return collect_table(graph, batches, plan, data_sha256="", config=config)


def run(graph: TappedGraph, output: str, values: Images, batch: int) -> npt.NDArray[Any]:
    return np.concatenate([graph(values[start : start + batch])[output] for start in range(0, len(values), batch)])


def span(values: tuple[float, ...], shown: str) -> str:
    """The median, and the range of several values."""
    middle = shown.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({shown.format(min(values))} to {shown.format(max(values))})"


def versions() -> str:
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__}, numpy {np.__version__}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
