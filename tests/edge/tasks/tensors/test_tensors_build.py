"""A build with two outputs goes through drift, gate, report, inspect and the terminal, and none of them knows what they mean.

Oracle: what was planted, and the figures of drift.json.
"""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gate_builds import edit, gate, record, update_baseline
from html_page import Page
from report_folder import Recipe, make_folder, photo, render
from rich.console import Console

from calib.errors import ArtifactError
from edge.cli.summary import print_summary
from edge.drift.drift_report import DRIFT_ARTIFACT, Subject, judge_sides, write_drift
from edge.drift.recompute_check import check_stated
from edge.drift.stored_reference import read_stored
from edge.inspect.describers import describe_file
from edge.tasks.budget import Budget, budget_for
from edge.tasks.registry import task_of
from edge.tasks.task import Sides
from edge.tasks.tensors.measured_output import measure_batches
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import write_manifest
from engines.layer_records import TensorInfo

N = 60
OUTPUTS = (TensorInfo("embedding", (-1, 16), "float32"), TensorInfo("saliency", (-1, 1, 7, 9), "float32"))
BUDGET = budget_for("tensors", None, None, None)


def sides(spread: float = 0.01) -> Sides:
    """Two outputs; image 5 errs ten times as much as the others at the first."""
    rng = np.random.default_rng(5)
    embedding, saliency = rng.normal(size=(N, 16)).astype(np.float32), rng.random((N, 1, 7, 9)).astype(np.float32)
    noise = rng.normal(0, spread, embedding.shape).astype(np.float32)
    noise[5] *= 10
    return Sides((embedding, saliency), (embedding + noise, saliency + rng.normal(0, 0.02, saliency.shape).astype(np.float32)))


def tensor_build(folder: Path, answers: Sides, budget: Budget = BUDGET) -> Path:
    """A finished build of a network with these answers."""
    make_folder(folder, Recipe())
    write_manifest(folder, replace(BuildFolder(folder).manifest, task="tensors", labels=(), outputs=OUTPUTS))
    build = BuildFolder(folder)
    task, old = task_of(build.manifest), build.read(DRIFT_ARTIFACT)
    subject = Subject(old.reference, old.engine, old.data, old.data_sha256, old.preprocess_sha256)
    write_drift(folder, task, judge_sides(task, subject, answers, budget, random_weights=False), answers, photo)
    record(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tensor_build(tmp_path_factory.mktemp("tensors") / "build", sides())


def test_drift_holds_the_figures_of_every_output(folder: Path) -> None:
    fields = json.loads((folder / "drift.json").read_text())
    assert (fields["task"], fields["judged_by"], fields["verdict"]) == ("tensors", "numbers", "pass")
    assert (fields["budget_sqnr_db"], "budget_cosine" in fields) == (20, False)
    assert [output["name"] for output in fields["outputs"]] == ["embedding", "saliency"]
    drift, task = BuildFolder(folder).read(DRIFT_ARTIFACT), task_of(BuildFolder(folder).manifest)
    assert drift.budget == BUDGET
    check_stated(folder, task, drift, sides())
    with pytest.raises(ArtifactError, match="does not follow"):
        check_stated(folder, task, drift, sides(0.0101))
    np.testing.assert_array_equal(read_stored(folder).outputs[1], sides().reference[1])


@pytest.mark.parametrize(
    "forge",
    [
        lambda fields: fields.update(verdict="fail"),
        lambda fields: fields["outputs"][0].update(sqnr_db=10.0),
        lambda fields: fields["outputs"][0].update(sqnr_db=10.0, sqnr_low_db=9.0, sqnr_high_db=11.0, sqnr_worst_db=5.0),
        lambda fields: fields.update(budget_sqnr_db=60.0),
        lambda fields: fields.update(budget_cosine=7.0),
        lambda fields: fields.update(outputs=[]),
    ],
)
def test_a_drift_that_contradicts_itself_is_refused(folder: Path, tmp_path: Path, forge: object) -> None:
    (tmp_path / "drift.json").write_bytes((folder / "drift.json").read_bytes())
    edit(tmp_path / "drift.json", forge)
    with pytest.raises(ArtifactError, match="contradicts itself"):
        DRIFT_ARTIFACT.parse((tmp_path / "drift.json").read_bytes(), tmp_path / "drift.json")


def test_a_cosine_budget_is_written_and_read_back(tmp_path: Path) -> None:
    built = tensor_build(tmp_path, sides(), Budget(cosine=0.99))
    assert BuildFolder(built).read(DRIFT_ARTIFACT).budget == Budget(cosine=0.99)


def test_the_gate_has_a_row_per_output(folder: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "tensors.json"
    update_baseline(folder, baseline)
    report = gate(folder, baseline)
    assert report.verdict == "pass"
    assert [row.quantity for row in report.rows][1:7] == [
        f"{kind} of {info.name}" for info in OUTPUTS for kind in ("reference", "sqnr", "cosine")
    ]
    worse = gate(tensor_build(tmp_path / "worse", sides(0.02)), baseline)
    assert {row.quantity for row in worse.rows if row.result == "fail"} == {"sqnr of embedding", "cosine of embedding"}
    other = tensor_build(tmp_path / "other", sides())
    renamed = replace(OUTPUTS[0], name="vector")
    write_manifest(other, replace(BuildFolder(other).manifest, outputs=(renamed, OUTPUTS[1])))
    fields = json.loads((other / "drift.json").read_text())
    fields["outputs"][0]["name"] = "vector"
    (other / "drift.json").write_text(json.dumps(fields))
    record(other)
    with pytest.raises(ArtifactError, match="other outputs"):
        gate(other, baseline)


def test_the_report_shows_every_output_and_the_worst_images(folder: Path) -> None:
    page = Page(render(folder, lambda _share: None))
    fields = json.loads((folder / "drift.json").read_text())
    for i, output in enumerate(fields["outputs"]):
        assert float(page.data[f"outputs.{i}.sqnr_db"][0]) == output["sqnr_db"]
        assert output["name"] in page.text
    for words in ("How far apart are the outputs?", "SQNR of at least 20 dB at every output", "worst first"):
        assert words in page.text
    for word in ("Which answers changed?", "SQNR of the logits", "top-1", "softmax probability", "inf dB"):
        assert word not in page.text


@pytest.mark.slow
def test_a_build_whose_outputs_were_too_large_to_keep_is_read_alike(folder: Path, tmp_path: Path) -> None:
    kept = sides()
    halves = (slice(0, N // 2), slice(N // 2, N))
    pairs = [tuple(tuple(output[half] for output in side) for side in (kept.reference, kept.engine)) for half in halves]
    measured = tensor_build(tmp_path / "measured", measure_batches(pairs, ("embedding", "saliency")))
    assert (measured / "drift.json").read_text() == (folder / "drift.json").read_text()
    assert (measured / "flips.npz").read_bytes() == (folder / "flips.npz").read_bytes()
    pages = [Page(render(built, lambda _share: None)) for built in (folder, measured)]
    assert pages[0].data == pages[1].data
    update_baseline(folder, tmp_path / "kept.json")
    update_baseline(measured, tmp_path / "measured.json")
    answers = [json.loads((tmp_path / file).read_text())["measured"]["answers"] for file in ("kept.json", "measured.json")]
    assert answers[0] == answers[1]
    assert gate(measured, tmp_path / "kept.json").verdict == "pass"
    worse = measure_batches([(sides(0.02).reference, sides(0.02).engine)], ("embedding", "saliency"))
    fails = gate(tensor_build(tmp_path / "worse", worse), tmp_path / "measured.json")
    assert {row.quantity for row in fails.rows if row.result == "fail"} == {"sqnr of embedding", "cosine of embedding"}
    task = task_of(BuildFolder(measured).manifest)
    with pytest.raises(ArtifactError, match="does not follow"):
        check_stated(measured, task, BuildFolder(measured).read(DRIFT_ARTIFACT), worse)


EQUAL = sides().reference
ZERO = (np.zeros((N, 16), np.float32), EQUAL[1])
EXTREMES = {
    "equal to the last bit": Sides(EQUAL, EQUAL),
    "NaN or infinity": Sides(EQUAL, (EQUAL[0] * np.float32(np.nan), EQUAL[1])),
    "zero for every image": Sides(ZERO, ZERO),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", EXTREMES)
def test_the_report_of_an_extreme(tmp_path: Path, words: str) -> None:
    assert words in Page(render(tensor_build(tmp_path, EXTREMES[words]), lambda _share: None)).text


def test_terminal_and_inspect_show_every_output(folder: Path) -> None:
    shown = io.StringIO()
    print_summary(Console(file=shown, width=200), folder)
    assert "embedding" in shown.getvalue()
    assert "worst image" in shown.getvalue()
    assert "saliency" in shown.getvalue()
    described = describe_file(folder / "drift.json")
    assert described.facts["budget"] == "SQNR of at least 20 dB at every output"
    assert any("embedding" in row for listing in described.listings for row in listing.rows)
