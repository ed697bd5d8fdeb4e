#!/usr/bin/env python3
"""Take networks of other libraries, as exported, through the toolkit's command line; compare with ONNX Runtime's quantizer.

    python scripts/bench/strangers.py FOLDER [--networks GLOB] [--efforts fast,balanced,best]

Each network is built with the defaults, to a verdict, and calibrated at every effort with everything in INT8, as ONNX Runtime's
quantizer has it.

FOLDER: NAME.onnx and NAME.json of export_network.py, photos/calib and photos/eval: scripts/bench/strangers.sh makes it. Writes
FOLDER/results/NAME.json after every step, so that an interrupted run continues where it stopped: a step runs again only after a
change of the network, the images or, for the toolkit's steps, its code. Then writes the table, in Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts/bench/strangers")]

from strangers_table import write_table
from trial_inputs import Trial
from try_onnxruntime import SETTINGS, try_onnxruntime
from try_toolkit import build_command, calibrate_command, try_toolkit

from calib.files import sha256_bytes, write_bytes, write_json
from calib.json_reader import read_json
from edge.pipeline.workspace import toolkit_sha256

Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Take networks of other libraries through the toolkit.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", default="*", help="globs of names, GLOB,...")
    parser.add_argument("--efforts", default="fast,balanced,best", help="of everything in INT8")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="of ONNX Runtime's quantizer")
    parser.add_argument("--images", type=int, default=64, help="for calibration, and as many to judge")
    parser.add_argument("--seconds", type=float, default=1800, help="limit of one command")
    parser.add_argument("--table", type=Path, default=None, help="Markdown file; default: FOLDER/strangers.md")
    args = parser.parse_args()
    folder = args.folder.resolve()
    for graph in sorted(folder.glob("*.onnx")):
        if any(fnmatch(graph.stem, glob) for glob in args.networks.split(",")) and graph.with_suffix(".json").is_file():
            trial = Trial(graph, folder / "photos", (args.images, args.images), folder / "work" / graph.stem)
            try_network(trial, folder / "results" / f"{graph.stem}.json", args)
    shown = " ".join(("scripts/bench/strangers.py", *sys.argv[1:])).replace(str(args.folder), "FOLDER")
    text = write_table(folder / "results", shown)
    write_bytes(args.table or folder / "strangers.md", text.encode())
    print(text)


def try_network(trial: Trial, path: Path, args: argparse.Namespace) -> None:
    """Run what `path` lacks, and write it after every step."""
    results: Results = read_json(path) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    toolkit = sha256_bytes((trial.sha256 + toolkit_sha256()).encode())
    steps: list[tuple[str, str, Callable[[], Results]]] = [
        ("build", toolkit, partial(try_toolkit, trial, build_command(trial), args.seconds))
    ]
    for effort in filter(None, args.efforts.split(",")):
        command = calibrate_command(trial, effort)
        steps.append((f"calibrate-{effort}", toolkit, partial(try_toolkit, trial, command, args.seconds)))
    steps += [
        (f"onnxruntime-{setting}", trial.sha256, partial(try_onnxruntime, trial, setting, args.seconds))
        for setting in filter(None, args.settings.split(","))
    ]
    missing = [step for step in steps if results.get(step[0], {}).get("made_from") != step[1]]
    if not missing:
        return
    try:
        trial.prepare()
        for name, made_from, run in missing:
            results[name] = {**run(), "made_from": made_from}
            results["network"] = {**trial.facts, "name": trial.name, "images": list(trial.counts)}
            write_json(path, results)
            print(f"{trial.name} {name}: {summary(results[name])}", flush=True)
    finally:
        shutil.rmtree(trial.folder, ignore_errors=True)


def summary(result: Results) -> str:
    sqnr = f"{result['sqnr_db']:.1f} dB, " if "sqnr_db" in result else ""
    sqnr += f"INT8 {result['int8_share']:.1%}, " if "int8_share" in result else ""
    problem = result.get("error") or result.get("judge_error") or ""
    return (
        f"{sqnr}{result['seconds']:.0f} s" + (f", exit {result['exit_code']}" if "exit_code" in result else "") + f" {problem}"
    )


if __name__ == "__main__":
    main()
