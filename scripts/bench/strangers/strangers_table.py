"""The table of the benchmark in Markdown: a row per network, the figures of every effort beside ONNX Runtime's best."""

from __future__ import annotations

from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from try_toolkit import STAGES

from calib.json_reader import read_json
from calib.parallel import usable_cores
from engines.hardware import processor

EFFORTS = ("fast", "balanced", "best")
_HEAD = """# Networks of other libraries

Networks of timm and torchvision as their exporters write them, taken through the command line on photos. Columns: the stages
that the last effort reached, where certified is for networks with L2 norms to certify; SQNR of the quantized graph against
the file as exported, in dB, for each effort and for ONNX Runtime's quantizer at its best setting; the share of the multiply-
accumulates that the graph requests INT8 for; seconds and the exit code of the command: 0 passed, 1 a verdict failed (the
default budget of 20 dB), 3 the images do not decide it. The weights are random, so low figures are common: they compare
quantizers, and say little about trained networks.
"""
Results = dict[str, Any]


def write_table(folder: Path, command: str, shown: str) -> str:
    """The table of all results in a folder; `command` is the toolkit's, `shown` that of the benchmark."""
    rows = [read_json(path) for path in sorted(folder.glob("*.json"))]
    tried = [row for row in rows if any(f"{command}-{effort}" in row for effort in EFFORTS)]
    stages = list(STAGES) if command == "build" else []
    header = ["network", "exporter", "opset", "free axes", *stages, *(f"{effort} (dB)" for effort in EFFORTS)]
    header += ["ONNX Runtime's best (dB)", "INT8 share", "seconds", "exit"]
    lines = [_HEAD, "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cells(row, command, stages)) + " |" for row in tried]
    return "\n".join([*lines, "", *_footer(tried, command, shown)]) + "\n"


def _cells(row: Results, command: str, stages: list[str]) -> list[str]:
    network = row["network"]
    runs = {effort: row.get(f"{command}-{effort}", {}) for effort in EFFORTS}
    last = next(run for run in reversed(runs.values()) if run)
    setting, best = best_peer(row)
    return [
        network["name"],
        network["exporter"],
        str(network["opset"] or "default"),
        " ".join(network["free"]) or "-",
        *("yes" if stage in last["stages"] else "-" for stage in stages),
        *(f"{run['sqnr_db']:.1f}" if "sqnr_db" in run else "-" for run in runs.values()),
        f"{best:.1f} {setting}" if best is not None else "-",
        f"{last['int8_share']:.1%}" if "int8_share" in last else "-",
        " / ".join(f"{run['seconds']:.0f}" for run in runs.values() if run),
        "time limit" if last["exit_code"] is None else str(last["exit_code"]),
    ]


def best_peer(row: Results) -> tuple[str, float | None]:
    """ONNX Runtime's setting of the highest SQNR, and its SQNR."""
    known = {
        name.partition("-")[2]: value["sqnr_db"] for name, value in row.items() if "onnxruntime-" in name and "sqnr_db" in value
    }
    return max(known.items(), key=lambda item: item[1]) if known else ("", None)


def _footer(rows: list[Results], command: str, shown: str) -> list[str]:
    below, errors = [], []
    finished = 0
    for row in rows:
        runs = {effort: row[f"{command}-{effort}"] for effort in EFFORTS if f"{command}-{effort}" in row}
        setting, best = best_peer(row)
        figures = [run["sqnr_db"] for run in runs.values() if "sqnr_db" in run]
        finished += any(run["exit_code"] is not None and run["error"] is None for run in runs.values())
        if best is not None and figures and max(figures) < best:
            below.append(f"{row['network']['name']} ({max(figures):.1f} dB, {setting} {best:.1f} dB)")
        problems = {run.get("error") or run.get("judge_error") for run in runs.values()} - {None}
        errors += [f"- {row['network']['name']}: {problem}" for problem in sorted(map(str, problems))]
    images = rows[0]["network"]["images"] if rows else [0, 0]
    exported = rows[0]["network"]["versions"] if rows else {}
    packages = ("onnxruntime", "onnx", "numpy", "tensorrt_rtx")
    return [
        f"- Finished: {finished} of {len(rows)}. Below ONNX Runtime's best at every effort: {', '.join(below) or 'none'}.",
        f"- Command: `{shown}`, {datetime.now(timezone.utc):%Y-%m-%d}, {usable_cores()} cores of {processor()}.",
        f"- Images: {images[0]} crops of photos calibrate, {images[1]} of other photos judge. SQNR of the worst output.",
        f"- Exported with {', '.join(f'{name} {number}' for name, number in exported.items())}; random weights.",
        f"- Run with {', '.join(f'{name} {version(name)}' for name in packages)}.",
        "",
        *errors,
    ]
