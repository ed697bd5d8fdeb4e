#!/usr/bin/env python3
"""Kill commands at random moments, let disks fill up, build at the same time into one folder: nothing may be lost or half-made.

    scripts/bench/interruptions.py kills [--build 100] [--drift 20] [--gate 20] [--recording 20] [--seed 0]
    scripts/bench/interruptions.py disks       (as root on Linux: it mounts small file systems in memory)
    scripts/bench/interruptions.py together [--rounds 100]

Every command runs on a copy of the small project of `fuzz_project.py`, forked from a process with all libraries loaded.
    kills      After SIGKILL `ufovit verify` accepts the folder, which then is the old or the new build to the byte, or says
               that it is under construction; a video is there and can be played, or none. The same command then succeeds, its
               files are those of a run that was not killed, and no other file is left.
    disks      Too little room, no inodes, a full TMPDIR, a limit on the size of files: exit code 4, nothing that was there is
               gone, and the same command succeeds when there is room.
    together   Two builds of each of two networks start at once in one folder; `gate`, `inspect` and `verify` run on it all
               the time: every build succeeds, every reader sees one of the two builds complete, or refuses; the folder ends
               as one of them.
The last lines are a table of cases and failures. Exit code: 0 no failure, 1 some.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

if __name__ == "__main__":  # before numpy is loaded: a forked process lacks the threads that its parent started
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from fuzz import REFUSED, load_libraries, make_in_child
from interrupted_runs import (
    DATED,
    NEW,
    OLD,
    RECORDING,
    Bench,
    differing,
    export_once,
    make_all,
    mounted,
    playable,
    remount,
    start,
    state,
    stop,
    use_tmpdir,
)

COMMANDS = {
    "build": NEW,
    "drift": "drift out --data test --images 40",
    "gate": "gate out --baseline baseline.json --update --reviewed-by another --note changed",
    "recording": RECORDING,
}
ON_A_DISK = {
    **COMMANDS,
    "calibrate": "calibrate net.onnx --images images.npy --count 32 --effort fast --out calibrated",
    "certify": "certify net.onnx --data test --images 8 --out certificate.json --repair folded.onnx",
    "bundle": "bundle rtx --data test --images 16 --out new.ufovit",
    "sign": "sign out --key key.pem",
}
UNDER_CONSTRUCTION = "is under construction"
MANY = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill commands, fill disks, build at the same time.")
    parser.add_argument("campaign", choices=("kills", "disks", "together"))
    for name, count in (("build", 100), ("drift", 20), ("gate", 20), ("recording", 20), ("rounds", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    load_libraries()
    with tempfile.TemporaryDirectory(prefix="interruptions-") as base:
        bench = Bench(Path(base))
        make_in_child(bench.good, make_all, bench.log)
        export_once(bench.good)
        {"kills": kills, "disks": disks, "together": together}[options.campaign](bench, options)
        for name, count in bench.cases.items():
            print(f"{name:<34} {count:>6} cases {bench.failures[name]:>4} failures")
        sys.exit(1 if bench.failures.total() else 0)


def kills(bench: Bench, options: argparse.Namespace) -> None:
    """SIGKILL at a random moment of each command."""
    rng = Random(options.seed)  # noqa: S311  # no secret
    for name, line in COMMANDS.items():
        bench.renew()
        old, begun = state(bench.work), time.monotonic()
        code, output = bench.run(line)
        seconds, new = time.monotonic() - begun, state(bench.work)
        if code:
            sys.exit(f"{line} ended with {code}:\n{output}")
        for _ in range(getattr(options, name)):
            bench.renew()
            moment = rng.uniform(0, seconds)
            fault = _killed(bench, name, moment, old, new)
            bench.count(f"SIGKILL during {name}", fault and f"after {moment:.2f} of {seconds:.2f} s: {fault}")


def _killed(bench: Bench, name: str, moment: float, old: dict[str, str], new: dict[str, str]) -> str | None:
    """What is wrong after a kill, or after the run that follows it."""
    process = start(bench.work, COMMANDS[name], bench.log)
    time.sleep(moment)
    stop(process)
    code, output = bench.run("verify out")
    found = {file: content for file, content in state(bench.work).items() if "/." not in f"/{file}"}
    if code and UNDER_CONSTRUCTION not in output:
        return f"verify refuses the folder: {output.strip()}"
    video = bench.work / "video.mp4"
    if name == "recording" and playable(video):
        found[video.name] = new[video.name]  # its bytes depend on the speed of the run
    if not code and differing(found, old) and differing(found, new):
        return f"neither the old nor the new state: {differing(found, old)} | {differing(found, new)}"
    video.unlink(missing_ok=True)  # a recording replaces none
    code, output = bench.run(COMMANDS[name])
    after = state(bench.work)
    if name == "recording" and playable(video):
        after[video.name] = new[video.name]
    if code or differing(after, new):
        return f"the same command again ends with {code}, files that differ: {differing(after, new)}; {output[-300:]}"
    return None


def disks(bench: Bench, _options: argparse.Namespace) -> None:
    """Too little room of every kind."""
    _shipped_on_small_disks(bench)
    for name, line in ON_A_DISK.items():
        for spare_kib in (0, 8, 40, 160, 640):
            bench.renew()
            used = sum(-(-path.stat().st_size // 4096) * 4096 for path in bench.work.rglob("*") if path.is_file())
            with mounted(bench.base / "disk", f"size={used + (spare_kib << 10)}") as disk:
                _on_a_disk(bench, f"{name}, disk full", line, disk, partial(remount, disk, f"size={MANY}"))
        for spare in (0, 1, 2, 4, 8):
            bench.renew()
            used = sum(1 for _ in bench.work.rglob("*")) + 1
            with mounted(bench.base / "disk", f"size={MANY},nr_inodes={used + spare}") as disk:
                _on_a_disk(bench, f"{name}, no inodes", line, disk, partial(remount, disk, "nr_inodes=100000"))
        with mounted(bench.base / "tmp", "size=16k") as full:
            _limited(bench, f"{name}, TMPDIR full", line, partial(use_tmpdir, full))
        for most in (8 << 10, 64 << 10, 300 << 10):  # what the command prints has to fit too
            limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
            _limited(bench, f"{name}, ulimit -f", line, limit)


def _limited(bench: Bench, name: str, line: str, limit: Callable[[], None]) -> None:
    bench.renew()
    before = state(bench.work)
    code, output = bench.run(line, limit=limit)
    bench.count(name, _refused(bench, code, output, line, bench.work, before))


def _on_a_disk(bench: Bench, name: str, line: str, disk: Path, make_room: Callable[[], None]) -> None:
    bench.renew(disk)
    before = state(disk)
    code, output = bench.run(line, disk)
    make_room()
    bench.count(name, _refused(bench, code, output, line, disk, before))


def _refused(bench: Bench, code: int, output: str, line: str, folder: Path, before: dict[str, str]) -> str | None:
    """What is wrong after a command for which there may have been too little room, or after its repetition."""
    if code not in (0, 4):
        return f"ended with {code}: {output.strip()[-300:]}"
    if code:
        after = state(folder)
        lost = [name for name in before if name not in after]
        if lost and not (folder / "out" / ".building").exists():
            return f"lost {', '.join(lost)}"
        code, output = bench.run(line, folder)
        if code:
            return f"the same command with room ends with {code}: {output.strip()[-300:]}"
    left = [path.name for path in folder.rglob(".*") if path.suffix == ".tmp" or path.name in (".building", ".ufovit-staging")]
    return f"left {', '.join(left)}" if left else None


def _shipped_on_small_disks(bench: Bench) -> None:
    """The shipped network, whose build takes some 170 MB."""
    line = "build ufovit_t int8 --target rtx --calib-images 64 --eval-images 64 --max-drop 100 --out out"
    for size in (20, 60, 100, 140):
        with mounted(bench.base / "disk", f"size={size}m") as disk:
            code, output = bench.run(line, disk)
            remount(disk, f"size={MANY}")
            bench.count(f"the shipped network on {size} MB", _refused(bench, code, output, line, disk, {}))
            print(f"{size} MB: exit code {code}, then {bench.run('verify out', disk)[0]}", flush=True)


READERS = ("inspect out", "gate out --baseline baseline.json", "verify out")


def together(bench: Bench, options: argparse.Namespace) -> None:
    """Builds and readers at the same time."""
    bench.renew()
    seen: dict[str, set[bytes]] = {reader: set() for reader in READERS}
    states = []
    for line in (OLD, NEW):
        bench.run(line)
        states.append(state(bench.work / "out"))
        for reader in READERS:
            bench.run(reader)
            seen[reader].add(DATED.sub(b"", bench.log.read_bytes()))
    outcomes: Counter[str] = Counter()
    for number in range(options.rounds):
        if number % 2:
            shutil.rmtree(bench.work / "out")
        builds = {start(bench.work, line, bench.base / f"log{i}"): i for i, line in enumerate((OLD, NEW, OLD, NEW))}
        fault, codes = None, dict[int, int]()
        while len(codes) < len(builds):
            for reader in READERS:
                fault = _read(bench, reader, seen[reader], outcomes) or fault
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended:
                codes[builds[ended]] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            bad = next(i for i, code in codes.items() if code)
            fault = f"builds ended with {codes}: {(bench.base / f'log{bad}').read_text(errors='replace')[-400:]}"
        elif state(bench.work / "out") not in states:
            fault = f"the folder is neither build: {differing(state(bench.work / 'out'), states[0])}"
        bench.count("four builds and readers at once", fault)
    print(json.dumps(dict(sorted(outcomes.items())), indent=1))


def _read(bench: Bench, reader: str, seen: set[bytes], outcomes: Counter[str]) -> str | None:
    """What is wrong with the answer of a reader: it is neither that on one of the builds nor a refusal."""
    code, output = bench.run(reader)
    whole = DATED.sub(b"", bench.log.read_bytes()) in seen
    error = next((line for line in output.splitlines() if line.startswith("error: ")), "")
    what = "a whole build" if whole else error.removeprefix("error: ").split(":")[0]
    outcomes[f"{reader.split(maxsplit=1)[0]}: {what}"] += 1
    if whole or (error and code in REFUSED):
        return None
    return f"{reader} answered {code}: {output.strip()[-400:]}"


if __name__ == "__main__":
    main()
