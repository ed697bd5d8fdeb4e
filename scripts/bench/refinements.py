"""Measure the gain and the cost of each refinement of the INT8 quantization on a network.

    scripts/bench/peers.sh ufovit_t                                  creates the graph and the arrays
    .venv/bin/python scripts/bench/refinements.py build/bench/peers/ufovit_t

Every row calibrates on calib.npy with one set of refinements, all layers in INT8, and compares the logits of the Q/DQ graph
with those of the float graph on eval.npy, in ONNX Runtime on the CPU. A row that begins with + adds one refinement to the row
above.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calib.collect import CollectConfig
from calib.graph import load_graph
from calib.metrics import sqnr_db, top1_agreement
from calib.qdq_placement import QuantScheme
from calib.qdq_writer import serialize
from calib.quantize import CalibrateConfig, calibrate_graph, quantize_graph  # from this checkout
from calib.refine.effort import EFFORTS, Effort
from edge.runtime.ort_runner import BATCH, OrtRunner, run_all, tapped_batch

SEARCH_BIAS_ROUNDING = Effort(search=True, bias=True, rounding=True)
ROWS: dict[str, Effort] = {
    "mse scales alone (fast)": EFFORTS["fast"],
    "+ search": Effort(search=True),
    "+ bias correction": Effort(search=True, bias=True),
    "+ second-order rounding": SEARCH_BIAS_ROUNDING,
    "+ factors, folded": replace(SEARCH_BIAS_ROUNDING, smooth=True),
    "+ shifts, folded (balanced)": EFFORTS["balanced"],
    "+ both also as nodes (best)": EFFORTS["best"],
    "best without rounding": replace(EFFORTS["best"], rounding=False),
}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calib-images", type=int, default=512)
    parser.add_argument("--eval-images", type=int, default=1000)
    options = parser.parse_args()
    graph = options.folder / "fp32.onnx"
    calib = np.load(options.folder / "calib.npy", mmap_mode="r")[: options.calib_images]
    judged = np.load(options.folder / "eval.npy", mmap_mode="r")[: options.eval_images]
    reference = _logits(OrtRunner(graph), judged)
    print(f"{graph}, {len(calib)} calibration images, {len(judged)} evaluation images\n")
    print("| refinements | SQNR of the logits | agreement | seconds |\n|---|---|---|---|")
    for name, effort in ROWS.items():
        started = time.monotonic()
        quantized = _quantize(graph, calib, effort)
        seconds = time.monotonic() - started
        logits = _logits(OrtRunner(graph, data=quantized), judged)
        row = f"{sqnr_db(reference, logits):.1f} dB | {top1_agreement(reference, logits):.2%} | {seconds:.0f}"
        print(f"| {name} | {row} |", flush=True)


def _quantize(graph: Path, calib: NDArray[Any], effort: Effort) -> bytes:  # float32, any shape
    size = tapped_batch(calib.shape[-1])
    with tempfile.TemporaryDirectory() as folder:
        refined = Path(folder) / "refined.onnx"
        table = calibrate_graph(
            graph,
            refined,
            lambda: (np.asarray(calib[i : i + size]) for i in range(0, len(calib), size)),
            images=len(calib),
            data_sha256="",
            config=CalibrateConfig(effort, QuantScheme(), CollectConfig(at_once=2), refine_threads=2),
        )
        return serialize(quantize_graph(load_graph(refined)[0], table, QuantScheme(), refined))


def _logits(runner: OrtRunner, images: NDArray[Any]) -> NDArray[Any]:  # float32, any shape
    (logits,) = run_all(runner, (np.asarray(images[i : i + BATCH]) for i in range(0, len(images), BATCH)))
    return logits


if __name__ == "__main__":
    main()
