"""The table of certify_strangers.py in Markdown, and what it counts as a false alarm and as a missed one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calib.parallel import usable_cores
from engines.hardware import processor

LOSSLESS_DB, LOST_DB = 30.0, 20.0
TARGETS = ("none", "rtx")
VERDICTS = ("stable", "at risk", "unstable")
LONGEST = 90
HEADER = (
    "network", "no target", "on rtx", "worst site without a target", "proven", "emulated, no target, rtx (dB)",
    "torch half, as imported, as exported (dB)", "seconds",
)  # fmt: skip
Results = dict[str, Any]


def write_table(rows: list[Results], images: int, half_images: int) -> str:
    """A row per network, then the counts."""
    certified = [row for row in rows if "rtx" in row]
    compared = [row for row in certified if lossless(row) is not None]
    alarms = _names(compared, is_false_alarm)
    uncertain = _names(compared, lambda row, target: is_unlike_torch(row, target) and not is_false_alarm(row, target))
    failed = [f"{row['name']}: {row['error']}" for row in rows if "error" in row]
    harmless = sum(bool(lossless(row)) for row in compared)
    lines = [
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
        "",
        f"- Certified: {len(certified)} of {len(rows)} on {images} photos each."
        f" Without a target {_count(certified, 'none')}; rtx {_count(certified, 'rtx')}.",
        f"- Compared with torch in half precision on {half_images} photos: {len(compared)}; {harmless} lose nothing there.",
        f"- False alarms: {alarms}. Missed: {_names(compared, is_missed)}.",
        f"- Unstable, torch loses nothing, the emulation with statistics in FP16 does: {uncertain}.",
        f"- Not finished: {'; '.join(failed) or 'none'}.",
        f"- {usable_cores()} core of {processor()}, shared with other work; random weights with live norms.",
    ]
    return "\n".join(lines) + "\n"


def _names(rows: list[Results], told: Callable[[Results, str], bool]) -> str:
    return ", ".join(f"{row['name']} ({target})" for row in rows for target in TARGETS if told(row, target)) or "none"


def _count(rows: list[Results], target: str) -> str:
    return ", ".join(f"{sum(row[target]['verdict'] == verdict for row in rows)} {verdict}" for verdict in VERDICTS)


def lossless(row: Results) -> bool | None:
    """Whether torch in half precision loses nothing of the network that was certified; None where it was not run."""
    half = row.get("half", {})
    return None if "images" not in half else not half["not_finite"] and half["sqnr_db"] >= LOSSLESS_DB


def is_unlike_torch(row: Results, target: str) -> bool:
    """Unstable, though torch loses nothing."""
    return bool(lossless(row)) and row[target]["verdict"] == "unstable"


def is_false_alarm(row: Results, target: str) -> bool:
    """Unstable, though torch loses nothing.

    torch keeps statistics in FP32, as rtx does. Without a target they may be in FP16: then the emulation must lose nothing too.
    """
    run = row[target]
    emulated = not run["not_finite"] and run["sqnr_db"] is not None and run["sqnr_db"] >= LOSSLESS_DB
    return is_unlike_torch(row, target) and (target == "rtx" or emulated)


def is_missed(row: Results, target: str) -> bool:
    """Stable, though torch loses the outputs."""
    half = row["half"]
    return bool(half["not_finite"] or half["sqnr_db"] < LOST_DB) and row[target]["verdict"] == "stable"


def _cells(row: Results) -> list[str]:
    runs = [row.get(target) for target in TARGETS]
    none = runs[0]
    return [
        row["name"],
        *(_verdict(run) for run in runs),
        (none["worst"].replace("|", " ")[:LONGEST] or "-") if none else "-",
        f"{none['proven'][0] / none['proven'][2]:.0%}" if none else "-",
        ", ".join(_decibels(run) for run in runs),
        ", ".join(_decibels(row.get(name)) for name in ("half", "half_exported")),
        f"{row['seconds']:.0f}",
    ]


def _verdict(run: Results | None) -> str:
    """Of the network as it is; after an arrow, of the repaired one and its SQNR."""
    if not run or not run.get("repaired"):
        return run["verdict"] if run else "-"
    after = run["repaired"]
    ratio = "" if after["sqnr_db"] is None else f", {after['sqnr_db']:.1f} dB"
    return f"{run['verdict']} → {after['verdict']}{ratio}"


def _decibels(run: Results | None) -> str:
    if not run or run.get("refusal"):
        return "-"
    ratio = "no finite output" if run["sqnr_db"] is None else f"{run['sqnr_db']:.1f}"
    return f"{ratio} ({run['not_finite']} not finite)" if run["not_finite"] else ratio
