"""The table of the benchmark in Markdown: a row per network, the figures of every effort beside ONNX Runtime's best."""

from __future__ import annotations

import math
import statistics
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from try_toolkit import STAGES

from calib.json_reader import read_json
from calib.parallel import usable_cores
from edge.tasks.tensors.ratio_interval import half_width
from engines.hardware import processor

EFFORTS = ("fast", "balanced", "best")
_HEAD = """# Networks of other libraries

Networks of timm and torchvision as their exporters write them, taken through the command line on photos.

Columns: how far `ufovit build` with its defaults came; the certificate's verdict on FP16; its verdict (exit code 0 passed, 1
failed the default budget of 20 dB, 3 the images do not decide it), its seconds, the SQNR of its quantized graph and the share
of the multiply-accumulates that this graph requests INT8 for. Then the SQNR with everything in INT8 at each effort (`ufovit
calibrate --placement all`), in bold where it is not below the last column: ONNX Runtime's quantizer at its best setting that
TensorRT accepts. A figure below it has a `~` where the images do not decide that it is: the 95 % interval of the difference
(jackknife over the images, in pairs) holds zero. SQNR is that of the worst output against the file as exported, in dB. The
weights are random, so low figures are common: they compare quantizers, and say little about trained networks.
"""
Results = dict[str, Any]


def write_table(folder: Path, shown: str) -> str:
    """The table of all results in a folder; `shown` is the command of the benchmark."""
    rows = [read_json(path) for path in sorted(folder.glob("*.json"))]
    tried = [row for row in rows if "build" in row]
    header = ["network", "exporter", "opset", "free axes", *STAGES, "FP16", "verdict", "exit", "seconds", "SQNR", "INT8"]
    header += [f"all INT8, {effort}" for effort in EFFORTS] + ["ONNX Runtime"]
    lines = [_HEAD, "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in tried]
    return "\n".join([*lines, "", *_footer(tried, shown)]) + "\n"


def _cells(row: Results) -> list[str]:
    network, build = row["network"], row["build"]
    setting, best = best_peer(row)
    return [
        network["name"],
        network["exporter"],
        str(network["opset"] or "default"),
        " ".join(network["free"]) or "-",
        *("yes" if stage in build["stages"] else "-" for stage in STAGES),
        build.get("fp16", "-"),
        build.get("verdict") or "-",
        "time limit" if build["exit_code"] is None else str(build["exit_code"]),
        f"{build['seconds']:.0f}",
        _beside_peer(row, "build"),
        f"{build['int8_share']:.1%}" if "int8_share" in build else "-",
        *(_beside_peer(row, f"calibrate-{effort}") for effort in EFFORTS),
        f"{best:.1f} {setting}" if best is not None else "-",
    ]


def _beside_peer(row: Results, step: str) -> str:
    if "sqnr_db" not in row.get(step, {}):
        return "-"
    gain = gain_over_peer(row, step)
    text = f"{row[step]['sqnr_db']:.1f}"
    if gain is None:
        return text
    difference, half = gain
    return f"**{text}**" if difference >= 0 else f"{text} ~" if half is not None and difference + half >= 0 else text


def _shown(difference: float, half: float | None) -> str:
    return f"{difference:+.2f}" + ("" if half is None else f" ± {half:.2f}")


def gain_over_peer(row: Results, step: str) -> tuple[float, float | None] | None:
    """SQNR of a step's graph less that of ONNX Runtime's best, in dB, and half of the 95 % interval; None without a peer.

    Without an interval where the worst output is another one, or a record is from before noise was kept by image.
    """
    setting, best = best_peer(row)
    if best is None or "sqnr_db" not in row.get(step, {}):
        return None
    ours, peer = row[step], row[f"onnxruntime-{setting}"]
    paired = "noise" in ours and ours["worst"] == peer.get("worst")
    half = half_width(np.array(ours["noise"]), np.array(peer["noise"])) if paired else None
    return ours["sqnr_db"] - best, None if half is None else 10 / math.log(10) * half


def best_peer(row: Results) -> tuple[str, float | None]:
    """ONNX Runtime's setting of the highest SQNR, and its SQNR."""
    known = {
        name.partition("-")[2]: value["sqnr_db"] for name, value in row.items() if "onnxruntime-" in name and "sqnr_db" in value
    }
    return max(known.items(), key=lambda item: item[1]) if known else ("", None)


def _footer(rows: list[Results], shown: str) -> list[str]:
    lines, errors = [], []
    titles = {"build": "Default build", **{f"calibrate-{effort}": f"Everything in INT8, {effort}" for effort in EFFORTS}}
    for step, title in titles.items():
        gains = {row["network"]["name"]: gain for row in rows if (gain := gain_over_peer(row, step)) is not None}
        below = {name: gain for name, gain in gains.items() if gain[0] < 0}
        decided = sum(half is not None and difference + half < 0 for difference, half in below.values())
        named = ", ".join(f"{name} ({_shown(*gain)} dB)" for name, gain in below.items())
        middle = f", {statistics.median(difference for difference, _ in gains.values()):+.1f} dB in the middle" if gains else ""
        lines.append(
            f"- {title}, against ONNX Runtime's best: {len(gains)} networks{middle}; below on {len(below)}, of which the "
            f"images decide {decided}{': ' if below else ''}{named}."
        )
    for row in rows:
        runs = [run for name, run in row.items() if name == "build" or name.startswith("calibrate-")]
        problems = {run.get("error") or run.get("judge_error") for run in runs} - {None}
        errors += [f"- {row['network']['name']}: {problem}" for problem in sorted(map(str, problems))]
    finished = sum(row["build"]["exit_code"] is not None and row["build"]["error"] is None for row in rows)
    images = rows[0]["network"]["images"] if rows else [0, 0]
    exported = rows[0]["network"]["versions"] if rows else {}
    packages = ("onnxruntime", "onnx", "numpy", "tensorrt_rtx")
    return [
        f"- Built to a verdict: {finished} of {len(rows)}.",
        *lines,
        f"- Command: `{shown}`, {datetime.now(timezone.utc):%Y-%m-%d}, {usable_cores()} cores of {processor()}.",
        f"- Images: {images[0]} crops of photos calibrate, {images[1]} of other photos judge. SQNR of the worst output.",
        f"- Exported with {', '.join(f'{name} {number}' for name, number in exported.items())}; random weights.",
        f"- Run with {', '.join(f'{name} {version(name)}' for name in packages)}.",
        "",
        *errors,
    ]
