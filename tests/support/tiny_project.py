"""A small project: a checkpoint of the tiny network, calibration and test images labelled by the network itself."""

import hashlib
import json

import numpy as np

from edge.cli import run
from edge.images.idx import write_idx
from edge.images.preprocess import Preprocess
from edge.model.metadata import CheckpointInfo
from engines.build_folder.step_record import read_record, write_record

LABELS = ("ant", "bee", "cat", "dog", "eel")


def make_project(folder, network, size, seed=0):
    """`tiny.safetensors`, 64 calibration and 80 test images in a folder. Labels are the network's answers: top-1 is 100 %."""
    import torch

    from edge.model.checkpoint import save_checkpoint

    preprocess = Preprocess(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_checkpoint(network, CheckpointInfo(size, LABELS, preprocess), folder / "tiny.safetensors", torch.float32)
    rng = np.random.default_rng(seed)
    for name, count in (("calibration", 64), ("test", 80)):
        smooth = rng.integers(0, 256, (count, 4, 4)).astype(np.uint8).repeat(7, axis=1).repeat(7, axis=2)
        with torch.inference_mode():
            answers = network(torch.from_numpy(preprocess.batch(smooth[..., None]))).argmax(1)
        write_idx(folder / name / "images-idx3-ubyte.gz", smooth)
        write_idx(folder / name / "labels-idx1-ubyte.gz", answers.numpy().astype(np.uint8))
    return folder


def command(folder, model="ufovit_tiny", precision="int8", **changes):
    """The arguments of `ufovit build` on a project; an option changed to None is left out, one changed to True is a flag."""
    options = {
        "target": "cpu", "checkpoint": folder / "tiny.safetensors", "data": folder / "test",
        "calib_data": folder / "calibration", "out": folder / "out", "max_drop": 20, "int8_floor": 0.5, **changes,
    }  # fmt: skip
    if options["target"] == "cpu":
        options = {"backend": "ort", **options}  # the same engine where OpenVINO is installed and where it is not
    arguments = ["build", model, precision]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return arguments


def build(folder, *options, precision="int8", out="out", **changes):
    return run([*command(folder, precision=precision, out=folder / out, **changes), *options])


def read(folder, file, out="out"):
    return json.loads((folder / out / file).read_text())


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(folder):
    return [p.name for p in (folder / "out").iterdir() if p.name.endswith(".tmp")]


def forget(folder, step):
    """Drop the record of a step: the next build runs it again, and what follows from it."""
    record = read_record(folder / "out")
    del record[step]
    write_record(folder / "out", record)
