"""The project that `interruptions.py` works on, processes that are killed, small file systems, and what a folder holds."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from fuzz import forked
from fuzz_project import LABELS, TINY, make_project

from calib.files import sha256_bytes, sha256_file
from edge.camera.opencv import load_cv2
from edge.cli import run
from edge.images.preprocess import Preprocess
from edge.model import export
from edge.model.checkpoint import load_checkpoint, random_network, save_checkpoint
from edge.model.export_foldings import fold
from edge.model.metadata import CheckpointInfo

BUILD = "build ufovit_tiny int8 --target cpu --data test --calib-data calibration --max-drop 100 --int8-floor 0.5"
OLD, NEW = (f"{BUILD} --out out --checkpoint {name}.safetensors" for name in ("tiny", "other"))
RECORDING = "camera out --source synthetic://?size=64x48&fps=100 --frames 40 --threads 1 --record video.mp4"
DATED = re.compile(
    rb'"created": "[^"]*"|(?<=manifest.json) .*|(?<=steps.json) .*|(?<=report.html) .*|\d{4}-\d\d-\d\d[T ][\d:]+\S*'
)
_SHORT = 100


class Bench:
    """The project, a working copy of it, and the counts of cases and failures."""

    def __init__(self, base: Path) -> None:
        self.base, self.good, self.work, self.log = base, base / "good", base / "work", base / "log"
        self.cases: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def renew(self, folder: Path | None = None) -> None:
        """A fresh copy of the project."""
        folder = folder or self.work
        for entry in folder.iterdir() if folder.exists() else ():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.copytree(self.good, folder, symlinks=True, dirs_exist_ok=True)

    def run(self, line: str, folder: Path | None = None, *, limit: Callable[[], None] = lambda: None) -> tuple[int, str]:
        """Exit code and output of a command line."""

        def limited() -> int:
            limit()
            return run(line.split())

        ended = forked(folder or self.work, limited, self.log, bounded=False)
        return ended.code, self.log.read_text(errors="replace")

    def count(self, name: str, fault: str | None) -> None:
        """Count a case, and print what is wrong with it."""
        self.cases[name] += 1
        if fault is not None:
            self.failures[name] += 1
            print(f"{name}, case {self.cases[name]}: {fault}", flush=True)


def make_all() -> int:
    """The project of the fuzz, and a second checkpoint."""
    make_project()
    preprocess = Preprocess(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    info = CheckpointInfo(TINY, LABELS, preprocess)
    save_checkpoint(random_network(TINY, 1), info, Path("other.safetensors"), torch.float32)
    return run(OLD.split())


def export_once(folder: Path) -> None:
    """Let builds take the graphs of both networks from memory: exporting takes most of the time of such a small build."""
    to_onnx, simplify = export.to_onnx, export.simplify
    exported, simplified = {}, {}
    images = np.random.default_rng(0).normal(size=(2, 3, TINY.height, TINY.width)).astype(np.float32)
    for name in ("tiny", "other"):
        network, _ = load_checkpoint(folder / f"{name}.safetensors", model=TINY.name)
        folded = fold(network)
        graph = exported[_weights(folded)] = to_onnx(folded)
        simplified[graph.SerializeToString()] = simplify(graph, images)
    export.to_onnx = lambda model: exported.get(_weights(model)) or to_onnx(model)
    export.simplify = lambda graph, images: simplified.get(graph.SerializeToString()) or simplify(graph, images)  # type: ignore[assignment, misc]


def _weights(network: torch.nn.Module) -> str:
    return sha256_bytes(b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values()))


def state(folder: Path) -> dict[str, str]:
    """Every file of a folder with the digest of its content, dates and locks left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (".lock", "steps.json"):  # the record holds digests of dated files
            dated = path.suffix in (".json", ".html")
            found[str(path.relative_to(folder))] = repr(DATED.sub(b"", path.read_bytes())) if dated else sha256_file(path)
    return {name: content if len(content) < _SHORT else str(hash(content)) for name, content in found.items()}


def differing(one: dict[str, str], other: dict[str, str]) -> str:
    """The names of the files that differ."""
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


def playable(video: Path) -> bool:
    """Whether the frames of a video can be decoded, as FFmpeg counts them."""
    capture, frames = load_cv2().VideoCapture(str(video)), 0
    while capture.read()[0]:
        frames += 1
    return frames >= 10  # of some 40


def start(folder: Path, line: str, log: Path) -> int:
    """Run a command line in a fork, in a process group of its own; its identifier."""
    process = os.fork()
    if not process:
        os.setpgid(0, 0)
        try:
            os.chdir(folder)
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            code = run(line.split())
        except BaseException:  # noqa: BLE001  # a fork must not go on with its parent's work
            code = 71
        finally:
            sys.stdout.flush()
            os._exit(code)
    return process


def stop(process: int) -> None:
    """Kill a process and its children."""
    for kill in (os.killpg, os.kill):
        try:
            kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.waitpid(process, 0)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Give a file system more room."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def use_tmpdir(folder: Path) -> None:
    """Put temporary files there."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
