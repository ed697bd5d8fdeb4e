"""`ufovit calibrate --table`: stored tables, and layers that stay in float for an accuracy budget."""

import numpy as np
import pytest
from calibrate_files import (
    CLASSES,
    FILES,
    MACS,
    NORMALISED,
    STD,
    contents,
    dequantized,
    edited,
    figure,
    held_out,
    logits,
    network,
    prepared,
    table_of,
)
from onnx import numpy_helper
from PIL import Image

from edge.cli import run
from edge.images.idx import write_idx


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
