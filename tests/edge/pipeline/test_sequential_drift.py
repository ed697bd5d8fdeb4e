"""`--images sequential`: groups of images judged until the verdict is decided. Oracle: the graphs run by hand, look by look."""

import json
from types import SimpleNamespace

import onnxruntime as ort
import pytest
from rich.console import Console
from tiny_project import command, read

from calib.errors import ArtifactError, DataError
from edge.cli import run
from edge.cli.console import TerminalProgress
from edge.drift import looks
from edge.drift.alpha_spending import look_levels
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.images.idx import read_idx, write_idx
from edge.images.labelled_images import open_images
from edge.images.preprocess import Preprocess
from edge.pipeline.judge_options import JudgeOptions
from edge.pipeline.rejudge import rejudge_build
from edge.pipeline.steps import drift as drift_step
from edge.pipeline.steps.drift import KEPT_BYTES, _group_sizes
from edge.tasks.classification.drop_interval import Paired, drop_interval
from engines.build_folder.folder import BuildFolder
from engines.build_folder.verify import verify_folder

pytestmark = pytest.mark.slow

LOOKS = (8, 16, 24, 32, 48, 80)
LABELS = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(autouse=True)
def small_looks(monkeypatch):
    monkeypatch.setattr(looks, "FEWEST", 8)


def judged(folder, **changes):
    return rejudge_build(folder / "out", JudgeOptions(**changes), TerminalProgress(Console(quiet=True)))


def expected_look(folder, budget):
    """Number of the first look that decides, and its interval: both graphs run on all images, then counted."""
    stated = read(folder, "manifest.json")["preprocess"]
    preprocess = Preprocess.from_json({name: value for name, value in stated.items() if name != "sha256"})
    images = open_images(folder / "test", LABELS)
    (pixels,) = images.batches(preprocess, 80)
    files = ("model.onnx", "model.int8.onnx")
    right = [ort.InferenceSession(folder / "out" / f).run(None, {"image": pixels})[0].argmax(1) == images.labels for f in files]
    for number, level in enumerate(look_levels(LOOKS), start=1):
        chosen, digest = looks.look_subset(images.sha256, 80, number)
        interval = drop_interval(Paired.of(right[0][chosen], right[1][chosen]), level)
        if interval.high_points <= budget or interval.low_points > budget:
            break
    return number, interval, digest


@pytest.mark.parametrize("budget", [60.0, 90.0, 0.0])
def test_the_first_look_that_decides_is_the_last(project, budget, capsys):
    number, interval, digest = expected_look(project, budget)
    outcome = judged(project, images="sequential", max_drop_points=budget)
    drift = read(project, "drift.json")
    assert (drift["images"], drift["data_sha256"]) == (LOOKS[number - 1], digest)
    assert drift["look"] == {"number": number, "of": 6, "available": 80}
    for end in ("low_points", "high_points", "level"):
        assert drift["interval"][end] == pytest.approx(getattr(interval, end), abs=1e-9)
    assert f"{LOOKS[number - 1]} of 80 images, look {number} of 6" in drift["reason"]
    assert f"{LOOKS[number - 1]} of 80 images" in (project / "out" / "report.html").read_text()
    assert (outcome.verdict == "inconclusive") <= (number == 6)
    verify_folder(BuildFolder(project / "out"))
    assert judged(project).ran == (), "the same again without saying"
    assert run(["report", str(project / "out")]) == 0
    assert run(["inspect", str(project / "out" / "drift.json")]) == 0


def test_looks_differ_and_all_images_are_the_plain_verdict(project):
    before = read(project, "drift.json")
    found = {budget: expected_look(project, budget)[0] for budget in (0.0, 60.0, 90.0)}
    assert found[90.0] < found[60.0] <= found[0.0] == 6, "the cases above stop at different looks"
    judged(project, images="sequential", max_drop_points=0.0)
    drift = read(project, "drift.json")
    same = ("images", "data_sha256", "flips", "drop_points", "sqnr_db", "confusion_engine", "cosine_min")
    assert {name: drift[name] for name in same} == {name: before[name] for name in same}
    assert drift["interval"]["low_points"] <= before["interval"]["low_points"]
    judged(project, images="all", max_drop_points=before["budget_points"])
    assert read(project, "drift.json") == before
    judged(project, images=40)
    assert "look" not in read(project, "drift.json")


def test_only_what_is_needed_is_run(project, monkeypatch):
    rows = []
    genuine = drift_step.answer

    def counted(runner, images, smallest):
        rows.append(len(images))
        return genuine(runner, images, smallest)

    monkeypatch.setattr(drift_step, "answer", counted)
    number, _, _ = expected_look(project, 90.0)
    judged(project, images="sequential", max_drop_points=90.0)
    assert sum(rows) == LOOKS[number - 1] < 80, "each image once"


def test_stored_answers_to_all_images_serve_every_look(project, tmp_path_factory):
    stored = tmp_path_factory.mktemp("stored")
    for file in ("drift.json", "logits.npz", "steps.json"):
        (stored / file).write_bytes((project / "out" / file).read_bytes())
    judged(project, images="sequential", max_drop_points=60.0)
    computed = read(project, "drift.json")
    judged(project, images="all", max_drop_points=60.0)
    judged(project, images="sequential", max_drop_points=60.0, reference=stored)
    assert read(project, "drift.json") == computed


def test_the_gate_compares_the_images_of_a_look_and_refuses_all_against_them(project, tmp_path, capsys):
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    gate = ["gate", str(project / "out"), "--baseline"]
    assert run([*gate, str(whole), "--update"]) == 0
    assert run(command(project, max_drop=90)) == 0, "sequential by default"
    images = read(project, "drift.json")["images"]
    assert images < 80
    assert run([*gate, str(whole)]) == 0
    assert f"{images} of the baseline's 80 images" in capsys.readouterr().out
    assert run([*gate, str(stopped), "--update"]) == 0
    assert run(command(project, eval_images="all")) == 0
    assert run([*gate, str(stopped)]) == 2
    assert "not of this build: other data" in capsys.readouterr().err


def test_another_look_than_the_figures_is_refused(project):
    judged(project, images="sequential", max_drop_points=60.0)
    path = project / "out" / "drift.json"
    genuine = path.read_text()
    (number, of, available), level = json.loads(genuine)["look"].values(), {"level": 0.95}
    looks_stated = [(number + 1, of, available), (number, of, 800), (number, 3, available), (0, of, available)]
    forged = [{"look": dict(zip(("number", "of", "available"), values, strict=True))} for values in looks_stated]
    fields = json.loads(genuine)
    forged += [{"look": None}, {"images": 80}, {"changed_interval": fields["changed_interval"] | level}]
    for change in forged:
        with pytest.raises(ArtifactError, match=r"contradicts itself|malformed"):
            DRIFT_ARTIFACT.parse(json.dumps(fields | change).encode(), path)
    DRIFT_ARTIFACT.parse(genuine.encode(), path)


def test_changed_images_cost_no_verdict(project):
    judged(project, data=project / "test", images="sequential", max_drop_points=90.0)
    pixels = read_idx(project / "test" / "images-idx3-ubyte.gz").copy()
    pixels[1] ^= 1  # of no look so far
    write_idx(project / "test" / "images-idx3-ubyte.gz", pixels)
    with pytest.raises(DataError, match="no longer available"):
        judged(project)


@pytest.mark.parametrize(
    ("kept", "random_weights", "sizes"), [(True, False, LOOKS), (False, False, (80,)), (True, True, (80,))]
)
def test_outputs_too_large_to_keep_and_random_weights_are_judged_at_once(monkeypatch, kept, random_weights, sizes):
    monkeypatch.setattr("edge.pipeline.steps.drift.output_bytes", lambda _outputs: KEPT_BYTES // 160 + (not kept))
    manifest = SimpleNamespace(task="tensors", outputs=(), random_weights=random_weights, labels=())
    assert _group_sizes(manifest, SimpleNamespace(images=range(80), sequential=True)) == tuple(sizes)
    assert _group_sizes(manifest, SimpleNamespace(images=range(80), sequential=False)) == (80,)


def test_another_word_is_refused(project, capsys):
    for images in ("some", "3.5", "", "-1", "sequentially"):
        assert run(["drift", str(project / "out"), f"--images={images}"]) == 2
        assert "--images" in capsys.readouterr().err
    assert run(command(project, eval_images="some")) == 2
