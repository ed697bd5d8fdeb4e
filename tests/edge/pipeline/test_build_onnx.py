"""`ufovit build FILE.onnx`: networks that are not of this toolkit through the whole flow, on 32 px images and the CPU target.

Oracles: ONNX Runtime on the file as given, numpy in float64 on the stored answers, json.
"""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from import_graphs import GraphWriter
from onnx import TensorProto
from PIL import Image
from port_attention import export_port

from edge.cli import run

NORMALISED = ["--mean", "0.5", "--std", "0.5"]


def pictures(folder, count, seed, side=32):
    """Smooth colour pictures: a quarter of the noise of a photograph, so that INT8 has something to hold."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.png")
    return folder


def two_outputs_nhwc():
    """float32 (n, 24, 32, 3): an embedding (n, 8) and a map (n, 6, 8, 8)."""
    g = GraphWriter()
    planes = g.conv(g.add("Transpose", "pixels", perm=[0, 3, 1, 2]))
    maps = g.add("Transpose", g.add("Relu", planes), perm=[0, 2, 3, 1])
    embedding = g.add("MatMul", g.add("Flatten", g.add("GlobalAveragePool", g.add("Relu", planes))), g.random(8, 8))
    return g.model(embedding, maps, takes={"pixels": [TensorProto.FLOAT, "n", 24, 32, 3]})


def answers_of(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})


def read(folder, file):
    return json.loads((folder / file).read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [
        *("--data", str(pictures(folder / "test", 40, 1))),
        *("--calib-data", str(pictures(folder / "calibration", 32, 2))),
        *("--calib-images", "32"),
    ]


@pytest.fixture(scope="module")
def tensors_build(tmp_path_factory, data):
    """The network with two outputs, judged as numbers."""
    folder = tmp_path_factory.mktemp("tensors")
    onnx.save(two_outputs_nhwc(), folder / "two.onnx", save_as_external_data=True, location="two.data", size_threshold=0)
    command = ["build", str(folder / "two.onnx"), "int8", "--task", "tensors", *data, *NORMALISED, "--target", "cpu"]
    command += ["--fit", "stretch", "--int8-floor", "0", "--min-sqnr", "5", "--out", str(folder / "out")]
    assert run(command) == 0
    return folder, command


@pytest.mark.slow
def test_every_step_of_a_network_with_two_outputs(tensors_build):
    folder, _ = tensors_build
    out = folder / "out"
    manifest, drift, record = (read(out, f) for f in ("manifest.json", "drift.json", "import.json"))
    assert manifest["task"] == "tensors"
    assert [output["shape"][1:] for output in manifest["outputs"]] == [[8], [6, 8, 8]]
    assert manifest["preprocess"]["image_size"] == [24, 32]
    assert manifest["preprocess"]["layout"] == "nhwc"
    assert manifest["xnorm"] is None, "there is no norm to certify"
    assert record["source"] == "two.onnx"
    assert drift["verdict"] == "pass"
    assert drift["images"] == 40
    assert "import.json" in (out / "report.html").read_text()


@pytest.mark.slow
def test_the_reference_is_the_file_as_given(tensors_build, data):
    folder, _ = tensors_build
    bands = [band.convert("F").resize((32, 24), Image.Resampling.BILINEAR) for band in Image.open(f"{data[1]}/000.png").split()]
    pixels = np.stack(list(map(np.asarray, bands)), axis=-1)
    expected = answers_of(folder / "two.onnx", (pixels / 255 - 0.5)[None] / 0.5)
    stored = np.load(folder / "out/logits.npz")
    reference = [stored[name][:1] for name in sorted(stored.files) if "reference" in name]
    assert len(reference) == 2
    for given, kept in zip(expected, reference, strict=True):
        np.testing.assert_allclose(kept, given, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_second_run_reuses_everything_and_another_option_does_not(tensors_build, capsys):
    folder, command = tensors_build
    before = (folder / "out/engine.onnx").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        for heavy in ("torch", "onnx", "onnxruntime", "matplotlib"):
            patch.setitem(sys.modules, heavy, None)  # an import would raise
        assert run(command) == 0
    assert "".join(capsys.readouterr()).count("unchanged, reused") == 6
    assert (folder / "out/engine.onnx").stat().st_mtime_ns == before
    assert run([*command, "--min-sqnr", "150"]) == 1, "no INT8 network has 150 dB"
    assert run(command) == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["weights", "record", "option"])
def test_another_file_record_or_option_is_imported_again(tensors_build, part, capsys):
    """The weights lie in a second file; a record of the import that nobody made is not believed."""
    folder, command = tensors_build
    changed = {"weights": folder / "two.data", "record": folder / "out/import.json"}.get(part)
    if changed is not None:
        good = changed.read_bytes()
        changed.write_bytes(good[:-2] + bytes([good[-2] ^ 1]) + good[-1:] if part == "weights" else good + b" ")
    options = ["--input-shape", "pixels=1x24x32x3"] if part == "option" else []
    assert run([*command, *options]) == 0
    assert "import: done" in "".join(capsys.readouterr())
    if part == "weights":
        changed.write_bytes(good)
    assert run(command) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["verify", "out"],
        ["report", "out"],
        ["drift", "out", "--min-cosine", "0.5"],
        ["inspect", "out"],
        ["inspect", "out/import.json"],
        ["gate", "out", "--baseline", "baseline.json", "--update"],
        ["gate", "out", "--baseline", "baseline.json"],
        ["bench", "out", "--runs", "5", "--warm-up", "1"],
        ["camera", "out", "--source", "synthetic://?size=64x48&fps=30", "--frames", "3", "--json"],
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_everything_that_takes_a_build_takes_this_one(tensors_build, monkeypatch, command):
    monkeypatch.chdir(tensors_build[0])
    assert run(command) == 0


def classifier(folder, **options):
    g = GraphWriter()
    onnx.save(g.model(g.head(g.pooled()), takes={"x": [TensorProto.FLOAT, "n", 3, 32, 32]}, **options), folder / "five.onnx")
    return str(folder / "five.onnx")


def labelled(folder, names):
    for i, name in enumerate(names):
        pictures(folder / name, 4, i)
    return str(folder)


@pytest.mark.slow
def test_a_classifier_with_labels_from_a_file(tmp_path, data):
    names = ["ant", "bee", "cow", "dog", "eel"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    command = ["build", classifier(tmp_path), "fp32", *data, *NORMALISED, "--labels", str(tmp_path / "names.txt")]
    command += ["--target", "cpu", "--out", str(tmp_path / "out"), "--data", labelled(tmp_path / "test", names)]
    assert run(command) in (0, 3)
    assert read(tmp_path / "out", "manifest.json")["labels"] == names
    assert read(tmp_path / "out", "drift.json")["agreement"] == 1.0


@pytest.mark.parametrize(
    ("options", "sentence", "step"),
    [
        ([], "does not say how its images are prepared", "--mean"),
        ([*NORMALISED, "--task", "boxes"], "unknown task", ""),
        ([*NORMALISED, "--image-size", "32"], "--image-size does not apply", "--input-shape"),
        ([*NORMALISED, "--checkpoint", "x.pth"], "--checkpoint does not apply", ""),
        ([*NORMALISED, "--task", "tensors", "--max-drop", "1"], "--max-drop does not apply", "--min-sqnr"),
        ([*NORMALISED, "--min-sqnr", "20"], "--min-sqnr does not apply", "--max-drop"),
        ([*NORMALISED, "--colour", "grey"], "colour order does not fit", "grey for one channel"),
        ([*NORMALISED, "--constant-input", "mask"], "--constant-input is not understood", "NAME=NUMBER"),
        ([*NORMALISED, "--constant-input", "mask=1"], "mask", ""),
        ([*NORMALISED, "--input-shape", "x=1x3x0x4"], "--input-shape is not understood", "1x3x224x224"),
        ([*NORMALISED, "--input-shape", "x=1x3x64x64"], "x", ""),
        ([*NORMALISED, "--labels", "three.txt"], "where: three.txt", "5, one per output"),
        ([*NORMALISED, "--labels", "three.txt", "--task", "tensors"], "where: three.txt", "--task classify"),
        ([*NORMALISED, "--network", "none.toml"], "network file not found", ""),
        (["--network", "net.toml", "labels = 'three.txt'"], "where: net.toml, labels", "5, one per output"),
        (["--network", "net.toml", "task = 'boxes'"], "where: net.toml, task", "classify, tensors"),
        (["--network", "net.toml", "preprocess.layout = 'nhwc'"], "where: net.toml, [preprocess] layout", "nchw"),
        (["--network", "net.toml", "preprocess.fit = 'bend'"], "where: net.toml, [preprocess] and --mean, --std", "letterbox"),
        ([*NORMALISED, "--resize", "16"], "where: --mean, --std, --resize", "image_size <= resize"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, data, options, sentence, step
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    if "net.toml" in options:  # the last is its text
        *options, text = [*NORMALISED, *options]
        (tmp_path / "net.toml").write_text(text)
    assert run(["build", classifier(tmp_path), "int8", *data, *options, "--target", "cpu", "--out", "out"]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert step in message
    assert "  where: " in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("labels", "listed"), [(False, "0, 1, 2, 3, 4; names need --labels FILE"), (True, "one, two")])
def test_folders_that_are_not_classes_show_what_the_classes_are(tmp_path, capsys, labels, listed):
    (tmp_path / "five.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    options = ["--labels", str(tmp_path / "five.txt")] if labels else []
    options += ["--data", labelled(tmp_path / "test", ["ant", "bee"]), "--out", str(tmp_path / "out")]
    assert run(["build", classifier(tmp_path), "fp32", *NORMALISED, *options]) == 2
    message = capsys.readouterr().err
    assert "labels do not match the network" in message
    assert listed in message


@pytest.mark.slow
def test_named_outputs_are_built_and_judged(tmp_path, data):
    """The first convolution alone: 8 maps of 8 x 8 in the place of the classes."""
    path = classifier(tmp_path)
    name = onnx.load(path).graph.node[0].output[0]
    command = ["build", path, "fp32", "--task", "tensors", "--outputs", name, *data, *NORMALISED]
    assert run([*command, "--target", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert [output["shape"][1:] for output in read(tmp_path / "out", "manifest.json")["outputs"]] == [[8, 8, 8]]
    assert read(tmp_path / "out", "drift.json")["verdict"] == "pass"


def test_two_outputs_do_not_classify(tmp_path, capsys, data):
    onnx.save(two_outputs_nhwc(), tmp_path / "two.onnx")
    assert run(["build", str(tmp_path / "two.onnx"), "fp32", *data, *NORMALISED, "--out", str(tmp_path / "out")]) == 2
    assert "--task tensors" in capsys.readouterr().err


def test_a_file_that_is_not_there(capsys):
    assert run(["build", "nothing.onnx", "int8"]) == 2
    assert "model not found" in capsys.readouterr().err


@pytest.mark.slow
def test_attention_of_the_public_port_is_found_and_certified(tmp_path, data):
    onnx.save(export_port(), tmp_path / "port.onnx")
    command = ["build", str(tmp_path / "port.onnx"), "int8", "--task", "tensors", *data, *NORMALISED]
    assert run([*command, "--target", "cpu", "--int8-floor", "0", "--min-sqnr", "5", "--out", str(tmp_path / "out")]) == 0
    certificate, record = (read(tmp_path / "out", f) for f in ("xnorm.json", "import.json"))
    assert [site["operand"] for site in certificate["sites"]] == ["q", "kv"] * 2
    assert {site["axis"] for site in certificate["sites"]} == {-1}
    kept = {result["kind"]: len(result["nodes"]) for result in record["rewriters"] if result["kept"]}
    assert kept["layer_norm"] == 5
    assert kept["gelu"] == 2
    graph = onnx.load(tmp_path / "out/model.onnx").graph
    assert sum(node.op_type == "LayerNormalization" for node in graph.node) == 5
