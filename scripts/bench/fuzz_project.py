"""The working folder of `fuzz.py`: a tiny network with its images, builds, baseline, keys and a bundle, all of them good."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from calib.artifact import write_artifact
from edge.cli import run
from edge.images.idx import write_idx
from edge.images.preprocess import Preprocess
from edge.model.metadata import CheckpointInfo
from edge.model.sizes import SIZES, UfoVitConfig

TINY = UfoVitConfig("ufovit_tiny", depth=2, dim=32, heads=2, image_size=32, classes=5)
LABELS = ("ant", "bee", "cat", "dog", "eel")
_BUILD = (
    "build ufovit_tiny int8 --data test --calib-data calibration --max-drop 20 --int8-floor 0.5 --checkpoint tiny.safetensors"
)


def know_the_tiny_size() -> None:
    """Let the command line build the tiny network."""
    SIZES[TINY.name] = TINY


def make_project() -> int:
    """Fill the current folder; returns 0. Raises RuntimeError for a command that fails."""
    know_the_tiny_size()
    _write_inputs()
    _run(f"{_BUILD} --target cpu --out out")
    shutil.copy2("out/model.onnx", "net.onnx")
    _run("gate out --baseline baseline.json --update --reviewed-by fuzz")
    _write_latency()
    shutil.copytree("out", "signed")
    _run("sign signed --key key.pem")
    _run(f"{_BUILD} --target rtx --out rtx --batch 1,2,4")
    _run("bundle rtx --data test --images 16 --out b.ufovit")
    return 0


def _run(line: str) -> None:
    if (code := run(line.split())) not in (0, 1, 3):
        raise RuntimeError(f"ufovit {line} ended with {code}")


def _write_inputs() -> None:
    import torch

    from edge.model.checkpoint import random_network, save_checkpoint

    network = random_network(TINY, 0)
    preprocess = Preprocess(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_checkpoint(network, CheckpointInfo(TINY, LABELS, preprocess), Path("tiny.safetensors"), torch.float32)
    rng = np.random.default_rng(0)
    for name, count in (("calibration", 48), ("test", 48)):
        smooth = rng.integers(0, 256, (count, 4, 4)).astype(np.uint8).repeat(7, axis=1).repeat(7, axis=2)
        with torch.inference_mode():
            answers = network(torch.from_numpy(preprocess.batch(smooth[..., None]))).argmax(1)
        write_idx(Path(name) / "images-idx3-ubyte.gz", smooth)
        write_idx(Path(name) / "labels-idx1-ubyte.gz", answers.numpy().astype(np.uint8))
    lines = ["file,label\n"]
    for i in range(40):
        path = Path("photos") / LABELS[i % len(LABELS)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
        lines.append(f"{path},{LABELS[i % len(LABELS)]}\n")
    Path("list.csv").write_text("".join(lines))
    np.save("images.npy", rng.normal(size=(40, 3, 32, 32)).astype(np.float32))
    np.save("labels.npy", rng.integers(0, len(LABELS), 40))
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", "key.pem"], check=True, capture_output=True)
    Path("key.pem").chmod(0o600)
    subprocess.run(["openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "key.pub.pem"], check=True, capture_output=True)


def _write_latency() -> None:
    from edge.gate.baseline import LatencyRatio

    write_artifact(Path("latency.json"), LatencyRatio(0.5, 0.4, 0.6, 100))
