"""Quantize a network with the settings of ONNX Runtime's quantizer that TensorRT accepts, on the images of the benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from run_command import run_limited
from trial_inputs import Trial

from calib.json_reader import read_json

PEERS = Path(__file__).resolve().parents[1] / "peers"
SETTINGS = tuple(f"{setting}-{calibrator}" for setting in ("trt_inputs", "trt") for calibrator in ("percentile", "minmax"))
"""Of peers/onnxruntime_ptq.py: signed, symmetric, weights per channel. Without entropy, whose ranges are those of minmax: its
histogram has by default no more bins than it is reduced to (128)."""


def try_onnxruntime(trial: Trial, setting: str, seconds: float) -> dict[str, Any]:
    """Seconds, error and figures of one setting; the graph is removed afterwards."""
    out = trial.folder / "out" / f"onnxruntime-{setting}.onnx"
    out.parent.mkdir(exist_ok=True)
    command = [sys.executable, str(PEERS / "onnxruntime_ptq.py"), str(trial.folder), setting, str(out)]
    finished = run_limited(command, seconds, cwd=trial.folder)
    row = read_json(out.with_suffix(".json")) if out.with_suffix(".json").is_file() else {}
    error = row.get("error") or (None if out.is_file() else f"ended with {finished.exit_code} after {finished.seconds:.0f} s")
    result: dict[str, Any] = {"error": error, "seconds": finished.seconds, "peak_bytes": row.get("peak_rss_bytes")}
    if error is None:
        try:
            result.update(trial.judge(out))
        except Exception as caught:  # noqa: BLE001  # whatever fails belongs into the row of this setting
            result["error"] = f"{type(caught).__name__}: {' '.join(str(caught).split())[:300]}"
    out.unlink(missing_ok=True)
    out.with_suffix(".json").unlink(missing_ok=True)
    return result
