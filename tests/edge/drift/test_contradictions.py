"""A drift.json that contradicts itself or the answers beside it is refused by every reader,
also when its record was made to fit.

Oracle: what was planted. Control: every kind of honest verdict is read by every reader that can show it.
"""

import json

import numpy as np
import pytest
from gate_builds import Planted, edit, lose_answers, plant, record
from report_folder import Recipe, make_folder, render

from calib.errors import ArtifactError, InputError
from edge.camera.camera_request import CameraRequest
from edge.camera.session import View, run_camera
from edge.cli.bench import BenchOptions
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.drift.stored_reference import read_stored
from edge.gate.build_figures import read_build
from edge.gate.update import update_baseline
from edge.images.labelled_images import ImageSet
from edge.inspect.describers import describe_file
from edge.pipeline.judge_options import JudgeOptions
from edge.pipeline.pack_bundle import make_bundle
from edge.pipeline.rejudge import rejudge_build
from edge.progress import Silent
from engines.build_folder.folder import BuildFolder

NAN = float("nan")
RECIPES = {
    "missed": (Planted(logits=lose_answers(60), budget=0.5), Recipe()),
    "NaN rows": (Planted(logits=lambda _reference, engine, _labels: engine[:3].fill(np.nan)), Recipe()),
    "random": (Planted(logits=lambda _reference, engine, _labels: engine.__imul__(-1)), Recipe(random_weights=True)),
}
PASS = {"low_points": -0.1, "high_points": 0.1, "level": 0.95}
FORGED = {
    "the word": ("missed", {"verdict": "pass"}),
    "another word": ("missed", {"verdict": "inconclusive"}),
    "the basis": ("missed", {"judged_by": "agreement"}),
    "the interval": ("missed", {"verdict": "pass", "interval": PASS}),
    "drop and interval": ("missed", {"verdict": "pass", "interval": PASS, "drop_points": 0.0}),
    "the level": ("missed", {"verdict": "pass", "interval": {"low_points": 0.4, "high_points": 0.4, "level": 0.01}}),
    "no flips": ("missed", {"verdict": "pass", "flips": None, "interval": PASS, "judged_by": "agreement"}),
    "negative flips": ("missed", {"flips": {"right_to_wrong": -60, "wrong_to_right": 0}}),
    "more flips than images": ("missed", {"flips": {"right_to_wrong": 10**9, "wrong_to_right": 0}}),
    "no bins": ("missed", {"reliability_engine": {"ece": 0.0, "bins": []}}),
    "no images": ("missed", {"images": 0}),
    "a budget below zero": ("missed", {"budget_points": -1.0}),
    "the word for NaN rows": ("NaN rows", {"verdict": "pass"}),
    "the count of NaN rows": ("NaN rows", {"verdict": "pass", "not_finite": -1}),
    "the word for random weights": ("random", {"verdict": "pass"}),
}

NO_JSON = {
    "NaN in the interval": ("missed", {"verdict": "inconclusive", "interval": {**PASS, "high_points": NAN}}),
    "flips beyond every number": ("missed", {"flips": {"right_to_wrong": 10**400, "wrong_to_right": 0}}),
    "a budget of NaN": ("missed", {"budget_points": NAN, "verdict": "inconclusive"}),
    "a budget without end": ("missed", {"budget_points": float("inf"), "verdict": "pass"}),
}


def images():
    return ImageSet("none", ("0",), np.zeros(1, np.int64), "0" * 64, lambda _index: np.zeros((8, 8, 3), np.uint8))


def camera(folder):
    view = View(notify=lambda _text: None, sink=lambda *_arguments: None)
    return run_camera(CameraRequest(folder, "synthetic://?size=64x48&fps=30&frames=1"), view)


READERS = {
    "gate": lambda folder: read_build(BuildFolder(folder)),
    "baseline": lambda folder: update_baseline(BuildFolder(folder), folder / "baseline.json", force=True),
    "report": lambda folder: render(folder, lambda _share: None),
    "inspect": describe_file,
    "inspect the file": lambda folder: describe_file(folder / "drift.json"),
    "camera": camera,
    "bench": lambda folder: BenchOptions().open(folder, "auto"),
    "rejudge": lambda folder: rejudge_build(folder, JudgeOptions(), Silent()),
    "stored answers": read_stored,
    "bundle": lambda folder: make_bundle(BuildFolder(folder), images(), folder / "a.ufovit", lambda _share: None),
}


@pytest.fixture(scope="module", params=RECIPES)
def honest(request, tmp_path_factory):
    return plant(tmp_path_factory.mktemp("honest"), *RECIPES[request.param])


def forge(folder, changes):
    edit(folder / "drift.json", lambda fields: fields.update(changes))
    record(folder)  # an attacker who writes the folder can make its record fit


@pytest.mark.parametrize(
    ("says", "recipe", "changes"),
    [
        *(pytest.param(r"drift\.json contradicts itself", *forged, id=name) for name, forged in FORGED.items()),
        *(pytest.param("not a JSON file", *forged, id=name) for name, forged in NO_JSON.items()),
    ],
)
def test_a_verdict_that_contradicts_its_figures_is_refused(tmp_path, says, recipe, changes):
    folder = plant(tmp_path / "build", *RECIPES[recipe])
    assert BuildFolder(folder).read(DRIFT_ARTIFACT).verdict == "fail"
    forge(folder, changes)
    with pytest.raises(ArtifactError, match=rf"(?s){says}.*next: ufovit build"):
        BuildFolder(folder).read(DRIFT_ARTIFACT)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it_and_leaves_the_folder_as_it_is(tmp_path, reader):
    folder = plant(tmp_path / "build", *RECIPES["missed"])
    forge(folder, {"verdict": "pass", "interval": PASS})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArtifactError, match=r"drift\.json contradicts itself"):
        READERS[reader](folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_honest_failure_is_shown_as_one(honest):
    assert read_build(BuildFolder(honest)).drift.verdict == "fail"
    assert describe_file(honest).facts["verdict"].startswith("FAIL: ")


@pytest.mark.parametrize(
    ("recipe", "verdict"),
    [
        (Recipe(flips=2), "pass"),
        (Recipe(flips=10), "inconclusive"),
        (Recipe(labelled=False, flips=0), "pass"),
        (Recipe(labelled=False, flips=100), "fail"),
        (Recipe(random_weights=True), "pass"),
        (Recipe(nan_rows=2000), "fail"),
        (Recipe(better=40), "pass"),
    ],
)
def test_honest_verdicts_stay_what_they_are(tmp_path, recipe, verdict):
    make_folder(tmp_path, recipe)
    drift = BuildFolder(tmp_path).read(DRIFT_ARTIFACT)
    fields = json.loads((tmp_path / "drift.json").read_text())
    assert (drift.verdict, drift.reason) == (verdict, fields["reason"])
    assert drift.verdict == fields["verdict"]


def test_the_reason_shown_is_that_of_the_figures(tmp_path):
    folder = plant(tmp_path / "build", *RECIPES["missed"])
    reason = BuildFolder(folder).read(DRIFT_ARTIFACT).reason
    forge(folder, {"reason": "drop +0.00 points: every image is right"})
    assert BuildFolder(folder).read(DRIFT_ARTIFACT).reason == reason
    assert reason in describe_file(folder).facts["verdict"]


@pytest.mark.parametrize("reader", ["gate", "report"])
def test_figures_that_agree_with_each_other_alone_are_recomputed_from_the_answers(tmp_path, reader):
    """The flips of another build with their interval; the cosine of random weights, which is not compared as a figure."""
    missed, better = (plant(tmp_path / name, planted) for name, planted in (("a", RECIPES["missed"][0]), ("b", Planted())))
    fields = json.loads((better / "drift.json").read_text())
    names = ("flips", "interval", "drop_points", "verdict")
    forge(missed, {name: fields[name] for name in names})
    random = plant(tmp_path / "c", *RECIPES["random"])
    forge(random, {"cosine_min": 0.99, "verdict": "pass"})
    for folder in (missed, random):
        assert BuildFolder(folder).read(DRIFT_ARTIFACT).verdict == "pass", "what nothing but the answers can refute"
        with pytest.raises(InputError, match="does not follow from the"):
            READERS[reader](folder)


def test_a_forgery_is_refused_where_a_signature_is_required(tmp_path):
    pytest.importorskip("cryptography", reason="pip install 'ufovit-edge[sign]'")
    from pem_keys import pem_pair

    from engines.build_folder.signing import sign

    folder = plant(tmp_path / "build", *RECIPES["missed"])
    private, public = pem_pair(tmp_path, "ours")
    sign(folder, private)
    options = BenchOptions(require_signature=public)
    other = json.loads((plant(tmp_path / "other") / "drift.json").read_text())
    for missing in ((), ("steps.json",), ("steps.json", "signature.json")):
        forge(folder, other)  # a sound drift.json of better answers
        for name in missing:
            (folder / name).unlink()
        with pytest.raises(ArtifactError):
            options.open(folder, "auto")
        with pytest.raises(ArtifactError):
            run_camera(CameraRequest(folder, "synthetic://", public_key=public), View(print, lambda *_: None))
