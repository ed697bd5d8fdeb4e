"""The cases of `fuzz.py`: for every command, what its command line is, and which of its files are broken in which way.

A case is a command, a category and a seed: `prepare` breaks something in the working folder and returns the command line. The
folder is a copy of the one that `fuzz_project.py` makes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzz_files import (
    broken_bytes,
    broken_checkpoint,
    broken_idx,
    broken_image,
    broken_json,
    broken_key,
    broken_list,
    broken_npy,
    broken_onnx,
    broken_zip,
    pickled,
)
from fuzz_values import NUMBERS, PATHS, SOURCES, TEXTS

from calib.files import sha256_file
from edge.cli.main import COMMANDS, app
from engines.build_folder.step_record import StepRecord, read_record, write_record

Break = Callable[[bytes, Random], bytes]
Command = list[str]
BUILD = "build ufovit_tiny int8 --target cpu --data test --calib-data calibration --out out --max-drop 20 --int8-floor 0.5"
LINES = {
    "build": f"{BUILD} --checkpoint tiny.safetensors",
    "certify": "certify net.onnx --data test --images 8 --out certificate.json --repair folded.onnx",
    "calibrate": "calibrate net.onnx --images images.npy --count 32 --effort fast --out calibrated",
    "checkpoint": "checkpoint tiny.safetensors --out converted.safetensors",
    "drift": "drift out --data test --images 40",
    "gate": "gate out --baseline baseline.json --latency latency.json --junit gate.xml --markdown gate.md --json gate.json",
    "report": "report out",
    "bundle": "bundle rtx --data test --images 16 --out new.ufovit",
    "verify": "verify out",
    "sign": "sign out --key key.pem",
    "inspect": "inspect out",
    "bench": "bench out --runs 2 --warm-up 0 --batch 1 --threads 1 --json bench.json",
    "camera": "camera out --source synthetic://?size=64x48&fps=200 --frames 3 --duration 10 --threads 1 --json",
    "doctor": "doctor",
}
"""A command line of each command that succeeds."""
GOOD = "good"
"""The category in which nothing is broken: the control, which no command may refuse."""
MAY_WRITE = ("gate.xml", "gate.md", "gate.json")
"""Files that a gate writes also when it refuses: they say so."""
_JSON = ("manifest.json", "drift.json", "calibration.json", "certificate.json", "xnorm.json", "export.json", "steps.json")
_NPZ = ("logits.npz", "flips.npz", "golden.npz")
_ONNX = ("model.onnx", "model.folded.onnx", "model.refined.onnx", "model.int8.onnx", "engine.onnx")


def prepare(command: str, category: str, rng: Random) -> Command:
    """Break something in the working folder, and return the command line."""
    return CATEGORIES[category](command, rng)


def applicable() -> list[tuple[str, str]]:
    """Every command with every category that concerns it."""
    return [(command, category) for command in COMMANDS for category, commands in CONCERNS.items() if command in commands]


def _line(command: str, **changes: str) -> Command:
    """The command line with options changed or added; of `source`, the first argument."""
    words = LINES[command].split()
    if "source" in changes:
        words[1] = changes.pop("source")
    for name, value in changes.items():
        option = f"--{name.replace('_', '-')}"
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def _rewrite(path: Path, change: Break, rng: Random) -> None:
    path.write_bytes(change(path.read_bytes(), rng))


def _arguments(command: str, rng: Random) -> Command:
    """One to three options with values that make no sense, added, repeated or removed; or another first argument."""
    words = LINES[command].split()
    collection = app[command].assemble_argument_collection(default_parameter=app.default_parameter)
    options = [argument for argument in collection if argument.name.startswith("--")]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        action = rng.random()
        if action < 0.75 and options:
            argument = rng.choice(options)
            kind = str(argument.hint)
            pool = NUMBERS if re.search(r"\b(int|float)\b", kind) else PATHS if "Path" in kind else TEXTS
            value = rng.choice(SOURCES) if argument.name == "--source" else rng.choice(pool if rng.random() < 0.9 else TEXTS)
            words += [argument.name] if "bool" in kind else [f"{argument.name}={value}"]
        elif action < 0.85:
            words.insert(rng.randrange(1, len(words) + 1), rng.choice((*TEXTS, *PATHS, "--unknown", "--debug")))
        else:
            del words[rng.randrange(1, len(words) + 1) :]
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    return [word for word in words if word != "--debug"]


def _first_argument(command: str, rng: Random) -> Command:
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    return _line(command, source=rng.choice(PATHS))


def _inside(files: tuple[str, ...], change: Break) -> Callable[[str, Random], Command]:
    """Break a file of the build folder; usually its digest is recorded again everywhere, so that it is read."""

    def broken(command: str, rng: Random) -> Command:
        folder = Path("rtx" if command == "bundle" else "out")
        path = folder / rng.choice([name for name in files if (folder / name).exists()])
        before = sha256_file(path)
        _rewrite(path, change, rng)
        if path.name != "steps.json" and rng.random() < 0.8:
            _record_again(folder, before, sha256_file(path))
        if command == "inspect" and rng.random() < 0.7:
            return ["inspect", str(path)]
        return LINES[command].split()

    return broken


def _record_again(folder: Path, before: str, after: str) -> None:
    for path in folder.glob("*.json"):
        if path.name != "steps.json":
            path.write_bytes(path.read_bytes().replace(before.encode(), after.encode()))
    steps = read_record(folder)
    present = {name: sha256_file(folder / name) for step in steps.values() for name in step.writes if (folder / name).is_file()}
    record = {name: StepRecord(step.reads, {**step.writes, **{f: present[f] for f in step.writes if f in present}})
              for name, step in steps.items()}  # fmt: skip
    write_record(folder, record)


def _file(name: str, change: Break) -> Callable[[str, Random], Command]:
    """Break a file that the command line names."""

    def broken(command: str, rng: Random) -> Command:
        _rewrite(Path(name), change, rng)
        return ["inspect", name] if command == "inspect" else LINES[command].split()

    return broken


def _images(command: str, rng: Random) -> Command:
    """A folder of pictures in which one to three entries are broken, odd or no files."""
    folder = Path("photos") / "ant"
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(("0.png", "new.png", "new.jpg", "new.tif", "\x1b[2J.png", "\udcff.png", "new.webp"))
        path = folder / name
        path.unlink(missing_ok=True)
        action = rng.random()
        if action < 0.8:
            path.write_bytes(broken_image(b"", rng))
        elif action < 0.85:
            path.symlink_to(rng.choice((path.name, "/dev/zero", "../..", "/etc/passwd")))
        elif action < 0.9:
            path.mkdir()
        elif action < 0.95:
            os.mkfifo(path)
        else:
            folder.rename(Path("photos") / rng.choice(("fox", "ant\x1b", "\udcff")))
            break
    return _with_images(command, "photos")


def _with_images(command: str, path: str) -> Command:
    if command == "calibrate":
        return _line(command, images=path, mean="0.5", std="0.25")
    if command == "camera":
        return [*_line(command, source="out"), "--source", path]
    return _line(command, data=path)


def _list(command: str, rng: Random) -> Command:
    _rewrite(Path("list.csv"), broken_list, rng)
    return _with_images(command, "list.csv")


def _idx(command: str, rng: Random) -> Command:
    _rewrite(Path("test") / rng.choice(("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")), broken_idx, rng)
    return _with_images(command, "test")


def _arrays(command: str, rng: Random) -> Command:
    name = rng.choice(("images.npy", "labels.npy"))
    _rewrite(Path(name), broken_npy, rng)
    return _line(command, holdout="images.npy", holdout_labels="labels.npy") if name == "labels.npy" else LINES[command].split()


def _checkpoint(command: str, rng: Random) -> Command:
    name = rng.choice(("tiny.safetensors", "tiny.safetensors", "tiny.pth"))
    Path(name).write_bytes((pickled if name == "tiny.pth" else broken_checkpoint)(Path("tiny.safetensors").read_bytes(), rng))
    if command == "checkpoint":
        return _line(command, source=name)
    return ["inspect", name] if command == "inspect" else _line(command, checkpoint=name)


def _keys(command: str, rng: Random) -> Command:
    name = "key.pem" if command == "sign" else "key.pub.pem"
    _rewrite(Path(name), broken_key, rng)
    Path(name).chmod(rng.choice((0o600, 0o600, 0o644)))
    if command == "sign":
        Path("list.csv").write_bytes(rng.choice((b"", b"x\n", b"\xff" * 70_000)))
        return [*LINES[command].split(), *(("--passphrase-file", "list.csv") if rng.random() < 0.3 else ())]
    return _line(command, source="signed", require_signature=name)


def _signature(command: str, rng: Random) -> Command:
    _rewrite(Path("signed/signature.json"), broken_json if rng.random() < 0.8 else broken_bytes, rng)
    return _line(command, source="signed", require_signature="key.pub.pem")


def _bundle(command: str, rng: Random) -> Command:
    _rewrite(Path("b.ufovit"), broken_zip, rng)
    if command == "build":
        return ["build", "--bundle", "b.ufovit", "--target", "rtx", "--out", "device"]
    return _line(command, source="b.ufovit")


CATEGORIES: dict[str, Callable[[str, Random], Command]] = {
    GOOD: lambda command, _rng: LINES[command].split(),
    "arguments": _arguments,
    "paths": _first_argument,
    "json": _inside(_JSON, broken_json),
    "npz": _inside(_NPZ, broken_zip),
    "graphs": _inside(_ONNX, broken_onnx),
    "onnx": _file("net.onnx", broken_onnx),
    "arrays": _arrays,
    "images": _images,
    "lists": _list,
    "idx": _idx,
    "checkpoint": _checkpoint,
    "keys": _keys,
    "signature": _signature,
    "bundle": _bundle,
    "baseline": _file("baseline.json", broken_json),
    "latency": _file("latency.json", broken_json),
}
_ON_A_BUILD = ("build", "drift", "gate", "report", "bundle", "verify", "sign", "inspect", "bench", "camera")
_ON_IMAGES = ("build", "certify", "calibrate", "drift", "bundle")
CONCERNS: dict[str, tuple[str, ...]] = {
    GOOD: COMMANDS,
    "arguments": COMMANDS,
    "paths": tuple(command for command in COMMANDS if command != "doctor"),
    "json": _ON_A_BUILD,
    "npz": _ON_A_BUILD,
    "graphs": _ON_A_BUILD,
    "onnx": ("certify", "calibrate", "inspect"),
    "arrays": ("calibrate",),
    "images": (*_ON_IMAGES, "camera"),
    "lists": _ON_IMAGES,
    "idx": _ON_IMAGES,
    "checkpoint": ("build", "inspect", "checkpoint"),
    "keys": ("sign", "verify", "bench", "camera"),
    "signature": ("verify", "bench", "camera"),
    "bundle": ("build", "verify", "inspect", "sign"),
    "baseline": ("gate",),
    "latency": ("gate",),
}
"""Category -> the commands that read such files."""
