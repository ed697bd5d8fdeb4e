"""Bundles of the tiny project: made, opened, altered."""

import io
import json
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge.cli import run
from edge.images.preprocess import Preprocess
from edge.runtime.runner import Runner
from engines.build_folder.bundle_format import open_bundle, write_bundle

ARRAYS = ("pixels.npy", "shapes.npy", "labels.npy", "logits.npy", "golden.npy")
GRAPH = "model.typed.onnx"
IMAGES = 24
DEVICE_FILES = {
    GRAPH,
    "golden.npz",
    "certificate.json",
    "xnorm.json",
    "calibration.json",
    "engine.engine",
    "manifest.json",
    "steps.json",
}
VERDICT_FILES = {"drift.json", "logits.npz", "flips.npz"}


def pack(folder, *options, source="rtx", out="b.ufovit"):
    arguments = [folder / source, "--data", folder / "test", "--images", IMAGES, "--out", folder / out, *options]
    return run(["bundle", *map(str, arguments)])


def device(folder, *options, bundle="b.ufovit", out="device", target="rtx"):
    arguments = ["--bundle", folder / bundle, "--target", target, "--out", folder / out, *options]
    return run(["build", *map(str, arguments)])


def contents(path):
    """Every member of a bundle: arrays by numpy, JSON by json, the rest as bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    read = {".npy": lambda data: np.load(io.BytesIO(data)), ".json": json.loads}
    return {name: read.get(Path(name).suffix, bytes)(data) for name, data in members.items()}


def json_of(path):
    return json.loads(path.read_text())


def refused_to_pack(folder, capsys, *says, **options):
    before = sorted(p.name for p in folder.iterdir())
    assert pack(folder, out="new.ufovit", **options) == 2
    error = capsys.readouterr().err
    assert [text for text in says if text not in error] == [], error
    assert sorted(p.name for p in folder.iterdir()) == before


class Injected(Runner):
    """Answers in the engine's place, to the thread that opened it alone, and notes the sizes of its batches."""

    def __init__(self, answer):
        self.answer, self.batches = answer, []
        self.thread = threading.get_ident()

    def __call__(self, images):
        assert threading.get_ident() == self.thread
        self.batches.append(len(images))
        return self.answer(images)

    def close(self):
        pass


def files(folder):
    return {p.name for p in folder.iterdir()} - {".lock"}


def alter(folder, *, members=None, manifest=None, name="b.ufovit", **info):
    """Write the whole bundle again, sealed, with other members (arrays or bytes), manifest.json and bundle.json."""
    path = folder / name
    opened = open_bundle(path)
    packed = {name: opened.read(name) for name in opened.info.members}
    fields = {**json.loads(packed["manifest.json"]), **{k: v for k, v in info.items() if k in ("batch", "int8_floor")}}
    fields |= manifest or {}
    packed["manifest.json"] = json.dumps(fields).encode()
    for member, value in (members or {}).items():
        buffer = io.BytesIO()
        if isinstance(value, np.ndarray):
            np.save(buffer, value)
        packed[member] = buffer.getvalue() or value
    write_bundle(path, replace(opened.info, **info), {name: data for name, data in packed.items() if data is not None})


def refused(folder, capsys, code, *says, **options):
    """The device ends with the code, says so in a sentence, and writes nothing."""
    assert device(folder, **options) == code
    error = capsys.readouterr().err
    assert [text for text in says if text not in error] == [], error
    assert "internal error" not in error
    assert not (folder / options.get("out", "device")).exists()


def preprocess_fields(**changes):
    made = Preprocess(**{"image_size": 32, "resize": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3, **changes})
    return {"preprocess": {**json.loads(json.dumps(made.as_json())), "sha256": made.sha256}}
