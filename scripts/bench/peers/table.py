#!/usr/bin/env python3
"""Write the table of the benchmark, in Markdown, and its data in JSON.

    python scripts/bench/peers/table.py FOLDER [--only GLOB] [--eval-images N] [--command TEXT] [--results DIR]

One row per graph, FP32 first, then by SQNR; a tool that failed has a row without numbers, with its error below. Prints the
table and writes DIR/peers-NETWORK.md and DIR/peers-NETWORK.json.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from evaluate import result_path

from calib.files import write_bytes, write_json
from calib.json_reader import read_json
from calib.parallel import usable_cores
from engines.hardware import processor

ORDER = ("ufovit-edge", "onnxruntime", "modelopt", "nncf")
COLUMNS = (
    "tool", "setting", "top-1", "drop (points)", "agreement", "SQNR (dB)",
    "INT8 share of MACs", "TensorRT-RTX", "seconds", "peak memory (GB)",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A graph: the record of its tool and its evaluation; None for a step that has not run."""

    tool: str
    setting: str
    made: dict[str, Any] | None
    result: dict[str, Any] | None

    @property
    def error(self) -> str:
        """Why the row has no numbers, "" if it has."""
        failed = self.made["error"] if self.made else None
        return str(failed or (self.result or {}).get("error") or ("" if self.result else "not evaluated"))

    @property
    def note(self) -> str:
        """The remark of the tool's script."""
        return str(self.made["note"]) if self.made else ""

    @property
    def order(self) -> tuple[bool, float, int, str]:
        """Sort key: rows with an SQNR first, in descending order."""
        has_sqnr = self.result is not None and self.result["error"] is None
        sqnr = self.result["sqnr_db"] if has_sqnr and self.result else 0.0
        place = ORDER.index(self.tool) if self.tool in ORDER else len(ORDER)
        return not has_sqnr, -sqnr, place, self.setting


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the table of the benchmark.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--eval-images", type=int, default=None)
    parser.add_argument("--command", default="scripts/bench/peers.sh")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    args = parser.parse_args()
    info = read_json(args.folder / "info.json")
    count = min(args.eval_images or info["eval_images"], info["eval_images"])
    rows = read_rows(args.folder, args.only, count)
    facts = describe(info, count, args.command, rows)
    text = f"# INT8 tools on {info['network']}\n\n" + table(rows) + "\n" + footer(rows, facts)
    print(text)
    target = args.results / f"peers-{info['network']}"
    write_bytes(target.with_suffix(".md"), text.encode())
    raw = [{"tool": r.tool, "setting": r.setting, "made": r.made, "result": r.result} for r in rows]
    write_json(target.with_suffix(".json"), {**facts, "info": info, "rows": raw})


def read_rows(folder: Path, only: str, count: int) -> list[Row]:
    """FP32, then every row of the benchmark, best SQNR first and rows without one last."""
    rows = []
    for path in sorted((folder / "out").glob("*.json")):
        if fnmatch(path.stem, only):
            made, graph = read_json(path), path.with_suffix(".onnx")
            rows.append(Row(made["peer"], made["config"], made, read_result(folder, graph, count)))
    reference = Row("none", "FP32", None, read_result(folder, folder / "fp32.onnx", count))
    return [reference, *sorted(rows, key=lambda row: row.order)]


def read_result(folder: Path, graph: Path, count: int) -> dict[str, Any] | None:
    path = result_path(folder, graph, count) if graph.is_file() else None
    return read_json(path) if path is not None and path.is_file() else None


def table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows)]) + "\n"


def cells(row: Row) -> list[str]:
    result, made = row.result, row.made
    start = [row.tool, row.setting]
    cost = (
        [f"{made['seconds']:.0f}", f"{made['peak_rss_bytes'] / 1e9:.1f}"] if made and made["seconds"] is not None else ["-"] * 2
    )
    if result is None:
        return [*start, "failed", *["-"] * 5, *cost]
    graph = [percent(result["int8_requested"]), rtx(result["rtx"], is_int8=made is not None)]
    if result["error"]:
        return [*start, "failed", *["-"] * 3, *graph, *cost]
    sqnr = "-" if made is None else f"{result['sqnr_db']:.1f}"
    return [
        *start,
        f"{result['top1']:.2%}",
        f"{result['drop_points']:+.2f}",
        f"{result['agreement']:.2%}",
        sqnr,
        *graph,
        *cost,
    ]


def percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def rtx(check: dict[str, Any], *, is_int8: bool) -> str:
    if not check["accepted"]:
        return "rejected"
    return f"accepted, {check['int8_mac_fraction']:.1%} INT8" if is_int8 else "accepted"


def describe(info: dict[str, Any], count: int, command: str, rows: list[Row]) -> dict[str, Any]:
    """Conditions of the numbers: command, machine, versions, images."""
    versions = {row.tool: row.made["versions"] for row in rows if row.made}
    return {
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{usable_cores()} cores of {processor()}",
        "versions": versions,
        "evaluated_with": {name: version(name) for name in ("onnxruntime", "onnx", "numpy", "tensorrt_rtx")},
        "eval_images": count,
        "calib_images": info["calib_images"],
    }


def footer(rows: list[Row], facts: dict[str, Any]) -> str:
    info_lines = [
        f"Command: `{facts['command']}`",
        f"Images: {facts['calib_images']} for calibration, {facts['eval_images']:,} for evaluation.",
        f"Machine: {facts['machine']}; {facts['date']}.",
        f"Evaluated with {listed(facts['evaluated_with'])}.",
        *(f"{tool}: {listed(versions)}." for tool, versions in sorted(facts["versions"].items())),
        "INT8 share of MACs: layers whose two operands come directly from DequantizeLinear. TensorRT-RTX: share in its engine,"
        " which may be larger, because it moves DequantizeLinear across reshapes.",
    ]
    same_graph = [(row.result["graph_sha256"], row) for row in rows if row.result and row.made]
    groups = (
        *((f"identical graphs: {names}", None) for names in grouped(same_graph).values() if ", " in names),
        *grouped([(f"failed: {row.error}", row) for row in rows if row.error]).items(),
        *grouped([(row.note, row) for row in rows if row.note]).items(),
        *grouped([(f"rejected by TensorRT-RTX: {refusal(row)}", row) for row in rows if refusal(row)]).items(),
    )
    remarks = [text if names is None else f"{names}: {text}" for text, names in groups]
    return "\n".join(f"- {line}" for line in (*info_lines, *remarks)) + "\n"


def grouped(remarks: list[tuple[str, Row]]) -> dict[str, str]:
    """Remark -> names of its rows."""
    rows: dict[str, list[str]] = {}
    for text, row in remarks:
        rows.setdefault(text, []).append(f"{row.tool} {row.setting}")
    return {text: ", ".join(names) for text, names in rows.items()}


def refusal(row: Row) -> str:
    """Why TensorRT-RTX rejects the row's graph, "" if it accepts it."""
    return "" if row.result is None else str(row.result["rtx"].get("reason", ""))


def listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items() if number)


if __name__ == "__main__":
    main()
