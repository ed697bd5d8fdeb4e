"""`ufovit certify` as a user runs it: exit codes, sentences, files, and nothing else left behind.

Oracles: ONNX Runtime's logits, the JSON read with json, graphs edited with onnx alone.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tiny_project import sha256

from calib.errors import InputError
from edge.cli import run
from edge.images.graph_input import parse_triple
from edge.images.labelled_images import open_unlabelled
from edge.pipeline.steps.certify import certify_step
from edge.stability import network_certification
from engines.targets import TARGETS


def certify(source, project, *options):
    return run(["certify", str(source), "--data", str(project / "calibration"), *map(str, options)])


def edited(project, change, name="edited.onnx"):
    """The build's FP32 graph after `change(initializers by name)`, saved beside it."""
    model = onnx.load(project / "out/model.onnx")
    arrays = {t.name: t for t in model.graph.initializer}
    for key, value in change({name: numpy_helper.to_array(t).copy() for name, t in arrays.items()}).items():
        arrays[key].CopyFrom(numpy_helper.from_array(value, key))
    path = project / name
    onnx.save(model, path)
    return path


def keys_scaled(factor):
    def change(weights):
        chosen = {n: w for n, w in weights.items() if ".attn.k/" in n or n.endswith(".attn.k.bias")}
        assert len(chosen) >= 4, "weights and biases of the keys"
        return {name: (w * np.float32(factor)).astype(np.float32) for name, w in chosen.items()}

    return change


def logits(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def test_a_build_folder_is_certified_and_nothing_is_written(project, capsys):
    before = {p.name: sha256(p) for p in (project / "out").iterdir()}
    assert certify(project / "out", project) == 0
    output = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line and line[0] != " "}
    assert rows["xnorm"][1] == "8"
    assert "FP16 emulated, as it is: 100.00% of" in output, "without an option"
    assert {p.name: sha256(p) for p in (project / "out").iterdir()} == before


def test_an_unstable_graph_ends_with_1_and_its_repair_with_0(project, capsys, tiny_images):
    source, folded, out = edited(project, keys_scaled(2.0**12)), project / "folded.onnx", project / "certificate.json"
    assert certify(source, project) == 1
    output = capsys.readouterr().out
    assert "UNSTABLE" in output
    assert "--repair" in output, "the next command is named"
    assert certify(source, project, "--repair", folded, "--out", out, "--emulate", 8) == 0
    output = capsys.readouterr().out
    assert "STABLE" in output
    assert "before the repair: unstable" in output
    assert "bit-identical" in output
    assert "FP16 emulated, as it is" in output
    assert "FP16 emulated, repaired: 100.00% of 8 images" in output
    assert np.array_equal(logits(source, tiny_images).view(np.uint32), logits(folded, tiny_images).view(np.uint32))
    written = json.loads(out.read_text())
    assert written["onnx_sha256"] == sha256(source)
    assert written["repaired_onnx_sha256"] == sha256(folded)
    assert (written["verdict_before"], written["verdict"]) == ("unstable", "stable")
    assert {site["operand"] for site in written["xnorms"] if site["fold_exponent"]} == {"kv"}
    assert {site["kind"] for site in written["sites"] if site["repair"]["kind"] != "none"} == {"xnorm"}
    assert certify(folded, project) == 0, "the repaired graph is stable as it is"
    assert "--repair" not in capsys.readouterr().out


def test_weights_that_fp16_cannot_hold_are_an_answer_of_the_emulation(project, capsys):
    source, folded = edited(project, keys_scaled(2.0**18)), project / "folded.onnx"
    assert certify(source, project, "--repair", folded, "--emulate", 4) == 0
    output = capsys.readouterr().out
    assert "as it is: weights overflow FP16" in output
    assert "repaired: 100.00% of 4 images" in output
    assert folded.exists()


def test_the_verdict_is_over_the_precisions_asked_for(project, capsys):
    source = edited(project, keys_scaled(2.0**12))
    assert certify(source, project, "--precision", "bf16") == 0
    assert certify(source, project, "--precision", "bf16", "--precision", "fp16") == 1
    assert certify(source, project, "--precision", "fp8") == 2
    assert "fp8" in capsys.readouterr().err


def test_more_than_folding_can_mend_ends_with_1_although_repaired(project, capsys, monkeypatch):
    monkeypatch.setattr("edge.stability.repair.plan_fold", lambda *_: iter(()))
    monkeypatch.setattr("edge.stability.repair.plan_fit", lambda *_: iter(()))
    source = edited(project, keys_scaled(2.0**20))
    assert certify(source, project, "--repair", project / "folded.onnx") == 1
    output = capsys.readouterr().out
    assert "and overflows" in output
    assert "not written" in output
    assert not (project / "folded.onnx").exists()


def poison(weights):
    name = next(n for n in weights if ".attn.v/" in n)
    weights[name][0, 0] = np.nan
    return {name: weights[name]}


def without_metadata(path):
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


@pytest.mark.parametrize("option", [(), ("--repair", "folded.onnx", "--out", "x.json")])
def test_a_nan_weight_is_named(project, capsys, option):
    options = [project / o if "." in o else o for o in option]
    assert certify(edited(project, poison), project, *options) == 2
    error = capsys.readouterr().err
    assert "NaN or infinity" in error
    assert ".attn.v/" in error
    assert not (project / "folded.onnx").exists()
    assert not (project / "x.json").exists()


def test_bad_input(project, capsys, tmp_path):
    source = project / "out/model.onnx"
    (project / "text.onnx").write_text("no graph")
    (project / "empty").mkdir()
    (project / "broken").mkdir()
    (project / "broken/a.png").write_bytes(b"none")
    cases = [
        ([project / "absent.onnx"], "file not found"),
        ([project / "text.onnx"], "not an ONNX file"),
        ([project / "empty"], "not a build folder"),
        ([source, "--images", "0"], "--images is out of range"),
        ([source, "--mean", "0.5"], "belong together"),
        ([source, "--mean", "a", "--std", "1"], "not numbers"),
        ([source, "--mean", "1,2", "--std", "1"], "not three numbers"),
        ([source, "--data", project / "absent"], "images not found"),
        ([source, "--data", project / "empty"], "no images"),
        ([source, "--data", project / "broken"], "cannot be decoded"),
        ([source, "--emulate", "-1"], "--emulate"),
        ([source, "--islands", "all"], "unstable, at-risk"),
    ]
    before = {p: sha256(p) for p in project.rglob("*") if p.is_file()}
    for arguments, said in cases:
        assert (
            run(["certify", *map(str, arguments), *([] if "--data" in arguments else ["--data", str(project / "test")])]) == 2
        )
        error = capsys.readouterr().err
        assert said in error, (arguments, error)
        assert "Traceback" not in error
    assert {p: sha256(p) for p in project.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("option", ["--out", "--repair"])
def test_a_folder_that_cannot_be_made(project, capsys, option):
    (project / "file").write_text("in the way")
    assert certify(project / "out", project, option, project / "file/x") == 4
    error = capsys.readouterr().err
    assert "folder cannot be written" in error
    assert (project / "file").read_text() == "in the way"


def test_images_are_asked_for_where_the_shipped_ones_do_not_fit(project, capsys):
    assert run(["certify", str(project / "out")]) == 2
    assert "--data DIR" in capsys.readouterr().err


def test_a_strangers_graph_needs_its_normalisation(project, capsys):
    stranger = project / "stranger.onnx"
    shutil.copy(project / "out/model.onnx", stranger)
    without_metadata(stranger)
    assert certify(stranger, project) == 2
    assert "--mean R,G,B --std R,G,B" in capsys.readouterr().err
    assert certify(stranger, project, "--mean", "0.5", "--std", "0.25,0.25,0.25", "--out", project / "a.json") == 0
    assert certify(project / "out", project, "--out", project / "b.json") == 0
    first, second = (json.loads((project / f"{n}.json").read_text()) for n in "ab")
    assert first["sites"] == second["sites"], "the same preprocessing gives the same figures"


def test_a_graph_with_a_site_too_few_is_refused(project, capsys):
    """The graph says what network it is: a norm that is gone is an error, not a shorter table."""
    model = onnx.load(project / "out/model.onnx")
    node = next(n for n in model.graph.node if n.op_type == "ReduceL2")
    node.op_type = "ReduceL1"
    onnx.save(model, project / "less.onnx")
    assert certify(project / "less.onnx", project) == 2
    assert "7 of 8" in capsys.readouterr().err
    without_metadata(project / "less.onnx")
    assert certify(project / "less.onnx", project, "--mean", "0.5", "--std", "0.25") == 0, "a stranger may have any number"


def test_a_graph_without_xnorm_is_certified(project, capsys):
    model = onnx.load(project / "out/model.onnx")
    for node in model.graph.node:
        node.op_type = "ReduceL1" if node.op_type == "ReduceL2" else node.op_type
    onnx.save(model, project / "none.onnx")
    without_metadata(project / "none.onnx")
    options = ("--mean", "0.5", "--std", "0.25", "--out", project / "none.json")
    assert certify(project / "none.onnx", project, *options) == 0
    written = json.loads((project / "none.json").read_text())
    assert not written["xnorms"]
    assert written["coverage"]["judged"] == written["coverage"]["stored"]
    assert "layer_norm" in capsys.readouterr().out


def test_the_target_decides_what_is_computed_in_fp32(project, capsys):
    out = project / "certificate.json"
    for target, backend in (("rtx", "trt_rtx"), ("orin-nano", "trt")):
        assert certify(project / "out", project, "--target", target, "--emulate", 0, "--out", out) == 0
        written = json.loads(out.read_text())
        assert written["backend"] == backend
        assert written["emulated"] == {"before": None, "after": None}
    assert certify(project / "out", project, "--target", "none") == 2
    assert "unknown target" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "islands"), [((), "unstable"), (("--islands", "at-risk"), "at risk")])
def test_islands_are_for_what_is_unstable_unless_more_is_asked_for(project, monkeypatch, options, islands):
    configs = []

    def captured(*args, config, **options):
        configs.append(config)
        return certify_network(*args, config=config, **options)

    certify_network = network_certification.certify_network
    monkeypatch.setattr(network_certification, "certify_network", captured)
    assert certify(project / "out/model.onnx", project, "--repair", project / "repaired.onnx", *options) == 0
    assert [config.islands for config in configs] == [islands]


def test_a_build_that_asks_for_other_islands_certifies_again(tmp_path):
    def reads(islands):
        images = SimpleNamespace(sha256="0")
        network = SimpleNamespace(info=object(), preprocess=images)
        request = SimpleNamespace(
            precision="fp16", certified_precisions=("fp16",), target=TARGETS["rtx"], out=tmp_path, islands=islands
        )
        inputs = SimpleNamespace(network=network, calib_images=images)
        return certify_step(request, inputs, SimpleNamespace(sha256=lambda _name: "1")).reads

    assert reads("at-risk") == {**reads("unstable"), "islands": "at-risk"}
    assert "islands" not in reads("unstable"), "steps of earlier builds stay as they are recorded"


@pytest.mark.slow
def test_build_refuses_what_folding_cannot_mend(project, capsys, monkeypatch):
    from tiny_project import build

    monkeypatch.setattr("edge.stability.site_certificate.judge_int8", broken_int8)
    assert build(project, "--force") == 1
    error = capsys.readouterr().err
    assert "the network is unstable" in error
    assert "planted" in error
    assert not (project / "out/engine.onnx").exists()
    assert not (project / "out/xnorm.json").exists()
    assert not (project / "out/certificate.json").exists()


def broken_int8(loss):
    from edge.stability.verdict import Judgement

    return Judgement("unstable", "observed", "planted")


def test_unlabelled_images_are_all_that_lie_below(tmp_path):
    from PIL import Image

    for name in ("b/2.png", "a/1.jpg", "3.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            Image.new("RGB", (9, 8), (10, 20, len(name))).save(tmp_path / name)
    found = open_unlabelled(tmp_path)
    assert found.names == ("3.png", "a/1.jpg", "b/2.png")
    assert found.pixels(0).shape == (8, 9, 3)
    assert len(open_unlabelled(tmp_path / "3.png")) == 1
    with pytest.raises(InputError, match="no images"):
        open_unlabelled(tmp_path / "a/notes.txt")


@pytest.mark.parametrize(("text", "values"), [("0.5", (0.5, 0.5, 0.5)), ("0.1,0.2,0.3", (0.1, 0.2, 0.3))])
def test_three_numbers(text, values):
    assert parse_triple(text, "--mean") == values
    for wrong in ("", "1,2", "nan", "1,2,3,4"):
        with pytest.raises(InputError, match="--mean"):
            parse_triple(wrong, "--mean")
