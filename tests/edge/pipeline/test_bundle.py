"""From a build to a bundle, and from a bundle to a verdict on a device: what is packed, what is refused, what a device leaves.

The builder is the real TensorRT-RTX. Oracles: zipfile, json and numpy on the files, Pillow for every pixel, ONNX Runtime called
directly for every logit. Where no GPU runs the engine, its graph does, injected in the engine's place.
"""

import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tiny_network import TINY
from tiny_project import LABELS, build, command, make_project, sha256

from calib.errors import MissingError
from edge.cli import run
from edge.images.preprocess import Preprocess
from edge.model.sizes import SIZES
from edge.runtime.runner import Runner
from engines.build_folder.bundle_format import open_bundle, write_bundle
from engines.build_folder.folder import BuildFolder
from engines.build_folder.verify import verify_folder
from engines.hardware import Gpu
from engines.trt import api

try:
    api.load("rtx")
except MissingError as missing:
    pytest.skip(f"{missing}", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[3]
SUPPORT = ROOT / "tests" / "support"
ARRAYS = ("pixels.npy", "shapes.npy", "labels.npy", "logits.npy", "golden.npy")
GRAPH = "model.typed.onnx"
IMAGES = 24
DEVICE_FILES = {GRAPH, "golden.npz", "xnorm.json", "calibration.json", "engine.engine", "manifest.json", "steps.json"}
VERDICT_FILES = {"drift.json", "logits.npz", "flips.npz"}


@pytest.fixture(scope="session")
def rtx(tmp_path_factory):
    """A project with a finished INT8 build for `rtx`, batch 1 to 8, and its bundle of 24 images. Copy it before changing it.

    The network of seed 4 sees ants and eels in its images, two to one, so that wrong answers show.
    """
    import torch

    from edge.model.checkpoint import random_network

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, TINY.name, TINY)
        folder = make_project(tmp_path_factory.mktemp("rtx"), random_network(TINY, 4), TINY)
        assert build(folder, "--batch", "1,2,8", "--target", "rtx", "--max-drop", "15", out="rtx") == 0
        assert pack(folder) == 0
    assert np.bincount(np.load(folder / "rtx/logits.npz")["labels"]).max() < 60
    return folder


@pytest.fixture
def project(rtx, tmp_path, tiny_size):
    """A writable copy of it."""
    shutil.copytree(rtx, tmp_path, dirs_exist_ok=True)
    return tmp_path


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


def test_pixels(folder):
    """The test images of the project, read from the IDX file with gzip alone."""
    import gzip

    data = gzip.decompress((folder / "test/images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)


test_pixels.__test__ = False


def as_network_sees(image, mean=0.5, std=0.25, size=32):
    """uint8 (H, W) or (H, W, 3) -> float32 (3, S, S) by Pillow: resized in floats, the centre cut out, normalised."""
    channels = image[..., None].repeat(3, axis=2) if image.ndim == 2 else image.repeat(3 // image.shape[2], axis=2)
    height, width = image.shape[:2]
    resized = [round(side * size / min(height, width)) for side in (width, height)]
    planes = [Image.fromarray(channels[..., c].astype(np.float32)).resize(resized, Image.Resampling.BILINEAR) for c in range(3)]
    left, top = ((side - size) // 2 for side in resized)
    cut = np.stack([np.asarray(plane)[top : top + size, left : left + size] for plane in planes])
    return ((cut / 255 - mean) / std).astype(np.float32)


def answers(path, tensors):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.stack(tensors)})[0]


def test_a_bundle_holds_what_the_build_and_the_images_are(rtx):
    found, manifest = contents(rtx / "b.ufovit"), json_of(rtx / "rtx/manifest.json")
    assert set(found) == {"bundle.json", "manifest.json", GRAPH, "calibration.json", "xnorm.json", *ARRAYS}
    with zipfile.ZipFile(rtx / "b.ufovit") as archive:
        for file in ("manifest.json", GRAPH, "calibration.json", "xnorm.json"):
            assert archive.read(file) == (rtx / "rtx" / file).read_bytes(), file
    chosen = np.linspace(0, 79, IMAGES).round().astype(int)
    pixels, labels = test_pixels(rtx)[chosen], np.load(rtx / "rtx/logits.npz")["labels"][chosen]
    assert np.array_equal(found["pixels.npy"], pixels.ravel())
    assert found["shapes.npy"].tolist() == [[28, 28, 1]] * IMAGES
    assert np.array_equal(found["labels.npy"], labels)
    tensors = [as_network_sees(image) for image in pixels]
    np.testing.assert_allclose(found["golden.npy"], tensors[0], atol=1e-4)
    np.testing.assert_allclose(found["logits.npy"], answers(rtx / "rtx/model.onnx", tensors), rtol=1e-3, atol=1e-3)
    assert {name: str(found[name].dtype) for name in ARRAYS} == dict(
        zip(ARRAYS, ("uint8", "int64", "int64", "float32", "float32"), strict=True)
    )
    info = found["bundle.json"]
    same = ("model", "precision", "batch", "int8_floor", "random_weights")
    assert {name: info[name] for name in same} == {name: manifest[name] for name in same}
    assert (info["graph"], info["budget_points"]) == (GRAPH, json_of(rtx / "rtx/drift.json")["budget_points"])
    assert info["reference"] == manifest["onnx"]
    assert info["members"][GRAPH]["sha256"] == manifest["typed_onnx"]["sha256"] == sha256(rtx / "rtx" / GRAPH)


def test_facts_of_the_graph_are_those_of_onnx(rtx):
    facts, graph = contents(rtx / "b.ufovit")["bundle.json"]["facts"], onnx.load(rtx / "rtx" / GRAPH).graph
    multiplying = [node.name for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert [layer["name"] for layer in facts["layers"]] == multiplying == facts["traceable"]
    assert (facts["input"]["name"], facts["output"]["name"]) == (graph.input[0].name, graph.output[0].name)
    assert facts["input"]["shape"] == [-1, 3, 32, 32]


def test_the_same_build_and_images_give_the_same_bytes(project):
    for out in ("first.ufovit", "again.ufovit"):
        assert pack(project, out=out) == 0
    assert sha256(project / "again.ufovit") == sha256(project / "first.ufovit")
    assert pack(project, "--images", "23", out="again.ufovit") == 0
    assert sha256(project / "again.ufovit") != sha256(project / "first.ufovit")


@pytest.fixture
def photos(tmp_path):
    """Colour pictures larger and smaller than twice what the network sees, a folder per class."""
    rng, folder = np.random.default_rng(3), tmp_path / "photos"
    sizes = [(200, 150), (64, 64), (65, 300), (40, 31), (500, 129)]
    for (height, width), label in zip(sizes, LABELS, strict=True):
        blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
        (folder / label).mkdir(parents=True)
        Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]).save(folder / label / "a.png")
    return folder


def test_large_images_are_stored_smaller_and_the_answers_are_those_to_the_stored_ones(project, photos):
    assert pack(project, "--data", str(photos), out="photos.ufovit") == 0
    found, start, stored = contents(project / "photos.ufovit"), 0, []
    for height, width, channels in found["shapes.npy"]:
        stored.append(found["pixels.npy"][start : start + height * width * channels].reshape(height, width, channels))
        start += stored[-1].size
    for label, image in zip(LABELS, stored, strict=True):
        original = Image.open(photos / label / "a.png")
        shorter = min(original.size)
        size = tuple(round(side * 64 / shorter) for side in original.size) if shorter > 64 else original.size
        expected = np.asarray(original.resize(size, Image.Resampling.BILINEAR) if shorter > 64 else original)
        assert np.array_equal(image, expected), label
        assert min(image.shape[:2]) == min(64, shorter)
    tensors = [as_network_sees(image) for image in stored]
    np.testing.assert_allclose(found["logits.npy"], answers(project / "rtx/model.onnx", tensors), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["golden.npy"], tensors[0], atol=1e-4)
    assert not np.allclose(tensors[0], tensors[0][::-1], atol=0.1), "red and blue differ, or the next test shows nothing"


def refused_to_pack(folder, capsys, *says, **options):
    before = sorted(p.name for p in folder.iterdir())
    assert pack(folder, out="new.ufovit", **options) == 2
    error = capsys.readouterr().err
    assert [text for text in says if text not in error] == [], error
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_build_for_a_cpu_is_refused(project, built, capsys):
    shutil.copytree(built / "out", project / "cpu")
    refused_to_pack(
        project, capsys, "not typed for a GPU", "target cpu", "ufovit build ufovit_tiny int8 --target rtx", source="cpu"
    )


@pytest.mark.parametrize(
    "file",
    ["model.onnx", GRAPH, "calibration.json", "xnorm.json", "engine.engine", "manifest.json", "drift.json", "steps.json"],
)
def test_a_build_whose_files_were_changed_is_refused(project, capsys, file):
    path = project / "rtx" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused_to_pack(project, capsys, file)


@pytest.mark.parametrize("file", [GRAPH, "manifest.json", "drift.json", "steps.json"])
def test_a_build_whose_files_are_missing_is_refused(project, capsys, file):
    (project / "rtx" / file).unlink()
    refused_to_pack(project, capsys, file if file != "steps.json" else "")


def test_images_that_do_not_fit_are_refused(project, capsys):
    before = sorted(p.name for p in project.iterdir())
    assert run(["bundle", str(project / "rtx"), "--out", str(project / "new.ufovit")]) == 2
    assert "do not have this checkpoint's labels" in capsys.readouterr().err
    assert pack(project, "--data", str(project / "none"), out="new.ufovit") == 2
    assert sorted(p.name for p in project.iterdir()) == before


def test_a_bundle_is_a_file(project, capsys):
    assert pack(project, out="rtx") == 2
    assert "a bundle is a file" in capsys.readouterr().err
    (project / "b.ufovit").unlink()
    assert run(["bundle", str(project / "rtx"), "--data", str(project / "test")]) == 0
    assert (project / "rtx.ufovit").is_file(), "beside the build, by default"


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


@pytest.fixture
def on_a_gpu(project, monkeypatch):
    """on_a_gpu(change): engines "run": their graph answers on the CPU, and `change` is made to its logits."""

    def become(change=lambda logits: logits):
        from edge.runtime.ort_runner import emulated_runner

        graph = emulated_runner(onnx.load(project / "rtx" / GRAPH), Path(GRAPH))
        runner = Injected(lambda images: change(graph(images)))
        monkeypatch.setattr("edge.pipeline.build_from_bundle.open_engine", lambda _folder: runner)
        return runner

    return become


@pytest.fixture
def without_a_gpu(monkeypatch):
    def refuse(*_arguments, **_options):
        raise MissingError("no CUDA device can be used")

    monkeypatch.setattr("edge.runtime.open_device.open_device", refuse)


def files(folder):
    return {p.name for p in folder.iterdir()} - {".lock"}


def test_a_device_builds_and_judges(project, on_a_gpu, capsys):
    runner = on_a_gpu()
    assert device(project) == 0
    out = capsys.readouterr().out
    assert "PASS" in out
    assert "engine itself" in out
    folder, source = project / "device", json_of(project / "rtx/manifest.json")
    assert files(folder) == DEVICE_FILES | VERDICT_FILES
    manifest, drift = json_of(folder / "manifest.json"), json_of(folder / "drift.json")
    assert manifest["bundle"] == {"file": "b.ufovit", "sha256": sha256(project / "b.ufovit")}
    assert manifest["engine"]["sha256"] == drift["engine"]["sha256"] == sha256(folder / "engine.engine")
    assert manifest["engine"]["bytes"] == (folder / "engine.engine").stat().st_size
    traced = ("model", "precision", "checkpoint", "onnx", "xnorm", "folded_onnx", "refined_onnx", "qdq_onnx", "typed_onnx")
    traced += ("calibration", "preprocess", "labels", "batch", "int8_floor", "input", "output", "random_weights")
    assert {name: manifest[name] for name in traced} == {name: source[name] for name in traced}
    assert manifest["receipt"] == source["receipt"], "the same graph, the same builder"
    assert manifest["notes"] == ["built from a bundle"]
    for record in ("typed_onnx", "xnorm", "calibration"):
        assert manifest[record]["sha256"] == sha256(folder / manifest[record]["file"])
    assert drift["reference"]["sha256"] == source["onnx"]["sha256"]
    assert drift["preprocess_sha256"] == source["preprocess"]["sha256"]
    packed, logits = contents(project / "b.ufovit"), np.load(folder / "logits.npz")
    assert np.array_equal(logits["reference"], packed["logits.npy"])
    assert np.array_equal(logits["labels"], packed["labels.npy"])
    assert drift["images"] == IMAGES == sum(runner.batches)
    assert drift["agreement"] == np.mean(logits["engine"].argmax(1) == packed["logits.npy"].argmax(1))
    assert drift["top1_engine"] == np.mean(logits["engine"].argmax(1) == packed["labels.npy"])
    assert max(runner.batches) <= 8
    assert [check.status for check in verify_folder(BuildFolder(folder)).files] == ["ok"] * 10
    golden = np.load(folder / "golden.npz")
    assert np.array_equal(golden["tensor"], packed["golden.npy"])
    assert np.array_equal(golden["pixels"].ravel(), packed["pixels.npy"][: golden["pixels"].size])


@pytest.mark.slow
def test_a_second_run_reuses_every_step_and_a_changed_bundle_runs_them_again(project, on_a_gpu, capsys):
    on_a_gpu()
    assert device(project) == 0
    before = {
        name: (sha256(project / "device" / name), (project / "device" / name).stat().st_mtime_ns) for name in DEVICE_FILES
    }
    shutil.copy(project / "b.ufovit", project / "renamed.ufovit")
    for bundle in ("b.ufovit", "renamed.ufovit"):
        capsys.readouterr()
        assert device(project, bundle=bundle) == 0
        assert capsys.readouterr().out.count("unchanged, reused") == 3
    assert before == {
        name: (sha256(project / "device" / name), (project / "device" / name).stat().st_mtime_ns) for name in DEVICE_FILES
    }
    assert pack(project, "--images", "23") == 0
    capsys.readouterr()
    assert device(project) == 0
    assert "reused" not in capsys.readouterr().out
    assert json_of(project / "device/drift.json")["images"] == 23
    assert json_of(project / "device/manifest.json")["bundle"]["sha256"] == sha256(project / "b.ufovit")
    assert device(project, "--force") == 0
    assert "reused" not in capsys.readouterr().out


@pytest.mark.slow
def test_another_gpu_judges_anew(project, on_a_gpu, monkeypatch, capsys):
    on_a_gpu()
    for gpus, ran in ((("8.6",), 3), (("8.6",), 0), (("8.9",), 1)):
        monkeypatch.setattr(
            "edge.pipeline.build_from_bundle.gpus", lambda gpus=gpus: tuple(Gpu("a GPU", capability) for capability in gpus)
        )
        capsys.readouterr()
        assert device(project) == 0
        assert capsys.readouterr().out.count("unchanged, reused") == 3 - ran


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda logits: np.roll(logits, 1, axis=1), id="classes swapped"),
        pytest.param(np.zeros_like, id="zeros"),
        pytest.param(lambda logits: -logits, id="negated"),
        pytest.param(lambda logits: np.full_like(logits, np.nan), id="NaN"),
        pytest.param(lambda logits: np.where(np.arange(len(logits))[:, None] == 0, np.inf, logits), id="one infinite"),
        pytest.param(lambda logits: logits[::-1].copy(), id="images swapped"),
    ],
)
def test_a_broken_engine_fails(project, on_a_gpu, capsys, change):
    on_a_gpu(change)
    assert device(project) == 1
    assert "FAIL" in capsys.readouterr().out
    assert json_of(project / "device/drift.json")["verdict"] == "fail"


def test_an_engine_is_given_batches_that_it_takes(project, on_a_gpu):
    """24 images, 10 to a batch, none smaller than 10: the last four are filled up, and only four answers count."""
    alter(project, batch=(10, 10, 10))
    runner = on_a_gpu()
    assert device(project) == 0
    assert runner.batches == [10, 10, 10]
    engine = np.load(project / "device/logits.npz")["engine"]
    assert engine.shape == (IMAGES, len(LABELS))
    np.testing.assert_allclose(engine, np.load(project / "device/logits.npz")["reference"], atol=0.5 * np.abs(engine).max())


@pytest.mark.slow
def test_without_a_gpu_the_engine_and_its_receipt_are_there_and_no_verdict(project, without_a_gpu, on_a_gpu, capsys):
    for reused in (0, 2):
        assert device(project) == 3
        captured = capsys.readouterr()
        assert "its drift is not known" in captured.err
        assert "80." in captured.out.partition("receipt")[2], "the receipt is shown"
        assert "verdict" not in captured.out
        assert captured.out.count("unchanged, reused") == reused
        assert files(project / "device") == DEVICE_FILES
    receipt = json_of(project / "device/manifest.json")["receipt"]
    assert receipt == json_of(project / "rtx/manifest.json")["receipt"]
    on_a_gpu()
    assert device(project) == 0
    assert files(project / "device") == DEVICE_FILES | VERDICT_FILES


@pytest.mark.slow
def test_a_verdict_does_not_outlive_the_gpu_that_gave_it(project, on_a_gpu, monkeypatch):
    with monkeypatch.context():
        on_a_gpu()
        assert device(project) == 0
    monkeypatch.undo()
    monkeypatch.setitem(SIZES, TINY.name, TINY)
    monkeypatch.setattr("edge.runtime.open_device.open_device", lambda *_a, **_k: (_ for _ in ()).throw(MissingError("none")))
    assert device(project, "--force") == 3
    assert files(project / "device") == DEVICE_FILES


def alter(folder, *, members=None, manifest=None, name="b.ufovit", **info):
    """Write the bundle anew, whole and sealed, with other members (arrays or bytes), manifest.json and bundle.json."""
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


def test_an_altered_bundle_with_nothing_altered_is_accepted(project, on_a_gpu):
    """The control of the refusals below."""
    alter(project)
    on_a_gpu()
    assert device(project) == 0


def preprocess_fields(**changes):
    made = Preprocess(**{"image_size": 32, "resize": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3, **changes})
    return {"preprocess": {**json.loads(json.dumps(made.as_json())), "sha256": made.sha256}}


@pytest.mark.parametrize(
    "changes", [{"mean": (0.5, 0.5, 0.49)}, {"std": (0.25, 0.26, 0.25)}, {"resize": 33}, {"image_size": 31}], ids=str
)
def test_another_preprocessing_than_the_golden_tensors_is_a_verdict(project, capsys, changes):
    alter(project, manifest=preprocess_fields(**changes))
    refused(project, capsys, 1, "preprocesses images in another way", "golden.npy")


@pytest.mark.slow
def test_bgr_for_rgb_is_a_verdict(project, photos, capsys, on_a_gpu):
    assert pack(project, "--data", str(photos)) == 0
    golden = contents(project / "b.ufovit")["golden.npy"]
    alter(project, members={"golden.npy": golden[::-1].copy()})
    refused(project, capsys, 1, "preprocesses images in another way")
    alter(project, members={"golden.npy": golden})
    on_a_gpu()
    assert device(project, "--force") in (0, 3), "five images may be too few to say, but they are the right ones"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda golden: golden + np.float32(1e-3), 1),
        (lambda golden: golden * np.nan, 1),
        (lambda golden: golden[:, :31], 1),
        (lambda golden: golden[::-1, :, ::-1].copy(), 1),
        (lambda golden: golden + np.float32(1e-6), 0),
    ],
)
def test_the_golden_tensor_may_differ_by_rounding_only(project, capsys, on_a_gpu, change, code):
    alter(
        project, members={"golden.npy": np.ascontiguousarray(change(contents(project / "b.ufovit")["golden.npy"]), np.float32)}
    )
    if code:
        refused(project, capsys, code, "largest difference")
    else:
        on_a_gpu()
        assert device(project) == 0


def another(name, **changes):
    """A change of the manifest's record of a file."""
    return lambda folder: {name: {**json_of(folder / "rtx/manifest.json")[name], **changes}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "ufovit_t"}, ["mixes two builds", "model"]),
        ({"precision": "fp16"}, ["mixes two builds", "precision"]),
        ({"random_weights": True}, ["mixes two builds", "random_weights"]),
        ({"manifest": {"batch": [1, 1, 1]}}, ["mixes two builds", "batch"]),
        ({"manifest": {"int8_floor": 0.1}}, ["mixes two builds", "int8_floor"]),
        ({"manifest": another("typed_onnx", sha256="0" * 64)}, ["mixes two builds", GRAPH]),
        ({"manifest": another("calibration", sha256="0" * 64)}, ["mixes two builds", "calibration.json"]),
        ({"manifest": another("xnorm", file="../xnorm.json")}, ["mixes two builds", "xnorm.json"]),
        ({"manifest": another("onnx", sha256="0" * 64)}, ["mixes two builds", "reference"]),
        ({"manifest": {"typed_onnx": None}}, ["mixes two builds"]),
        ({"members": {GRAPH: b"another graph"}}, ["mixes two builds", GRAPH]),
        ({"members": {"xnorm.json": None}}, ["mixes two builds", "xnorm.json"]),
        ({"members": {"manifest.json": b"{}"}}, ["manifest.json"]),
        ({"members": {"manifest.json": b"[]"}}, ["manifest.json"]),
        ({"manifest": {"preprocess": {}}}, ["preprocess"]),
        ({"manifest": {"preprocess": {"image_size": 32, "resize": 32, "mean": 1, "std": 1, "sha256": ""}}}, ["preprocess"]),
        ({"batch": (0, 1, 1)}, ["batch sizes do not fit"]),
        ({"int8_floor": 2.0}, ["INT8 floor"]),
        ({"budget_points": -1.0}, ["accuracy budget"]),
    ],
)
def test_a_bundle_that_does_not_fit_together_is_refused(project, capsys, changes, says):
    if callable(changes.get("manifest")):
        changes = {**changes, "manifest": changes["manifest"](project)}
    alter(project, **changes)
    refused(project, capsys, 2, *says)


def header(array, **changes):
    """An array as numpy.save writes it, with other fields in its header."""
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}
    text = ("{" + "".join(f"'{k}': {v!r}, " for k, v in fields.items()) + "}").encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n" + array.tobytes()


ONES = np.ones(IMAGES, np.int64)
SHAPES = np.full((IMAGES, 3), (28, 28, 1), np.int64)
LOGITS = np.zeros((IMAGES, len(LABELS)), np.float32)


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("labels.npy", ONES * 5, "a label is no class"),
        ("labels.npy", -ONES, "a label is no class"),
        ("labels.npy", ONES[:-1], "do not match"),
        ("labels.npy", ONES[:0], "do not match"),
        ("labels.npy", ONES.astype(np.int32), "another array"),
        ("labels.npy", ONES[None], "another array"),
        ("labels.npy", ONES.astype(">i8"), "another array"),
        ("logits.npy", LOGITS * np.nan, "NaN"),
        ("logits.npy", LOGITS + np.inf, "NaN or Inf"),
        ("logits.npy", LOGITS[:, :-1], "do not match"),
        ("logits.npy", LOGITS.astype(np.float64), "another array"),
        ("shapes.npy", SHAPES * 2, "do not match"),
        ("shapes.npy", SHAPES * [[-1, -1, 1]], "do not match"),
        ("shapes.npy", SHAPES[:, :2], "do not match"),
        ("shapes.npy", np.full((IMAGES, 3), 1 << 42, np.int64), "do not match"),
        ("shapes.npy", np.array([[1 << 32, 1 << 32, 1]] + [[28, 28, 1]] * (IMAGES - 1), np.int64), "do not match"),
        ("shapes.npy", SHAPES * [[1, 0, 1]], "do not match"),
        ("pixels.npy", np.zeros(IMAGES * 784 - 1, np.uint8), "do not match"),
        ("pixels.npy", np.zeros(IMAGES * 784, np.int8), "another array"),
        ("pixels.npy", b"", "no array"),
        ("pixels.npy", b"PK\3\4" + bytes(100), "no array"),
        ("pixels.npy", b"\x80\x04K\x01.", "no array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), shape=(10**11,)), "another array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), shape=(10**30,)), "no array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), fortran_order=True), "no array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), descr="|O"), "no array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), descr="|V9"), "another array"),
        ("pixels.npy", header(np.zeros(8, np.uint8), descr=[("a", "|u1")]), "no array"),
        ("pixels.npy", b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000, "no array"),
        ("golden.npy", np.zeros((3, 32), np.float32), "another array"),
    ],
)
def test_arrays_that_are_not_what_they_should_be_are_refused(project, capsys, member, value, says):
    alter(project, members={member: value})
    refused(project, capsys, 2, member if "do not match" not in says else "b.ufovit", says)


def test_sizes_that_overflow_64_bits_are_refused(project, capsys):
    """2^32 x 2^32 pixels are none, modulo 2^64: an image that would cost nothing."""
    shapes = np.array([[1 << 32, 1 << 32, 1], *SHAPES[1:].tolist()], np.int64)
    alter(project, members={"shapes.npy": shapes, "pixels.npy": np.zeros((IMAGES - 1) * 784, np.uint8)})
    refused(project, capsys, 2, "do not match")


@pytest.mark.slow
def test_the_headers_above_are_numpys_own(project, on_a_gpu):
    """Control: `header` with nothing changed is what numpy reads and the device accepts."""
    pixels = contents(project / "b.ufovit")["pixels.npy"]
    assert np.array_equal(np.load(io.BytesIO(header(pixels))), pixels)
    alter(project, members={"pixels.npy": header(pixels)})
    on_a_gpu()
    assert device(project) == 0


def test_a_flipped_byte_is_refused_and_named(project, capsys):
    path = project / "b.ufovit"
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = {i.filename: i.header_offset + 30 + len(i.filename) + i.compress_size // 2 for i in archive.infolist()}
    assert len(places) == 10
    for member, place in places.items():
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        refused(project, capsys, 2, member)
    path.write_bytes(good[:-1])
    refused(project, capsys, 2, "b.ufovit")


def test_a_member_that_is_not_the_listed_one_is_refused_before_anything_is_written(project, capsys):
    """Another graph in an archive that is whole and sealed, under the old bundle.json."""
    path = project / "b.ufovit"
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries:
            archive.writestr(entry, data[::-1] if entry.filename == GRAPH else data)
        archive.comment = b"0" * 64
    body = path.read_bytes()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    refused(project, capsys, 2, GRAPH, "not the one that was recorded")


def test_what_a_bundle_answers_is_not_asked_again(project, capsys):
    arguments = ["build", "--bundle", str(project / "b.ufovit"), "--target", "rtx", "--out", str(project / "device")]
    for extra, says in (
        (["ufovit_tiny", "int8"], "MODEL, PRECISION"),
        (["--max-drop", "0.5"], "--max-drop"),
        (["--data", "x", "--calib-data", "y"], "--data, --calib-data"),
        (["--batch", "1"], "--batch"),
        (["--random-weights"], "--random-weights"),
        (["--backend", "torch-tensorrt"], "--backend"),
    ):
        assert run([*arguments, *extra]) == 2
        error = capsys.readouterr().err
        assert "--bundle says what is built" in error
        assert [name for name in says.split(", ") if name not in error] == [], error
    assert run(["build"]) == 2
    assert "MODEL and PRECISION are missing" in capsys.readouterr().err
    assert not (project / "device").exists()


@pytest.mark.parametrize(
    ("target", "options", "code", "says"),
    [
        ("cpu", [], 2, "a bundle holds a graph for GPUs"),
        ("orin-nano", [], 4, "orin-nano must be built on the Orin Nano itself"),
        ("xavier-nx", [], 2, "not supported"),
        ("toaster", [], 2, "unknown target"),
        ("rtx", ["--workspace", "100"], 2, "--workspace"),
        ("rtx", ["--version-compatible"], 2, "--version-compatible"),
        ("rtx", ["--hardware-compatibility", "ampere_plus"], 2, "--hardware-compatibility"),
        ("rtx", ["--pin-timing-cache"], 2, "--pin-timing-cache"),
        ("rtx", ["--timing-cache", "x"], 2, "--timing-cache"),
        ("rtx", ["--optimization-level", "6"], 2, "optimization level"),
        ("rtx", ["--hardware-compatibility", "all"], 2, "for --hardware-compatibility"),
    ],
)
def test_targets_and_options_that_do_not_fit(project, capsys, monkeypatch, target, options, code, says):
    monkeypatch.setattr("engines.hardware.jetson_module", lambda: "")
    assert device(project, *options, target=target) == code
    assert says in capsys.readouterr().err
    assert not (project / "device").exists()


@pytest.mark.slow
def test_rtx_knows_one_option(project, on_a_gpu):
    on_a_gpu()
    assert device(project, "--optimization-level", "1") == 0


def test_a_file_that_is_no_bundle(project, capsys):
    for path, says in (
        ("none.ufovit", "bundle not found"),
        ("tiny.safetensors", "not a bundle"),
        ("rtx", "a bundle is a file"),
    ):
        refused(project, capsys, 2, says, bundle=path)


@pytest.mark.slow
def test_an_earlier_device_build_survives_what_is_refused(project, on_a_gpu, monkeypatch, capsys):
    """A library that is missing, a bundle that is damaged, preprocessing that differs: all found before anything is removed."""
    on_a_gpu()
    assert device(project) == 0
    before = {name: sha256(project / "device" / name) for name in files(project / "device")}
    good = (project / "b.ufovit").read_bytes()
    (project / "b.ufovit").write_bytes(good[:1000] + b"\0" + good[1001:])
    assert device(project) == 2
    (project / "b.ufovit").write_bytes(good)
    alter(project, manifest=preprocess_fields(mean=(0.4, 0.5, 0.5)))
    assert device(project) == 1
    (project / "b.ufovit").write_bytes(good)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert device(project, "--force") == 4
    assert "ufovit-edge[rtx]" in capsys.readouterr().err
    assert {name: sha256(project / "device" / name) for name in files(project / "device")} == before


def test_a_receipt_below_the_declared_share_ends_with_1_and_no_engine(project, capsys):
    alter(project, int8_floor=0.9)
    assert device(project) == 1
    error = capsys.readouterr().err
    assert "the INT8 share of the engine is below its floor" in error
    assert "stem.0/Conv: fp16" in error
    assert files(project / "device") == DEVICE_FILES - {"engine.engine", "manifest.json"}


@pytest.mark.slow
def test_random_weights_stay_stamped(project, on_a_gpu, capsys):
    alter(project, random_weights=True, manifest={"random_weights": True})
    on_a_gpu()
    assert device(project) == 0
    assert "RANDOM WEIGHTS" in capsys.readouterr().out
    manifest, drift = json_of(project / "device/manifest.json"), json_of(project / "device/drift.json")
    assert "RANDOM WEIGHTS" in manifest["notes"][0]
    assert (manifest["random_weights"], drift["random_weights"], drift["judged_by"]) == (True, True, "numbers")


@pytest.mark.slow
def test_a_bundle_of_a_device_build_is_refused(project, on_a_gpu, capsys):
    on_a_gpu()
    assert device(project) == 0
    refused_to_pack(project, capsys, "itself made from a bundle", "b.ufovit", source="device")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.slow
def test_float_builds_go_the_same_way(project, without_a_gpu, precision):
    assert run(command(project, precision=precision, target="rtx", out=project / precision, int8_floor=None)) == 0
    assert pack(project, source=precision, out=f"{precision}.ufovit") == 0
    expected = {"fp32": {"model.onnx"}, "fp16": {GRAPH, "xnorm.json"}}[precision]
    assert set(contents(project / f"{precision}.ufovit")) == {"bundle.json", "manifest.json", *ARRAYS, *expected}
    assert device(project, bundle=f"{precision}.ufovit") == 3
    assert files(project / "device") == expected | {"engine.engine", "golden.npz", "manifest.json", "steps.json"}
    found, source = (json_of(project / folder / "manifest.json")["receipt"] for folder in ("device", precision))
    assert found == source


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = {roots!r}
    import onnx
    from edge.runtime.ort_runner import emulated_runner
    from test_bundle import Injected
    import edge.pipeline.build_from_bundle
    graph = emulated_runner(onnx.load({graph!r}), Path("graph"))
    edge.pipeline.build_from_bundle.open_engine = lambda _folder: Injected(graph)
    renames, replace = [], Path.replace
    def replace_or_die(self, target):
        renames.append(target)
        if len(renames) == {nth}:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)
    Path.replace = replace_or_die
    from edge.cli import run
    sys.exit(run(sys.argv[1:]))
""")


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends_the_same(project, on_a_gpu):
    """SIGKILL at the first rename, then at the second of what is left, and so on: the last run finishes."""
    on_a_gpu()
    assert device(project, out="whole") == 0
    arguments = ["build", "--bundle", str(project / "b.ufovit"), "--target", "rtx", "--out", str(project / "device")]
    codes = []
    for nth in range(1, 20):
        text = KILLED.format(
            roots=[str(SUPPORT), str(ROOT), str(Path(__file__).parent)], graph=str(project / "rtx" / GRAPH), nth=nth
        )
        codes.append(subprocess.run([sys.executable, "-c", text, *arguments], check=False, capture_output=True).returncode)
        verdict = files(project / "device") & VERDICT_FILES if (project / "device").exists() else set()
        assert not verdict or (project / "device/engine.engine").exists(), "no verdict about an engine that is not there"
        if codes[-1] != -signal.SIGKILL:
            break
    assert codes[-1] == 0
    assert codes.count(-signal.SIGKILL) >= 4
    assert files(project / "device") == files(project / "whole")
    for file in (GRAPH, "xnorm.json", "calibration.json"):
        assert sha256(project / "device" / file) == sha256(project / "whole" / file)
    assert verify_folder(BuildFolder(project / "device")).problem is None


BARE = ("numpy", "cyclopts", "rich", "tensorrt_rtx")
ABSENT = ("onnx", "onnxruntime", "torch", "PIL", "scipy", "matplotlib", "jinja2", "safetensors", "cryptography", "pycuda")


def with_requirements(*names):
    """Installed distributions of these names, and of all that they require."""
    found, left = {}, list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # required on another system only
            continue
        left += [re.match(r"[\w.-]+", text)[0] for text in found[name].requires or () if "extra ==" not in text]
    return found.values()


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """An interpreter that finds numpy, cyclopts, rich and TensorRT-RTX, what these require, the toolkit, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    site = folder / "site"
    site.mkdir()
    for distribution in with_requirements(*BARE):
        for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(distribution.locate_file(top))
    for package in ("calib", "engines", "edge"):
        (site / package).symlink_to(ROOT / package)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": str(folder)}

    def python(*arguments):
        command = [str(folder / "env/bin/python"), "-B", *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False)

    return python


UFOVIT = "import sys; from edge.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.slow
def test_a_device_needs_numpy_and_tensorrt_only(rtx, bare_python, tmp_path):
    for name in ABSENT:
        done = bare_python("-c", f"import {name}")
        assert done.returncode == 1, name
        assert f"No module named '{name}'" in done.stderr, "the environment really lacks it"
    out = tmp_path / "device"
    arguments = ("-c", UFOVIT, "build", "--bundle", rtx / "b.ufovit", "--target", "rtx", "--out", out)
    done = bare_python(*arguments)
    assert done.returncode == 3, done.stderr  # no GPU runs it, for lack of pycuda if not of a GPU
    assert "its drift is not known" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(out) == DEVICE_FILES
    manifest, source = json_of(out / "manifest.json"), json_of(rtx / "rtx/manifest.json")
    assert manifest["receipt"] == source["receipt"]
    assert manifest["receipt"]["int8_mac_fraction"] > 0.8
    assert manifest["engine"]["sha256"] == sha256(out / "engine.engine")
    assert manifest["bundle"]["sha256"] == sha256(rtx / "b.ufovit")
    again = bare_python(*arguments)
    assert again.returncode == 3
    assert again.stdout.count("unchanged, reused") == 2
    for command_line, code in ((("inspect", out / "manifest.json"), 0), (("verify", out), 0), (("doctor",), 0)):
        done = bare_python("-c", UFOVIT, *command_line)
        assert done.returncode == code, (command_line, done.stderr)
    done = bare_python("-c", UFOVIT, "bundle", rtx / "rtx", "--data", rtx / "test", "--out", tmp_path / "new.ufovit")
    assert done.returncode == 4, "bundles are made where the build was"
    assert "is not installed" in done.stderr
    damaged = tmp_path / "damaged.ufovit"
    data = (rtx / "b.ufovit").read_bytes()
    damaged.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    done = bare_python("-c", UFOVIT, "build", "--bundle", damaged, "--target", "rtx", "--out", tmp_path / "other")
    assert done.returncode == 2
    assert not (tmp_path / "other").exists()
