"""`ufovit calibrate` as a user runs it: exit codes, sentences, files, and nothing else left behind.

The network is made here: a Conv, GELU, LayerNormalization, two linear layers and a head, with weights drawn from a seed.
Oracles: ONNX Runtime on the written files, multiply-accumulates counted by hand, JSON and struct on the table and the cache.
"""

import errno
import json
import os
import re
import struct
import tempfile

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_network import TINY
from tiny_project import LABELS, sha256

from calib.lint import lint_graph
from edge.cli import run
from edge.images.idx import write_idx
from edge.images.preprocess import Preprocess
from edge.model.metadata import CheckpointInfo, write_graph_info

FILES = ["calibration.cache", "calibration.json", "model.int8.onnx", "model.refined.onnx"]
CHANNELS, HIDDEN, CLASSES, SIZE = 16, 32, 5, 16
MACS = {"stem": 16 * CHANNELS * 48, "fc1": 16 * CHANNELS * HIDDEN, "fc2": 16 * HIDDEN * CHANNELS, "head": CHANNELS * CLASSES}
MEAN, STD = 0.5, 0.25


def network(path, seed=0, size=SIZE, batch="batch", outlier=0.0, info=None):
    """Saves image (batch, 3, size, size) -> logits (batch, 5).

    A channel of the hidden layer is `outlier`, and weighs nothing in what reads it.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "stem.w": rng.normal(size=(CHANNELS, 3, 4, 4)) / 7,
        "stem.b": rng.normal(size=CHANNELS) / 8,
        "norm.g": rng.uniform(0.5, 2, CHANNELS),
        "norm.b": rng.normal(size=CHANNELS) / 8,
        "fc1.w": rng.normal(size=(CHANNELS, HIDDEN)) / 4,
        "fc1.b": rng.normal(size=HIDDEN) / 8,
        "fc2.w": rng.normal(size=(HIDDEN, CHANNELS)) / 2,
        "head.w": rng.normal(size=(CHANNELS, CLASSES)) / 2,
        "head.b": rng.normal(size=CLASSES) / 8,
    }
    if outlier:
        weights["fc1.b"][0], weights["fc2.w"][0] = outlier, 0
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "stem.w", "stem.b"], ["stem"], name="stem", strides=[4, 4], kernel_shape=[4, 4]),
        node("Gelu", ["stem"], ["act"], name="act"),
        node("Reshape", ["act", "shape"], ["flat"], name="flat"),
        node("Transpose", ["flat"], ["tokens"], name="transpose", perm=[0, 2, 1]),
        node("LayerNormalization", ["tokens", "norm.g", "norm.b"], ["normed"], name="norm", axis=-1),
        node("MatMul", ["normed", "fc1.w"], ["fc1"], name="fc1"),
        node("Add", ["fc1", "fc1.b"], ["fc1+b"], name="add"),
        node("Relu", ["fc1+b"], ["hidden"], name="relu"),
        node("MatMul", ["hidden", "fc2.w"], ["fc2"], name="fc2"),
        node("Add", ["fc2", "tokens"], ["sum"], name="residual"),
        node("ReduceMean", ["sum", "axes"], ["pooled"], name="pool", keepdims=0),
        node("Gemm", ["pooled", "head.w", "head.b"], ["logits"], name="head"),
    ]
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    constants += [numpy_helper.from_array(np.array(v), k) for k, v in (("shape", [0, CHANNELS, -1]), ("axes", [1]))]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *sides])
        for name, sides in (("image", (3, size, size)), ("logits", (CLASSES,)))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if info is not None:
        write_graph_info(model, info)
    onnx.save(model, path)
    return path


def edited(source, path, change):
    model = onnx.load(source)
    change(model)
    onnx.save(model, path)
    return path


def logits(path, images):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`net.onnx`, 96 `images.npy`, and 200 `test.npy` with the network's own answers as `labels.npy`."""
    folder = tmp_path_factory.mktemp("world")
    network(folder / "net.onnx")
    rng = np.random.default_rng(1)
    for name, count in (("images", 96), ("test", 200)):
        np.save(folder / f"{name}.npy", rng.normal(size=(count, 3, SIZE, SIZE)).astype(np.float32))
    np.save(folder / "labels.npy", logits(folder / "net.onnx", np.load(folder / "test.npy")).argmax(1))
    return folder


@pytest.fixture
def calibrate(world, tmp_path):
    """calibrate(*options, graph=, images=, out=) -> exit code; 64 of the 96 images calibrate unless told otherwise."""

    def call(*options, graph=world / "net.onnx", images=world / "images.npy", out=tmp_path / "out", effort="fast"):
        given = [] if images is None else ["--images", images]
        chosen = [] if "--count" in options else ["--count", 64]
        return run(["calibrate", *map(str, [graph, *given, *chosen, "--out", out, "--effort", effort, *options])])

    return call


def table_of(folder):
    return json.loads((folder / "calibration.json").read_text())


def cache_of(folder):
    header, *lines = (folder / "calibration.cache").read_text().splitlines()
    assert re.fullmatch(r"TRT-\d+-EntropyCalibration2", header)
    parts = [line.rsplit(": ", 1) for line in lines]
    return {tensor: struct.unpack(">f", bytes.fromhex(scale))[0] for tensor, scale in parts}


def dequantized(path):
    """Tensors that a Q/DQ graph quantizes as it runs."""
    return {node.input[0] for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"}


def held_out(images, count=64):
    return np.delete(images, np.round(np.linspace(0, len(images) - 1, count)).astype(int), axis=0)


def sqnr_db(reference, found):
    reference, found = reference.astype(np.float64), found.astype(np.float64)
    return 10 * np.log10((reference**2).sum() / ((reference - found) ** 2).sum())


def figure(pattern, text):
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return float(found[1])


def contents(folder):
    return {p.relative_to(folder): sha256(p) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_all_files_and_true_figures(world, calibrate, tmp_path, capsys, effort):
    assert calibrate(effort=effort) == 0
    out = tmp_path / "out"
    said = capsys.readouterr()
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert "Traceback" not in said.err
    table, images = table_of(out), held_out(np.load(world / "images.npy"))
    assert len(images) == 32
    reference, found = logits(world / "net.onnx", images), logits(out / "model.int8.onnx", images)
    assert figure(r"SQNR (\S+) dB", said.out) == pytest.approx(sqnr_db(reference, found), abs=0.051)
    assert sqnr_db(reference, found) > 30
    assert figure(r"agreement (\S+)% on 32 held-out images", said.out) == pytest.approx(
        100 * np.mean(reference.argmax(1) == found.argmax(1)), abs=0.006
    )
    assert "INT8         100.0% of the multiply-accumulates, 4 activations" in said.out
    assert str(out) in said.out
    assert not [f for f in lint_graph(onnx.load(out / "model.int8.onnx")) if f.severity != "note"]
    assert cache_of(out) == {tensor: entry["scale"] for tensor, entry in table["tensors"].items()}
    assert dequantized(out / "model.int8.onnx") == set(table["tensors"])
    assert (table["images"], table["synthetic"], table["float_nodes"]) == (64, False, [])
    assert table["onnx_sha256"] == sha256(out / "model.refined.onnx")
    same = (out / "model.refined.onnx").read_bytes() == (world / "net.onnx").read_bytes()
    assert same == (effort == "fast") == (table["refinements"] == [])
    assert table["source_sha256"] == ("" if same else sha256(world / "net.onnx"))
    assert same or sqnr_db(reference, logits(out / "model.refined.onnx", images)) > 25


def test_the_share_counts_what_stays_in_float(calibrate, tmp_path, capsys):
    assert calibrate("--keep-float", "st*", "--keep-float", "head") == 0
    share = 100 * (MACS["fc1"] + MACS["fc2"]) / sum(MACS.values())
    assert figure(r"INT8 +(\S+)%", capsys.readouterr().out) == pytest.approx(share, abs=0.051)
    assert set(table_of(tmp_path / "out")["tensors"]) == {"normed", "hidden"}


def test_the_method_decides_where_no_search_does(world, calibrate, tmp_path):
    for method in ("minmax", "percentile:90"):
        assert calibrate("--method", method, "--count", 96, out=tmp_path / method) == 0
    largest = float(np.abs(np.load(world / "images.npy")).max())
    seen, clipped = (table_of(tmp_path / m)["tensors"]["image"]["amax"] for m in ("minmax", "percentile:90"))
    assert seen == largest
    assert clipped == pytest.approx(1.645, abs=0.02), "of a normal distribution 90 % lie within 1.645"


def test_without_held_out_images_it_says_so(calibrate, capsys):
    assert calibrate("--count", 96) == 0
    assert "on 96 calibration images" in capsys.readouterr().out


def test_a_graph_of_one_image_at_a_time(world, calibrate, tmp_path, capsys):
    graph = network(tmp_path / "one.onnx", batch=1)
    assert calibrate("--max-drop", 100, graph=graph, effort="balanced") == 0
    assert "on 32 held-out images" in capsys.readouterr().out
    assert logits(tmp_path / "out/model.int8.onnx", np.load(world / "images.npy")[:1]).shape == (1, CLASSES)


# Pictures


@pytest.fixture(scope="module")
def pixels():
    smooth = np.random.default_rng(2).integers(0, 256, (80, 4, 4, 3)).astype(np.uint8)
    return smooth.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)


def prepared(pixels):
    return np.ascontiguousarray(((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2), dtype=np.float32)


@pytest.fixture
def folder(pixels, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"pictures/{i:03}.png")
    return tmp_path / "pictures"


NORMALISED = ("--mean", MEAN, "--std", f"{STD},{STD},{STD}")


def test_pictures_give_what_their_arrays_give(calibrate, folder, pixels, tmp_path):
    np.save(tmp_path / "same.npy", prepared(pixels))
    assert calibrate(*NORMALISED, "--method", "minmax", images=folder, out=tmp_path / "a") == 0
    assert calibrate("--method", "minmax", images=tmp_path / "same.npy", out=tmp_path / "b") == 0
    a, b = table_of(tmp_path / "a"), table_of(tmp_path / "b")
    assert {t: e["amax"] for t, e in a["tensors"].items()} == pytest.approx({t: e["amax"] for t, e in b["tensors"].items()})
    assert re.fullmatch("[0-9a-f]{64}", a["preprocess_sha256"])
    assert b["preprocess_sha256"] == ""


def test_a_graph_that_does_not_say_how_its_images_are_prepared(calibrate, folder, world, tmp_path, capsys):
    assert calibrate(images=folder) == 2
    error = capsys.readouterr().err
    assert "does not say how its images are prepared" in error
    assert f"next: ufovit calibrate {world / 'net.onnx'} --images DIR --mean R,G,B --std R,G,B" in error
    assert not (tmp_path / "out").exists()


def test_a_graph_that_does_say(calibrate, folder, tmp_path, tiny_size):
    preprocess = Preprocess(32, 36, (0.1, 0.5, 0.5), (0.25, 0.25, 0.25))
    graph = network(tmp_path / "info.onnx", size=32, info=CheckpointInfo(TINY, LABELS, preprocess))
    assert calibrate("--method", "minmax", graph=graph, images=folder, out=tmp_path / "own") == 0
    table = table_of(tmp_path / "own")
    assert table["preprocess_sha256"] == preprocess.sha256
    darkest = -0.5 / 0.25
    assert table["tensors"]["image"]["amax"] == pytest.approx(max(0.9 / 0.25, -darkest), rel=0.05)
    assert calibrate(*NORMALISED, graph=graph, images=folder, out=tmp_path / "given") == 0
    assert table_of(tmp_path / "given")["preprocess_sha256"] != preprocess.sha256


def test_an_idx_file(calibrate, tmp_path):
    grey = np.random.default_rng(3).integers(0, 256, (40, 12, 12)).astype(np.uint8)
    write_idx(tmp_path / "images-idx3-ubyte.gz", grey)
    assert calibrate(*NORMALISED, images=tmp_path / "images-idx3-ubyte.gz") == 0
    assert table_of(tmp_path / "out")["images"] == 40


def test_a_picture_that_cannot_be_decoded(calibrate, folder, tmp_path, capsys):
    (folder / "040.png").write_bytes(b"none")
    assert calibrate(*NORMALISED, images=folder) == 2
    assert "040.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Made-up images


def test_made_up_images_are_stamped(calibrate, tmp_path, capsys):
    assert calibrate("--random", 64, images=None, effort="balanced") == 0
    assert "MADE-UP IMAGES" in capsys.readouterr().out
    table = table_of(tmp_path / "out")
    assert (table["synthetic"], table["images"]) == (True, 64)
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "out/model.int8.onnx").metadata_props}
    assert metadata["calib.synthetic"] == "true"
    assert calibrate("--random", 65, images=None, out=tmp_path / "more") == 0
    assert table_of(tmp_path / "more")["data_sha256"] != table["data_sha256"]


def test_real_images_are_not_stamped(calibrate, tmp_path, capsys):
    assert calibrate() == 0
    assert "MADE-UP" not in capsys.readouterr().out
    assert "calib.synthetic" not in {p.key for p in onnx.load(tmp_path / "out/model.int8.onnx").metadata_props}


def test_the_stamp_stays_with_the_table(world, calibrate, tmp_path, capsys):
    assert calibrate("--random", 64, images=None) == 0
    capsys.readouterr()
    options = ("--table", tmp_path / "out/calibration.json", "--holdout", world / "test.npy")
    assert calibrate(*options, images=None, out=tmp_path / "again") == 0
    assert "MADE-UP IMAGES" in capsys.readouterr().out
    assert table_of(tmp_path / "again")["synthetic"]


# A stored table


@pytest.fixture
def stored(calibrate, tmp_path, capsys):
    assert calibrate(effort="balanced", out=tmp_path / "stored") == 0
    capsys.readouterr()
    return tmp_path / "stored"


def test_a_stored_table_gives_the_same_bytes(world, calibrate, stored, tmp_path, capsys):
    again = {"graph": stored / "model.refined.onnx", "out": tmp_path / "again"}
    options = ("--table", stored / "calibration.json")
    assert calibrate(*options, **again) == 0
    assert contents(tmp_path / "again") == contents(stored)
    assert "on 32 held-out images" in capsys.readouterr().out
    assert (
        run(["calibrate", *map(str, [again["graph"], *options, "--images", world / "images.npy", "--out", again["out"]])]) == 0
    )
    assert contents(tmp_path / "again") == contents(stored), "the table says how many images were its"
    assert "on 32 held-out images" in capsys.readouterr().out
    assert calibrate(*options, "--holdout", world / "test.npy", images=None, **again) == 0
    assert contents(tmp_path / "again") == contents(stored)
    assert "on 200 held-out images" in capsys.readouterr().out
    assert calibrate(*options, graph=again["graph"], out=stored) == 0, "in its own folder, too"
    assert contents(tmp_path / "again") == contents(stored)


def test_a_stale_table_is_refused(world, calibrate, stored, tmp_path, capsys):
    def reweighted(model):
        bias = next(t for t in model.graph.initializer if t.name.startswith("stem.b"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e-3), bias.name))

    refined = stored / "model.refined.onnx"
    np.save(tmp_path / "other.npy", np.load(world / "images.npy")[::-1])
    np.save(tmp_path / "fewer.npy", np.load(world / "images.npy")[:40])
    cases = [
        ({"graph": edited(refined, tmp_path / "weights.onnx", reweighted)}, "other weights"),
        ({"graph": network(tmp_path / "graph.onnx", seed=4)}, "belongs to another graph"),
        ({"graph": refined, "images": tmp_path / "other.npy"}, "other calibration images"),
        ({"graph": refined, "images": tmp_path / "fewer.npy"}, "other calibration images"),
        ({}, "belongs to the refined graph"),
    ]
    before = contents(stored)
    for case, said in cases:
        assert calibrate("--table", stored / "calibration.json", **case) == 2
        error = capsys.readouterr().err
        assert said in error
        command = f"next: ufovit calibrate {case.get('graph')} --images DIR" if case else "next: pass model.refined.onnx"
        assert command in error
    assert not (tmp_path / "out").exists()
    assert contents(stored) == before


def test_a_table_of_other_preprocessing_is_refused(calibrate, folder, tmp_path, capsys):
    assert calibrate(*NORMALISED, images=folder, out=tmp_path / "stored") == 0
    table = ("--table", tmp_path / "stored/calibration.json")
    assert calibrate(*table, *NORMALISED, images=folder, out=tmp_path / "stored") == 0
    capsys.readouterr()
    assert calibrate(*table, "--mean", 0.4, "--std", STD, images=folder) == 2
    error = capsys.readouterr().err
    assert "other preprocessing" in error
    assert "next: ufovit calibrate" in error


def test_a_table_goes_with_its_float_layers(calibrate, tmp_path, capsys):
    assert calibrate("--keep-float", "fc2", out=tmp_path / "stored") == 0
    options = ("--table", tmp_path / "stored/calibration.json")
    assert calibrate(*options) == 2
    error = capsys.readouterr().err
    assert "no scale" in error
    assert "hidden" in error
    assert "--keep-float" in error
    assert calibrate(*options, "--keep-float", "fc2", out=tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "stored")


def test_files_that_are_no_table(world, calibrate, tmp_path, capsys):
    (tmp_path / "text.json").write_text("no table")
    (tmp_path / "object.json").write_text("{}")
    for name, said in (("absent", "not found"), ("text", "not a JSON file"), ("object", "schema version")):
        assert calibrate("--table", tmp_path / f"{name}.json") == 2
        error = capsys.readouterr().err
        assert said in error
        assert f"next: ufovit calibrate {world / 'net.onnx'} --images DIR" in error
    assert calibrate(images=None, out=tmp_path / "stored") == 2
    assert "--images DIR; --random 64" in capsys.readouterr().err
    assert calibrate(out=tmp_path / "stored") == 0
    assert calibrate("--table", tmp_path / "stored/calibration.json", images=None) == 2
    assert "--holdout DIR" in capsys.readouterr().err


# A budget


def accuracy(path, images, labels):
    return float(np.mean(logits(path, images).argmax(1) == labels))


def judged(world):
    return ("--holdout", world / "test.npy", "--holdout-labels", world / "labels.npy")


def test_a_budget_that_int8_meets(world, calibrate, tmp_path, capsys):
    assert calibrate("--max-drop", 5, *judged(world)) == 0
    said = capsys.readouterr().out
    assert "budget       met" in said
    assert "one image is 0.5 points" in said
    assert "INT8         100.0%" in said
    table = table_of(tmp_path / "out")
    assert table["float_nodes"] == []
    after = accuracy(tmp_path / "out/model.int8.onnx", np.load(world / "test.npy"), np.load(world / "labels.npy"))
    assert f"top-1        100.00% float, {after:.2%} INT8" in said
    assert figure(r"drop (\S+) points of 5", said) == pytest.approx(100 * (1 - after), abs=0.006)
    assert after >= 0.95


@pytest.fixture
def ruined(world, tmp_path):
    """A network whose hidden layer has no INT8 range, and the labels of the test images that it gives itself."""
    path = network(tmp_path / "ruined.onnx", outlier=1e5)
    np.save(tmp_path / "own.npy", logits(path, np.load(world / "test.npy")).argmax(1))
    return path, ("--holdout", world / "test.npy", "--holdout-labels", tmp_path / "own.npy")


def test_the_layer_that_int8_ruins_stays_in_float(world, calibrate, ruined, tmp_path, capsys):
    path, holdout = ruined
    images, labels = np.load(world / "test.npy"), np.load(tmp_path / "own.npy")
    assert calibrate(*holdout, graph=path, out=tmp_path / "all") == 0
    assert accuracy(tmp_path / "all/model.int8.onnx", images, labels) < 0.9, "INT8 does ruin it"
    capsys.readouterr()
    assert calibrate("--max-drop", 3, *holdout, graph=path) == 0
    said = capsys.readouterr().out
    table = table_of(tmp_path / "out")
    assert table["float_nodes"] == ["fc2"]
    assert "in float   fc2: 28." in said
    assert "    0 of 4 layers in float: drop" in said
    after = accuracy(tmp_path / "out/model.int8.onnx", images, labels)
    assert after >= 0.97
    assert figure(r"met: drop (\S+) points", said) == pytest.approx(100 * (1 - after), abs=0.006)
    share = 100 * (1 - MACS["fc2"] / sum(MACS.values()))
    assert figure(r"INT8 +(\S+)%", said) == pytest.approx(share, abs=0.051)
    assert dequantized(tmp_path / "out/model.int8.onnx") == {"image", "normed", "pooled"}
    again = ("--table", tmp_path / "out/calibration.json")
    assert calibrate(*again, *holdout, graph=path, out=tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "out"), "what the search decided is in the table"


def test_labels_decide_what_a_changed_answer_costs(world, calibrate, ruined, tmp_path, capsys):
    path, holdout = ruined
    images, labels = np.load(world / "test.npy"), np.load(tmp_path / "own.npy")
    labels[::2] = (labels[::2] + 1) % CLASSES
    np.save(tmp_path / "own.npy", labels)
    assert calibrate("--max-drop", 100, *holdout, graph=path) == 0
    said, quantized = capsys.readouterr().out, tmp_path / "out/model.int8.onnx"
    before, after = accuracy(path, images, labels), accuracy(quantized, images, labels)
    changed = np.mean(logits(path, images).argmax(1) != logits(quantized, images).argmax(1))
    assert before == 0.5
    assert before - after < changed - 0.02, "some answers changed from one wrong class to another, or for the better"
    assert figure(r"met: drop (\S+) points", said) == pytest.approx(100 * (before - after), abs=0.006)
    assert f"top-1        {before:.2%} float, {after:.2%} INT8" in said


def test_without_labels_changed_answers_stand_for_the_drop(world, calibrate, ruined, tmp_path, capsys):
    path, _ = ruined
    assert calibrate("--max-drop", 10, graph=path) == 0
    said = capsys.readouterr().out
    assert table_of(tmp_path / "out")["float_nodes"] == ["fc2"]
    assert "one image is 3.1 points" in said
    images = held_out(np.load(world / "images.npy"))
    changed = np.mean(logits(path, images).argmax(1) != logits(tmp_path / "out/model.int8.onnx", images).argmax(1))
    assert figure(r"met: drop (\S+) points", said) == pytest.approx(100 * changed, abs=0.006)


def test_a_budget_that_cannot_be_met(world, calibrate, ruined, tmp_path, capsys):
    path, holdout = ruined
    others = [option for name in ("stem", "fc1", "head") for option in ("--keep-float", name)]
    assert calibrate("--max-drop", 1, *holdout, *others, graph=path) == 1
    said = capsys.readouterr().out
    after = accuracy(tmp_path / "out/model.int8.onnx", np.load(world / "test.npy"), np.load(tmp_path / "own.npy"))
    assert "NOT MET" in said
    assert figure(r"NOT MET: drop (\S+) points of 1 ", said) == pytest.approx(100 * (1 - after), abs=0.006)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES
    assert table_of(tmp_path / "out")["float_nodes"] == []


def test_a_folder_per_class_a_list_and_an_idx_file_judge(world, calibrate, pixels, tmp_path, capsys):
    answers = logits(world / "net.onnx", prepared(pixels)).argmax(1)
    lines = []
    for i, (image, answer) in enumerate(zip(pixels, answers, strict=True)):
        path = tmp_path / f"classes/{answer}/{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        lines.append(f"{path.relative_to(tmp_path)},{answer}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    for holdout in ("classes", "list.csv"):
        assert calibrate("--max-drop", 20, "--holdout", tmp_path / holdout, *NORMALISED) == 0
        assert "top-1        100.00% float" in capsys.readouterr().out
    grey = pixels[..., 0]
    answers = logits(world / "net.onnx", prepared(grey[..., None].repeat(3, axis=3))).argmax(1)
    write_idx(tmp_path / "idx/images-idx3-ubyte.gz", grey)
    write_idx(tmp_path / "idx/labels-idx1-ubyte.gz", answers.astype(np.uint8))
    for holdout in ("idx", "idx/images-idx3-ubyte.gz"):
        assert calibrate("--holdout", tmp_path / holdout, *NORMALISED) == 0
        assert "top-1        100.00% float" in capsys.readouterr().out
    (tmp_path / "classes/7").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "classes/7/x.png")
    assert calibrate("--holdout", tmp_path / "classes", *NORMALISED) == 2
    assert "0, 1, 2, 3, 4" in capsys.readouterr().err


# Bad input


@pytest.fixture
def earlier(calibrate, tmp_path, capsys):
    """The finished result of an earlier run in the folder that the next one would write to."""
    assert calibrate() == 0
    capsys.readouterr()
    return tmp_path / "out"


def output_of(name, sides):
    return lambda m: m.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sides]))


def other_input(model):
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))


def free_size(model):
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"


def half(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def not_finite(model):
    bias = next(t for t in model.graph.initializer if t.name == "head.b")
    bias.CopyFrom(numpy_helper.from_array(np.full(CLASSES, np.inf, np.float32), "head.b"))


def old_opset(model):
    model.opset_import[0].version = 12


def test_bad_graphs(world, calibrate, earlier, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("no graph")
    source = world / "net.onnx"
    changes = [
        (other_input, "must have one input", "image, other"),
        (output_of("pooled", (CHANNELS,)), "must have one output", "logits, pooled"),
        (free_size, "no fixed size", "(batch, 3, side, side)"),
        (half, "takes no float32", "FLOAT16"),
        (not_finite, "float graph gives NaN or infinity", "on image 1, counted from 0"),
        (old_opset, "opset", "opset 20"),
    ]
    cases = [
        (tmp_path / "absent.onnx", "cannot be read", "absent.onnx"),
        (tmp_path / "text.onnx", "not an ONNX file", "text.onnx"),
        (tmp_path, "cannot be read", "directory"),
        (earlier / "model.int8.onnx", "quantized already", "float ONNX file"),
        (network(tmp_path / "four.onnx", batch=4), "fixed number of images", "found: 4"),
        *((edited(source, tmp_path / f"{i}.onnx", change), *said) for i, (change, *said) in enumerate(changes)),
    ]
    before = contents(tmp_path)
    for graph, *said in cases:
        out = tmp_path / "new" if graph.parent == earlier else earlier
        assert calibrate(graph=graph, out=out) == 2, graph
        error = capsys.readouterr().err
        assert all(text.lower() in error.lower() for text in said), error
    assert contents(tmp_path) == before


def test_bad_images(world, calibrate, earlier, tmp_path, capsys):
    good = np.load(world / "images.npy")
    chosen, left = good.copy(), good.copy()
    chosen[0, 0, 0, 0], left[40, 2, 15, 15] = np.nan, np.inf
    assert not np.isfinite(held_out(left)).all(), "image 40 does not calibrate"
    arrays = {
        "float64": (good.astype(np.float64), "float64"),
        "small": (good[:, :, :8], "(3, 8, 16)\n  allowed: (3, 16, 16)"),
        "flat": (good[0, 0, 0], "not an array of images"),
        "none": (good[:0], "(0, 3, 16, 16)"),
        "nan": (chosen, "found: image 0"),
        "inf": (left, "found: image 40"),
        "few": (good[:31], "too few calibration images"),
    }
    (tmp_path / "void.npy").touch()
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / name, said) for name, said in (("void.npy", "void.npy"), ("empty", "no images"), ("gone", "not found"))
    ]
    for name, (values, said) in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
        cases.append((tmp_path / f"{name}.npy", said))
    before = contents(tmp_path)
    for images, said in cases:
        for effort in ("fast", "balanced"):
            assert calibrate(images=images, effort=effort) == 2, images
            error = capsys.readouterr().err
            assert said in error, (images, error)
            assert images.name in error
            assert "Traceback" not in error
    assert contents(tmp_path) == before


def test_bad_holdout(world, calibrate, earlier, tmp_path, capsys):
    values = np.load(world / "test.npy")
    values[100, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", values)
    np.save(tmp_path / "small.npy", values[:, :, :8])
    labels = np.load(world / "labels.npy")
    for name, array in (("short", labels[:-1]), ("real", labels / 1), ("large", labels + 1), ("negative", labels - 1)):
        np.save(tmp_path / f"{name}.npy", array)
    test, before = world / "test.npy", contents(tmp_path)
    cases = [
        (["--holdout", tmp_path / "nan.npy"], "found: image 100"),
        (["--holdout", tmp_path / "small.npy"], "allowed: (3, 16, 16)"),
        (["--holdout", tmp_path / "gone"], "not found"),
        (["--holdout", test, "--holdout-labels", tmp_path / "short.npy"], "integers (200,)"),
        (["--holdout", test, "--holdout-labels", tmp_path / "real.npy"], "integers (200,)"),
        (["--holdout", test, "--holdout-labels", tmp_path / "large.npy"], "allowed: 0 to 4"),
        (["--holdout", test, "--holdout-labels", tmp_path / "negative.npy"], "allowed: 0 to 4"),
        (["--holdout", test, "--holdout-labels", tmp_path / "gone.npy"], "gone.npy"),
        (["--holdout-labels", world / "labels.npy"], "--holdout-labels belongs to a --holdout"),
    ]
    for options, said in cases:
        assert calibrate(*options) == 2, options
        assert said in capsys.readouterr().err, options
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--effort", "slow"], "fast, balanced, best"),
        (["--method", "max"], "minmax, percentile, entropy, mse"),
        (["--method", "percentile:0"], "not a percentage"),
        (["--random", "64"], "--random excludes --images"),
        (["--random", "0"], "--random must be positive"),
        (["--count", "0"], "--count must be positive"),
        (["--count", "31"], "--count"),
        (["--max-drop", "-1"], "accuracy budget"),
        (["--max-drop", "nan"], "accuracy budget"),
        (["--max-drop", "inf"], "accuracy budget"),
        (["--max-drop", "many"], "--max-drop"),
        (["--keep-float", "blocks.*"], "stem, fc1, fc2, head"),
        (["--keep-float", "*"], "nothing to quantize"),
        (["--mean", "0.5"], "belong together"),
        (["--mean", "a", "--std", "1"], "not numbers"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_options(calibrate, earlier, capsys, options, said):
    before = contents(earlier)
    assert calibrate(*options, effort="balanced") == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert "calibrate on" not in captured.out, "refused before the work"
    assert contents(earlier) == before


def test_too_few_made_up_images(calibrate, capsys):
    assert calibrate("--random", 31, images=None) == 2
    assert "next: ufovit calibrate" in (error := capsys.readouterr().err)
    assert "--random 64" in error


def test_an_output_that_is_no_class(world, calibrate, tmp_path, capsys):
    def tokens(model):
        del model.graph.output[:], model.graph.node[-2:]
        output_of("sum", (16, CHANNELS))(model)

    graph = edited(world / "net.onnx", tmp_path / "tokens.onnx", tokens)
    assert calibrate("--max-drop", 1, graph=graph) == 2
    assert "a graph that classifies" in capsys.readouterr().err
    assert calibrate(graph=graph, out=tmp_path / "tokens") == 0
    said = capsys.readouterr().out
    images = held_out(np.load(world / "images.npy"))
    found = sqnr_db(logits(graph, images), logits(tmp_path / "tokens/model.int8.onnx", images))
    assert figure(r"SQNR (\S+) dB on 32", said) == pytest.approx(found, abs=0.051)
    assert "agreement" not in said


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_a_tensor_that_is_always_zero_is_named(world, calibrate, earlier, tmp_path, capsys, effort):
    def dead(model):
        constants = {t.name: t for t in model.graph.initializer}
        for name, value in (("fc1.w", 0), ("fc1.b", -1)):
            values = np.full(constants[name].dims, value, np.float32)
            constants[name].CopyFrom(numpy_helper.from_array(values, name))

    before, graph = contents(earlier), edited(world / "net.onnx", tmp_path / "dead.onnx", dead)
    assert calibrate(graph=graph, effort=effort) == 2
    error = capsys.readouterr().err
    assert "where: tensor hidden\n  found: amax 0" in error
    assert "next: " in error
    assert contents(earlier) == before
    assert calibrate("--keep-float", "fc2", graph=graph, effort=effort, out=tmp_path / "kept") == 0


def test_places_that_cannot_be_written(world, calibrate, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    cases = [("file", 2, "--out is no folder"), ("file/x", 4, "not a folder"), ("file/x/y", 4, "not a folder")]
    for out, code, said in cases:
        assert calibrate(out=tmp_path / out) == code
        captured = capsys.readouterr()
        assert said in captured.err
        assert "next: choose another --out" in captured.err
        assert "calibrate on" not in captured.out, "refused before the work"
    assert (tmp_path / "file").read_text() == "in the way"
    monkeypatch.setattr("edge.pipeline.calibrate_inputs.os.access", lambda _path, mode: not mode & os.W_OK)
    assert calibrate(out=tmp_path / "new") == 4
    assert "no permission to write" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_graph_is_not_overwritten_by_what_is_made_from_it(calibrate, stored, capsys):
    before = contents(stored)
    assert calibrate(graph=stored / "model.refined.onnx", out=stored) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert contents(stored) == before


# Interruption


@pytest.mark.parametrize("moment", ["refining", "observing", "judging", "searching"])
def test_an_interruption_leaves_nothing(world, calibrate, earlier, tmp_path, capsys, monkeypatch, moment):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    places = {
        "refining": "calib.refine.apply_refinements.walk",
        "observing": "calib.split_half.Halves.update",
        "judging": "edge.tasks.classification.holdout.sqnr_db",
        "searching": "edge.pipeline.meet_budget.drop_points",
    }
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(places[moment], interrupt)
    before = contents(tmp_path)
    for out in (earlier, tmp_path / "new"):
        assert calibrate("--max-drop", 5, effort="balanced", out=out) == 130
        assert "Traceback" not in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert not list(temporary.iterdir())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_an_earlier_run_left_stays_until_all_is_written(calibrate, earlier, tmp_path, monkeypatch, failure, capsys):
    def fail(_path, _table):
        raise failure

    before = contents(earlier)
    with monkeypatch.context() as patched:
        patched.setattr("edge.pipeline.calibrate.write_artifact", fail)
        assert calibrate(graph=network(tmp_path / "other.onnx", seed=9)) in (4, 130)
    assert contents(earlier) == before
    assert "Traceback" not in capsys.readouterr().err
    assert calibrate(graph=tmp_path / "other.onnx") == 0, "the control: the same command writes where nothing fails"
    assert contents(earlier) != before
