"""`ufovit drift`: a finished build judged again. Oracles: digests of the folder, ONNX Runtime run by hand, `ufovit verify`."""

import errno
import json
import os
import shutil
import signal
from importlib import import_module

import numpy as np
import onnxruntime as ort
import pytest
from kill_at_rename import exit_codes
from PIL import Image
from rich.console import Console
from tiny_project import LABELS, build, command, read

from calib.errors import InputError
from calib.files import sha256_file
from edge.cli import INTERRUPTED, run
from edge.cli.console import TerminalProgress
from edge.images.idx import read_idx, write_idx
from edge.images.labelled_images import open_images, open_unlabelled
from edge.images.preprocess import Preprocess
from edge.pipeline.judge_options import JudgeOptions
from edge.pipeline.rejudge import rejudge_build
from edge.pipeline.workspace import locked
from engines.build_folder.file_names import SIGNATURE
from engines.build_folder.folder import BuildFolder
from engines.build_folder.step_record import read_record
from engines.build_folder.verify import verify_folder

pytestmark = pytest.mark.slow

THREE = ("drift.json", "logits.npz", "steps.json")


def judged(folder, **changes):
    return rejudge_build(folder / "out", JudgeOptions(**changes), TerminalProgress(Console(quiet=True)))


def digests(folder):
    return {path.name: sha256_file(path) for path in (folder / "out").iterdir()}


def logits(folder, file, images):
    """Logits by a session of our own."""
    (output,) = ort.InferenceSession(folder / "out" / file).run(None, {"image": images})
    return output


def pictures(folder, count=30):
    """Colour PNGs in one folder, no labels."""
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (5, 4, 3)).astype(np.uint8).repeat(9, axis=0).repeat(11, axis=1)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def preprocess(project):
    stated = read(project, "manifest.json")["preprocess"]
    return Preprocess.from_json({name: value for name, value in stated.items() if name != "sha256"})


def test_nothing_new_changes_nothing(project):
    before = digests(project)
    outcome = judged(project)
    assert (outcome.verdict, outcome.ran) == ("pass", ())
    assert digests(project) == before
    assert run(command(project)) == 0
    assert digests(project) == before, "and `ufovit build` finds its own steps"


def test_other_labelled_images(project, preprocess):
    pixels = read_idx(project / "test" / "images-idx3-ubyte.gz")
    labels = read_idx(project / "test" / "labels-idx1-ubyte.gz").copy()
    labels[:40] = (labels[:40] + 1) % len(LABELS)
    write_idx(project / "other" / "images-idx3-ubyte.gz", pixels[:70])
    write_idx(project / "other" / "labels-idx1-ubyte.gz", labels[:70])
    outcome = judged(project, data=project / "other")
    assert outcome.ran == ("drift", "report")
    drift, images = read(project, "drift.json"), preprocess.batch(pixels[:70, :, :, None])
    answers = [logits(project, file, images).argmax(1) for file in ("model.onnx", "model.int8.onnx")]
    assert drift["images"] == 70
    assert drift["top1_reference"] == pytest.approx((answers[0] == labels[:70]).mean())
    assert drift["top1_engine"] == pytest.approx((answers[1] == labels[:70]).mean())
    assert drift["top1_reference"] < 0.6, "the labels were spoiled"
    assert drift["budget_points"] == 20, "the build's own"
    verify_folder(BuildFolder(project / "out"))
    assert judged(project).ran == (), "the images of the last verdict are the default"
    assert run(command(project)) == 0, "`ufovit build` judges by its own images again"
    assert read(project, "drift.json")["images"] == 80


def test_copies_of_an_image_decide_nothing(project, capsys):
    """Every line twice: the figures and the interval are those of the list without copies, and both places say so."""
    found = pictures(project / "camera", 20)
    lines = [f"camera/{picture.name},{LABELS[i % 2]}\n" for i, picture in enumerate(sorted(found.iterdir()))]
    stated = {}
    for name, text in (("once", lines), ("twice", lines * 2)):
        (project / f"{name}.csv").write_text("".join(text))
        assert run(["drift", str(project / "out"), "--data", str(project / f"{name}.csv"), "--max-drop", "90"]) in (0, 3)
        stated[name] = read(project, "drift.json")
        assert ("copies counted once: 20 of 40 images" in " ".join(capsys.readouterr().out.split())) == (name == "twice")
    once, twice = stated["once"], stated["twice"]
    (note,) = set(twice["not_compared"]) - set(once["not_compared"])
    assert "20 of 40" in note
    assert once["images"] == 20
    assert {**twice, "not_compared": 0, "data": 0} == {**once, "not_compared": 0, "data": 0}
    (project / "both.csv").write_text("".join([*lines, f"camera/00.png,{LABELS[3]}\n"]))
    before = digests(project)
    with pytest.raises(InputError, match=r"one picture with two labels[\s\S]*both\.csv:21[\s\S]*both\.csv:1"):
        judged(project, data=project / "both.csv")
    assert digests(project) == before


@pytest.mark.parametrize("content", [b"", b"\0\5\x16\7", b"version https://git-lfs.github.com/spec/v1\n"])
def test_an_undecodable_picture_costs_no_verdict(project, content):
    """A picture in the middle of a folder: the previous verdict, its logits, pictures and report are kept, and still hold."""
    found, before = pictures(project / "camera"), digests(project)
    (found / "15.png").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be decoded[\s\S]*15\.png"):
        judged(project, unlabelled=found)
    assert digests(project) == before
    assert "report.html" in before
    verify_folder(BuildFolder(project / "out"))
    assert judged(project).ran == ()


def test_images_without_labels(project, preprocess):
    found = pictures(project / "camera")
    outcome = judged(project, unlabelled=found, images=20, max_drop_points=90.0)
    drift = read(project, "drift.json")
    images = np.concatenate(list(open_unlabelled(found).take(20).batches(preprocess, 20)))
    answers = [logits(project, file, images).argmax(1) for file in ("model.onnx", "model.int8.onnx")]
    assert (drift["judged_by"], drift["images"], outcome.verdict) == ("agreement", 20, "pass")
    assert drift["agreement"] == pytest.approx((answers[0] == answers[1]).mean())
    assert drift["top1_engine"] is None
    assert any("no labels" in text for text in drift["not_compared"])
    with np.load(project / "out" / "logits.npz") as arrays:
        assert sorted(arrays.files) == ["engine", "reference"]
    verify_folder(BuildFolder(project / "out"))
    assert judged(project).ran == (), "the same again without saying"
    assert "no labels" in (project / "out" / "report.html").read_text()


def test_unlabelled_is_not_the_same_as_labelled_with_the_first_class(project):
    folder = pictures(project / "flat", 10)
    (project / "list.csv").write_text("".join(f"flat/{p.name},{LABELS[0]}\n" for p in sorted(folder.iterdir())))
    assert open_images(project / "list.csv", LABELS).sha256 == open_unlabelled(folder).sha256, "the digests cannot tell"
    judged(project, data=project / "list.csv")
    assert judged(project, unlabelled=folder).ran == ("drift", "report")
    assert read(project, "drift.json")["top1_engine"] is None


@pytest.fixture
def stored(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    for file in THREE:
        shutil.copy(project / "out" / file, folder)
    return folder


def test_stored_answers_stand_in_for_the_reference(project, stored, monkeypatch):
    drift_step = import_module("edge.pipeline.steps.drift")
    genuine = drift_step._ort_runner

    def refuse(build, file, **options):
        if file == "model.onnx":
            raise AssertionError(f"{file} was run")
        return genuine(build, file, **options)

    with np.load(stored / "logits.npz") as arrays:
        expected = {name: arrays[name] for name in arrays.files}
    monkeypatch.setattr(drift_step, "_ort_runner", refuse)
    assert judged(project, reference=stored).ran == ("drift", "report")
    with np.load(project / "out" / "logits.npz") as arrays:
        for name, values in expected.items():
            np.testing.assert_array_equal(arrays[name], values)
    with pytest.raises(AssertionError, match=r"model\.onnx was run"):
        judged(project, max_drop_points=1.0)


def other_images(project, stored):
    judged(project, unlabelled=pictures(project / "camera"))
    return "another set of images, another number of images"


def edited(project, stored):
    text = (stored / "drift.json").read_text()
    (stored / "drift.json").write_text(text.replace('"agreement": 1.0', '"agreement": 0.5'))
    return "does not match its recorded digest"


def other_logits(project, stored):
    np.savez(stored / "logits.npz", reference=np.zeros((80, 5), np.float32), engine=np.zeros((80, 5), np.float32))
    return "does not match its recorded digest"


def no_record(project, stored):
    (stored / "steps.json").unlink()
    return "file is missing"


@pytest.mark.parametrize("spoil", [other_images, edited, other_logits, no_record], ids=lambda f: f.__name__)
def test_stored_answers_of_something_else_are_refused(project, stored, spoil):
    said = spoil(project, stored)
    before = digests(project)
    with pytest.raises(InputError, match=said):
        judged(project, reference=stored)
    assert digests(project) == before


def test_stored_answers_of_another_network_are_refused(project, stored, make_network, tmp_path_factory, tiny_size):
    from tiny_project import make_project

    other = make_project(tmp_path_factory.mktemp("other"), make_network(7), tiny_size)
    shutil.rmtree(other / "test")
    shutil.copytree(project / "test", other / "test")
    build(other)
    with pytest.raises(InputError, match="another FP32 graph"):
        judged(other, reference=stored)


def test_damage_to_a_verdict_is_mended_and_to_anything_else_refused(project):
    expected = digests(project)
    (project / "out" / "drift.json").write_text("{}")
    (project / "out" / "report.html").unlink()
    outcome = judged(project, data=project / "test")
    assert outcome.ran == ("drift", "report")
    assert {f for f, d in digests(project).items() if d != expected[f]} <= {"drift.json", "steps.json", "report.html"}
    verify_folder(BuildFolder(project / "out"))
    (project / "out" / "model.int8.onnx").write_bytes(b"another")
    before = digests(project)
    with pytest.raises(InputError, match=r"does not match its recorded digest[\s\S]*model\.int8\.onnx"):
        judged(project, data=project / "test")
    assert digests(project) == before


def test_images_that_have_changed_are_not_those_of_the_last_verdict(project):
    judged(project, data=project / "test", images=60)
    labels = read_idx(project / "test" / "labels-idx1-ubyte.gz").copy()
    labels[0] = (labels[0] + 1) % len(LABELS)
    write_idx(project / "test" / "labels-idx1-ubyte.gz", labels)
    with pytest.raises(InputError, match=r"have changed since[\s\S]*ufovit drift .*--data DIR"):
        judged(project)
    shutil.rmtree(project / "test")
    with pytest.raises(InputError, match="cannot be opened"):
        judged(project)


def bad_picture(project, monkeypatch):
    """Half of a PNG: it opens, and fails when its pixels are decoded."""
    folder = pictures(project / "camera")
    whole = (folder / "29.png").read_bytes()
    (folder / "29.png").write_bytes(whole[: len(whole) // 2])
    return ["--unlabelled", str(folder)], 2


def full_disk(project, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("edge.drift.drift_report.write_pictures", full)
    return ["--unlabelled", str(pictures(project / "camera"))], 4


def interrupt(project, monkeypatch):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.drift.drift_report.write_artifact", interrupted)
    return ["--unlabelled", str(pictures(project / "camera"))], INTERRUPTED


@pytest.mark.parametrize("late", [bad_picture, full_disk, interrupt], ids=lambda f: f.__name__)
def test_what_fails_late_leaves_every_file_as_it_was(project, late, monkeypatch, capsys):
    (project / "out" / SIGNATURE).write_text("signed")
    before = digests(project)
    with monkeypatch.context() as patch:
        options, code = late(project, patch)
        assert run(["drift", str(project / "out"), *options]) == code
    assert capsys.readouterr().err
    assert digests(project) == before
    shutil.rmtree(project / "camera")
    assert run(["drift", str(project / "out"), "--unlabelled", str(pictures(project / "camera")), "--max-drop", "90"]) == 0
    assert not (project / "out" / SIGNATURE).exists()
    assert digests(project)["drift.json"] != before["drift.json"], "control: a good folder of pictures gives another verdict"


def test_killed_at_each_rename_it_loses_nothing(project, tmp_path):
    """SIGKILL at the first rename, then at the second of what is left, and so on: old or new verdict, never neither."""
    found = pictures(tmp_path / "camera")
    arguments = ["drift", str(project / "out"), "--unlabelled", str(found), "--max-drop", "90"]
    shutil.copytree(project, tmp_path / "whole")
    assert run([*arguments[:1], str(tmp_path / "whole" / "out"), *arguments[2:]]) == 0
    before, after, codes = digests(project), digests(tmp_path / "whole"), []
    for code in exit_codes(arguments):
        codes.append(code)
        if code != -signal.SIGKILL:
            break
        with locked(project / "out", print):
            pass
        for file in THREE[:2]:
            assert digests(project)[file] in (before[file], after[file])
    assert codes[-1] == 0
    assert codes.count(-signal.SIGKILL) >= 4
    assert digests(project) == after


def test_attribution_is_an_artifact_of_the_folder(project):
    outcome = judged(project, attribute=True)
    assert outcome.ran == ("attribute", "report")
    assert read_record(project / "out")["attribute"].writes == {
        "attribution.json": sha256_file(project / "out" / "attribution.json")
    }
    verify_folder(BuildFolder(project / "out"))
    told = read(project, "attribution.json")
    assert told["culprits"] == []
    assert told["sentence"][:40] in (project / "out" / "report.html").read_text()
    before = digests(project)
    assert judged(project, attribute=True).ran == ()
    assert run(command(project)) == 0
    assert digests(project) == before
    assert judged(project, unlabelled=pictures(project / "camera")).ran == ("drift", "report")
    assert digests(project)["attribution.json"] == before["attribution.json"], "it rests on the graphs, not on the verdict"
    verify_folder(BuildFolder(project / "out"))
    text = json.loads((project / "out" / "attribution.json").read_text())
    (project / "out" / "attribution.json").write_text(json.dumps({**text, "sentence": "All is well."}))
    with pytest.raises(InputError, match=r"attribution\.json"):
        verify_folder(BuildFolder(project / "out"))
    assert "attribute" in judged(project, attribute=True).ran
    verify_folder(BuildFolder(project / "out"))


def test_the_command(project, capsys):
    found = pictures(project / "camera")
    assert run(["drift", str(project / "out"), "--unlabelled", str(found), "--max-drop", "90", "--attribute"]) == 0
    shown = capsys.readouterr().out
    assert "PASS" in shown
    assert "on others than these" in " ".join(shown.split()), "noise is unlike the calibration images, and that is what is said"
    assert run(["drift", str(project / "out"), "--max-drop", "0"]) == 3
    assert "INCONCLUSIVE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "a", "--unlabelled", "b"], "exclude each other"),
        (["--images", "0"], "--images is out of range"),
        (["--max-drop", "nan"], "--max-drop is out of range"),
        (["--data", "nowhere"], "images not found"),
        (["--unlabelled", "nowhere"], "images not found"),
        (["--reference", "nowhere"], "not a build folder"),
    ],
)
def test_bad_input(project, arguments, said, capsys):
    before = digests(project)
    assert run(["drift", str(project / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert digests(project) == before


def test_no_folder(tmp_path, capsys):
    assert run(["drift", str(tmp_path / "nowhere")]) == 2
    assert "not a build folder" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_the_measured_speed_stays_with_the_build(project, capsys):
    """By the command, on two engines that run here. Oracle: `ufovit verify`, and the ratio in the report of the command."""
    assert run(command(project, precision="fp32", out=project / "wide", int8_floor=None)) == 0
    out, ratio = project / "out", project / "ratio.json"
    bench = ["bench", str(out), "--against", str(project / "wide"), "--runs", "4", "--warm-up", "1", "--json", str(ratio)]
    assert run(bench) == 0
    assert not (out / "measured_speed.json").exists(), "control: only where it is asked for"
    assert run([*bench, "--record"]) == 0
    (measured,) = read(project, "measured_speed.json")["batches"]
    assert measured["speed"] == pytest.approx(1 / json.loads(ratio.read_text())["results"][0]["ratio"]["ratio"])
    assert run(["verify", str(out)]) == 0
    capsys.readouterr()
    assert judged(project).ran == (), "neither the verdict nor the report is made again"
    assert (out / "measured_speed.json").exists()
    assert run(command(project)) == 0
    assert f"{measured['speed']:.2f} times FP32's speed at batch 1" in " ".join(capsys.readouterr().out.split())
