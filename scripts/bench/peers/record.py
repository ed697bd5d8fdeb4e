"""Run a tool in its own process and record a row: wall time, peak memory, versions, and the error if it fails.

The quantization runs in a forked child, so that a tool that is killed, or crashes, has a row too. Standard library only:
every tool's environment imports this file.

    python record.py TOOL SETTING OUT.onnx ERROR        write the row of a tool that could not be started
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
MEMORY_WORDS = ("memoryerror", "bad_alloc", "bad allocation", "failed to allocate", "unable to allocate", "cannot allocate")
FAILED: dict[str, Any] = {"seconds": None, "peak_rss_bytes": None, "out_of_memory": False, "note": ""}


@dataclass(frozen=True)
class Attempt:
    """One way to quantize.

    Attributes:
        load: imports the tool, untimed, and returns the function that quantizes, which is timed and returns a remark or "".
        note: difference from the default attempt, "" for that one.
    """

    load: Callable[[], Callable[[], str]]
    note: str = ""


@dataclass(frozen=True)
class Job:
    """The arguments of a script: the folder of the network, a setting, and the output graph."""

    peer: str
    folder: Path
    config: str
    out: Path
    packages: tuple[str, ...]
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def row(self) -> Path:
        """The file of the row, next to the graph."""
        return self.out.with_suffix(".json")


def parse_job(peer: str, configs: tuple[str, ...], packages: tuple[str, ...], extra: dict[str, str] | None = None) -> Job:
    """Parse the command line FOLDER CONFIG OUT; `--list` prints the settings instead."""
    if "--list" in sys.argv:
        print("\n".join(configs))
        raise SystemExit(0)
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("config", choices=configs)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    digests = json.loads((args.folder / "info.json").read_text())["sha256"]
    inputs = {name: digests[name] for name in ("fp32.onnx", "calib.npy")}
    for file in (Path(sys.argv[0]).resolve(), HERE / f"requirements-{peer}.txt"):
        if file.is_file():
            inputs[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return Job(peer, args.folder, args.config, args.out, packages, {**inputs, **(extra or {})})


def run(job: Job, attempts: tuple[Attempt, ...]) -> None:
    """Make the attempts in turn, each only if the previous one ran out of memory; write the row next to the graph."""
    if is_fresh(job):
        print(f"{job.peer} {job.config}: unchanged")
        return
    job.out.parent.mkdir(parents=True, exist_ok=True)
    job.row.unlink(missing_ok=True)
    failures: list[str] = []
    for attempt in attempts:
        result = in_child(job, attempt)
        if not result["out_of_memory"]:
            break
        failures.append(f"out of memory {f'with {attempt.note}' if attempt.note else 'otherwise'}")
    result["note"] = "; ".join(part for part in (attempt.note, *failures, result.pop("remark")) if part)
    if result["error"]:
        job.out.unlink(missing_ok=True)
    else:
        result["onnx_bytes"] = job.out.stat().st_size
    write_row(job, result)


def is_fresh(job: Job) -> bool:
    """Whether the row has the same graph, images, script and versions."""
    if not job.row.is_file():
        return False
    row = json.loads(job.row.read_text())
    return row["inputs"] == job.inputs and (bool(row["error"]) or job.out.is_file())


def write_row(job: Job, result: dict[str, Any]) -> None:
    row = {"peer": job.peer, "config": job.config, "inputs": job.inputs, "versions": versions(job.packages), **result}
    job.row.write_text(json.dumps(row, indent=2, sort_keys=True) + "\n")
    shown = result["error"] or f"{result['seconds']:.1f} s, {result['peak_rss_bytes'] / 1e9:.1f} GB"
    print(f"{job.peer} {job.config}: {shown}", flush=True)


def in_child(job: Job, attempt: Attempt) -> dict[str, Any]:
    """Run an attempt in a forked process and return its result."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_quantize, args=(attempt, sender))
    child.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        child.join()
        error = f"the process died with status {child.exitcode}"
        result = {"seconds": None, "peak_rss_bytes": None, "error": error, "remark": "", "out_of_memory": child.exitcode == -9}
    child.join()
    if not result["error"] and not job.out.is_file():
        result["error"] = "no graph was written"
    return result


def _quantize(attempt: Attempt, sender: Any) -> None:
    seconds, error, remark, memory = None, None, "", False
    try:
        quantize = attempt.load()
        start = time.monotonic()
        remark = quantize()
        seconds = time.monotonic() - start
    except BaseException as caught:  # noqa: BLE001  # any exception of a tool goes into its row
        traceback.print_exc()
        message = " ".join(str(caught).replace(f"{ROOT}/", "").split())
        error = f"{type(caught).__name__}: {message[:400]}"
        memory = isinstance(caught, MemoryError) or any(word in error.lower() for word in MEMORY_WORDS)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
    sender.send({"seconds": seconds, "peak_rss_bytes": peak, "error": error, "remark": remark, "out_of_memory": memory})


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of packages, and Python's."""
    installed = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = ""
    return installed


def record_failure() -> None:
    """Write the row of a failure given on the command line; it never counts as fresh."""
    peer, config, out, error = sys.argv[1:]
    job = Job(peer, Path(), config, Path(out), ())
    job.out.unlink(missing_ok=True)
    write_row(job, {**FAILED, "error": error})


if __name__ == "__main__":
    record_failure()
