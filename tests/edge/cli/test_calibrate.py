"""`ufovit calibrate` as a user runs it: exit codes, sentences, files, and nothing else left behind.

The network is made here: a Conv, GELU, LayerNormalization, two linear layers and a head, with weights drawn from a seed.
Oracles: ONNX Runtime on the written files, multiply-accumulates counted by hand, JSON and struct on the table and the cache.
"""

import re
import struct

import numpy as np
import onnx
import pytest
from calibrate_files import (
    CLASSES,
    FILES,
    MACS,
    NORMALISED,
    dequantized,
    figure,
    held_out,
    logits,
    network,
    prepared,
    sqnr_db,
    table_of,
)
from tiny_network import TINY
from tiny_project import LABELS, sha256

from calib.lint import lint_graph
from edge.images.idx import write_idx
from edge.images.preprocess import Preprocess
from edge.model.metadata import CheckpointInfo


def cache_of(folder):
    header, *lines = (folder / "calibration.cache").read_text().splitlines()
    assert re.fullmatch(r"TRT-\d+-EntropyCalibration2", header)
    parts = [line.rsplit(": ", 1) for line in lines]
    return {tensor: struct.unpack(">f", bytes.fromhex(scale))[0] for tensor, scale in parts}


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_all_files_and_true_figures(world, calibrate, tmp_path, capsys, effort):
    assert calibrate("--placement", "all", effort=effort) == 0
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
    assert same == (table["refinements"] == [])
    assert same >= (effort == "fast"), "another effort is kept only where it is better"
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


def test_made_up_images_are_stamped(calibrate, tmp_path, capsys):
    assert calibrate("--random", 64, images=None, effort="balanced") == 0
    assert "SYNTHETIC IMAGES" in capsys.readouterr().out
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
    assert "SYNTHETIC IMAGES" in capsys.readouterr().out
    assert table_of(tmp_path / "again")["synthetic"]
