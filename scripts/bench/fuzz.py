#!/usr/bin/env python3
"""Run every command on broken arguments and files: each must refuse with a sentence, quickly, and leave everything as it was.

    scripts/fuzz.sh [--cases N] [--seed N] [--command NAME] [--category NAME] [--case I]

A case breaks one thing in a copy of a good project (`fuzz_cases.py`, `fuzz_files.py`) and runs one command on it, in a process
forked from one with all libraries loaded. It fails when the command
    ends with a code that is not documented, with 70, by a signal, or after more than a minute
    prints a traceback or a control character; refuses without an `error:` and a `where:`
    changes a file although it refuses; runs code of a file; takes more than 2 GB
The last lines are a table: command, category, cases, failures. Exit code: 0 no failure, 1 some. Equal seeds give equal cases.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

if __name__ == "__main__":  # before numpy is loaded: a forked process lacks the threads that its parent started
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from fuzz_cases import GOOD, MAY_WRITE, applicable, prepare
from fuzz_project import know_the_tiny_size, make_project
from fuzz_values import MARKER

from edge.cli import run
from edge.cli.console import write_any_text

SECONDS, BYTES, FILE_BYTES = 60, 2 << 30, 1 << 30
PATIENCE_S = 600
"""A process that waits for a busy core for so long is ended too."""
DOCUMENTED = (0, 1, 2, 3, 4)
REFUSED = (2, 4)
LIBRARIES = (
    *("torch", "onnx", "onnxruntime", "onnxscript", "matplotlib.figure", "jinja2", "PIL.Image", "cryptography", "safetensors"),
    *("edge.pipeline.build", "edge.pipeline.calibrate", "edge.pipeline.rejudge", "edge.report.page", "edge.camera.session"),
    *("edge.cli.summary", "edge.gate.compare_builds", "edge.inspect.describe_binary", "edge.bench.measure", "calib.quantize"),
)


@dataclass(frozen=True)
class Case:
    """Number, command and category of a case."""

    number: int
    command: str
    category: str


@dataclass(frozen=True)
class Ended:
    """How a forked process ended; a negative code is a signal. `seconds` are without those for which no core was free."""

    code: int
    seconds: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every command on broken arguments and files.")
    parser.add_argument("--cases", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", help="cases of this command only")
    parser.add_argument("--category", help="cases of this category only")
    parser.add_argument("--case", type=int, help="this case only, with its output; its folder is kept")
    options = parser.parse_args()
    load_libraries()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as base:
        good = Path(base) / "good"
        make_in_child(good, make_project, Path(base) / "log")
        sys.exit(fuzz(options, Path(base), good))


def load_libraries() -> None:
    """Make this process one whose forks run commands at once, as the command line does, and build the tiny network."""
    for library in LIBRARIES:
        __import__(library)
    know_the_tiny_size()
    write_any_text()


def make_in_child(folder: Path, make: Callable[[], int], log: Path) -> None:
    """Make a project in a new folder, in a process of its own. Exits with its output when that fails."""
    folder.mkdir()
    if forked(folder, make, log, bounded=False).code:
        sys.exit(f"the project cannot be made:\n{log.read_text(errors='replace')[-3000:]}")


def fuzz(options: argparse.Namespace, base: Path, good: Path) -> int:
    """Run the cases, print their failures and the table; returns the exit code."""
    pairs, counts, failed = applicable(), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    cases = (Case(i, *pairs[i % len(pairs)]) for i in range(options.cases))
    for case in cases:
        wanted = options.case in (None, case.number) and options.command in (None, case.command)
        if not wanted or options.category not in (None, case.category):
            continue
        pair = case.command, case.category
        faults, line = try_case(case, options.seed, base, good)
        counts[pair] += 1
        if faults:
            failed[pair] += 1
            print(f"case {case.number} ({', '.join(pair)}): {'; '.join(faults)}\n    {line}", flush=True)
        if options.case is not None:
            print((base / "log").read_text(errors="replace"))
            shutil.rmtree("build/fuzz-case", ignore_errors=True)  # of an earlier case
            shutil.copytree(
                base / "a" / "b" / "work", Path("build/fuzz-case"), symlinks=True, ignore=lambda _d, names: {"fifo"} & {*names}
            )
    print(f"\n{'command':<10} {'category':<12} {'cases':>6} {'failures':>9}")
    for pair in sorted(counts):
        print(f"{pair[0]:<10} {pair[1]:<12} {counts[pair]:>6} {failed[pair]:>9}")
    print(f"{'all':<23} {counts.total():>6} {failed.total():>9}")
    return 1 if failed.total() else 0


def try_case(case: Case, seed: int, base: Path, good: Path) -> tuple[list[str], str]:
    """What a case did wrong, and its command line."""
    work, log, rng = base / "a" / "b" / "work", base / "log", Random(f"{seed}/{case.number}")  # noqa: S311  # no secret
    shutil.rmtree(base / "a", ignore_errors=True)
    shutil.copytree(good, work, symlinks=True)
    here = Path.cwd()
    os.chdir(work)
    try:
        arguments = prepare(case.command, case.category, rng)
    finally:
        os.chdir(here)
    before = contents(work)
    ended = forked(work, lambda: run(arguments), log)
    line = " ".join(ascii(word)[1:-1][:120] for word in arguments)
    faults = faults_of(ended, log.read_bytes(), before, contents(work), base)
    if case.category == GOOD and ended.code in REFUSED:
        faults.append("refused a good project")
    return faults, line


def forked(folder: Path, call: Callable[[], int], log: Path, *, bounded: bool = True) -> Ended:
    """Call a function in a fork of this process, in a folder, its output in a file."""
    begun = time.monotonic()
    process = os.fork()
    if not process:
        code = 71
        try:
            os.chdir(folder)
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            os.setpgid(0, 0)
            if bounded:
                _bound()
            code = call()
        except BaseException:  # noqa: BLE001  # a fork must not go on with its parent's work
            os.write(2, traceback.format_exc().encode(errors="replace"))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    waited_s = int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    seconds = time.monotonic() - begun - waited_s
    _, status, usage = os.wait4(process, 0)
    return Ended(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * 1024)


def _bound() -> None:
    """Limits of the process: a minute of a core, 2 GB beyond what the libraries take, no endless file, no core dump."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE_S)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for kind, most in (
        (resource.RLIMIT_AS, taken + BYTES),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with its digest; other entries with their kind. Locks are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")
        if path.is_symlink():
            found[name] = f"link to {str(path.readlink())!r}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir():
            found[name] = "special"
    return {name: what for name, what in found.items() if not name.endswith(".lock")}


def faults_of(ended: Ended, output: bytes, before: dict[str, str], after: dict[str, str], base: Path) -> list[str]:
    """What is wrong with how a case ended."""
    faults, last = [], output.decode(errors="replace").strip().splitlines()[-3:]
    if ended.code in (-signal.SIGALRM, -signal.SIGXCPU) or ended.seconds > SECONDS:
        faults.append(f"took more than {SECONDS} s")
    elif ended.code not in DOCUMENTED:
        faults.append(f"ended with {ended.code}: {' / '.join(last)[:300]}")
    if b"Traceback (most recent call last)" in output:
        faults.append("printed a traceback")
    if re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xe2\x80[\xaa-\xae]", output):
        faults.append("printed a control character")
    if ended.code in REFUSED and not (b"error: " in output and b"  where: " in output):
        faults.append(f"code {ended.code} without an error and its place: {' / '.join(last)[:200]}")
    if ended.code in REFUSED:
        changed = [n for n in before.keys() | after.keys() if before.get(n) != after.get(n) and n not in MAY_WRITE]
        faults += [f"refused, but changed {', '.join(sorted(changed)[:5])}"] if changed else []
    if any(path.name == MARKER for path in base.rglob(MARKER)):
        faults.append("ran code of a file")
    if ended.peak_bytes > BYTES:
        faults.append(f"took {ended.peak_bytes / 1e9:.1f} GB")
    return faults


if __name__ == "__main__":
    main()
