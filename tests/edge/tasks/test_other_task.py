"""A task with another kind of output goes through drift, gate, report and camera, and nothing of them knows it.

The task lives in this file alone: depth from one image, a map (B, K, H, W) of K = 2 planes. Oracle: errors worked out by hand.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from camera_fakes import PREPROCESS, ListSource, banded
from gate_builds import gate, record, update_baseline
from html_page import Page
from report_folder import Recipe, make_folder, photo, render
from rich.console import Console

from calib.errors import InputError
from calib.files import atomic_path
from edge.camera import audit
from edge.camera.audit import AuditWorker
from edge.camera.capture import EveryFrameFeed
from edge.camera.frame import Frame, Latency, Result
from edge.camera.loop import Loop, Network
from edge.camera.sinks.json_lines import result_fields
from edge.camera.sinks.recorder import drawn
from edge.camera.sinks.terminal import answers_table, counts_line
from edge.camera.web.broadcast import Broadcast
from edge.drift.drift_report import DRIFT_ARTIFACT, DriftReport, Subject, judge_sides, write_drift
from edge.drift.recompute_check import check_stated
from edge.drift.stored_reference import read_stored
from edge.images.labelled_images import ImageSet, open_unlabelled
from edge.images.npz import parse_npz
from edge.inspect.describers import describe_file
from edge.runtime.runner import FakeRunner
from edge.tasks.budget import Budget
from edge.tasks.frame_answer import FrameAnswer, Line, Panel, PanelLayout
from edge.tasks.gate_row import Measurement, Recorded, Row, Tolerance, row
from edge.tasks.interval import LEVEL, Verdict
from edge.tasks.registry import TASKS, load_task, task_of
from edge.tasks.report_parts import Drawing, Figure, NumberRow, Paragraph, Section, TaskReport, Value
from edge.tasks.task import Comparison, GateRequest, Judged, Outputs, Sides, Task
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import write_manifest

IMAGES, SHAPE = 12, (2, 6, 8)


@dataclass(frozen=True)
class DepthComparison(Comparison):
    error_mean: float
    error_worst: float

    @property
    def with_truth(self) -> bool:
        return False


@dataclass(frozen=True)
class DepthAnswer(FrameAnswer):
    depth: np.ndarray

    def json_fields(self) -> dict[str, Any]:
        return {"depth": {"nearest": round(float(self.depth.min()), 3), "shape": list(self.depth.shape)}}

    def lines(self) -> tuple[Line, ...]:
        return (Line(f"nearest {self.depth.min():.1f} m"),)

    def panel(self) -> Panel:
        planes = tuple(Line(f"plane {i}", float(plane.mean()), f"{plane.mean():.2f} m") for i, plane in enumerate(self.depth))
        return Panel("depth", f"{self.depth.min():.1f} m", planes)

    def draw(self, picture: np.ndarray) -> None:
        picture[:, :, 2] = 255


@dataclass(frozen=True)
class Depth(Task):
    name: ClassVar[str] = "depth"
    labelled: ClassVar[bool] = False
    bases: ClassVar[tuple[str, ...]] = ("error",)
    comparison: ClassVar[type[Comparison]] = DepthComparison
    stated: ClassVar[tuple[str, ...]] = ("error_mean", "error_worst", "not_finite")
    quantities: ClassVar[tuple[str, ...]] = ("depth error",)

    def pack_reference(self, outputs: Outputs, truth: Any) -> dict[str, np.ndarray]:
        return {"depth": outputs[0]}

    def unpack_reference(self, arrays: Mapping[str, np.ndarray], images: int) -> tuple[Outputs, Any]:
        return (arrays["depth"],), None

    def budget_text(self, budget: Budget) -> str:
        return f"{budget.points:g} m"

    def open_images(self, path: Path) -> ImageSet:
        return open_unlabelled(path)

    def write_answers(self, path: Path, sides: Sides) -> None:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, reference=sides.reference[0], engine=sides.engine[0])

    def parse_answers(self, data: bytes, path: Path) -> Sides:
        arrays = parse_npz(data, ("reference", "engine"), path, refusal="no depth maps", remake="again")
        return Sides((arrays["reference"],), (arrays["engine"],))

    def misfit(self, sides: Sides, images: int) -> str:
        shape = sides.reference[0].shape
        return "" if shape == (images, *SHAPE) else f"{shape}"

    def compare(self, sides: Sides, level: float = LEVEL) -> DepthComparison:  # it has no interval
        (reference,), (engine,) = sides.reference, sides.engine
        error = np.abs(reference - engine).mean(axis=(1, 2, 3))
        bad = int((~np.isfinite(error)).sum())
        return DepthComparison(len(error), bad, (), float(np.nan_to_num(error).mean()), float(np.nan_to_num(error).max()))

    def judge(self, comparison: Any, budget: Budget, *, random_weights: bool) -> tuple[str, Verdict, str]:
        worse = comparison.not_finite or comparison.error_mean > budget.points
        return "error", "fail" if worse else "pass", f"mean error {comparison.error_mean:.3f} m"

    def worst(self, sides: Sides) -> np.ndarray:
        error = np.abs(sides.reference[0] - sides.engine[0]).mean(axis=(1, 2, 3))
        return np.argsort(-error, kind="stable")[: int((error > 0.4).sum())]

    def record(self, comparison: Any, sides: Sides) -> Recorded:
        return Recorded({"error_mean": comparison.error_mean})

    def default_tolerances(self, recorded: Recorded, images: int) -> dict[str, Tolerance]:
        return {"depth error": Tolerance(0.05, "Half a decimetre is what the sensor sees.")}

    def gate_rows(self, request: GateRequest) -> Iterator[Row]:
        before, now = request.before.figures["error_mean"], request.now.figures["error_mean"]
        assert before is not None
        assert now is not None
        tolerance = request.tolerances["depth error"]
        texts = f"{before:.3f} m", f"{now:.3f} m", f"{tolerance.tolerance:g} m"
        found = Measurement(now - before <= tolerance.tolerance, texts, now - before, "metres lost")
        yield row("depth error", tolerance, found)

    def summary(self, drift: Judged, precision: str) -> dict[str, str]:
        return {"depth": f"{drift.comparison.error_mean:.3f} m"}

    def report(self, drift: Judged, sides: Sides, kept: np.ndarray | None, judged: str) -> TaskReport:
        found = drift.comparison
        drawing = Drawing("depths", (3, 2), "the error of each image", lambda canvas: canvas.add_subplot(), ("In metres.",))
        section = Section(
            "How far off are the depths?", (Paragraph((Value("error_worst", found.error_worst, "worst"),)), drawing)
        )
        value = Value("error_mean", found.error_mean, f"{found.error_mean:.3f} m")
        return TaskReport(
            headline=f"The {judged} sees depth",
            advice="",
            evidence=None,
            basis=("Depth has no accuracy to lose.",),
            figures=(Figure("Depth error", (value,), "mean"),),
            truth="without depth",
            numbers=(NumberRow("depth error", None, value, "mean"),),
            sections=(section,),
            words={"depth": "distance from the camera"},
        )

    def answer(self, outputs: Outputs, most: int) -> DepthAnswer:
        return DepthAnswer(outputs[0][0])

    def panel_layout(self) -> PanelLayout:
        return PanelLayout("nearest", 5, 2)

    def agree(self, reference: Outputs, engine: Outputs) -> bool:
        return bool(np.abs(reference[0] - engine[0]).mean() < 0.1)

    def disagreement(self, reference: Outputs, engine: Outputs) -> dict[str, Any]:
        return {"metres_apart": float(np.abs(reference[0] - engine[0]).mean())}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "depth", f"{__name__}:Depth")


def sides(off: float = 0.01) -> Sides:
    """Depths of 1 m, seen `off` metres too far; image 3 by 0.5 m."""
    reference = np.ones((IMAGES, *SHAPE), np.float32)
    engine = reference + np.float32(off)
    engine[3] = 1.5
    return Sides((reference,), (engine,))


def depth_build(folder: Path, off: float = 0.01, budget: float = 1.0) -> Path:
    """A finished build whose network tells depth."""
    make_folder(folder, Recipe())
    manifest = BuildFolder(folder).manifest
    write_manifest(folder, replace(manifest, task="depth", labels=()))
    task, given = load_task("depth"), sides(off)
    old = BuildFolder(folder).read(DRIFT_ARTIFACT)
    subject = Subject(old.reference, old.engine, old.data, old.data_sha256, old.preprocess_sha256)
    write_drift(folder, task, judge_sides(task, subject, given, Budget(budget), random_weights=False), given, photo)
    record(folder)
    return folder


def test_drift_states_the_figures_of_the_task_and_reads_them_back(tmp_path: Path) -> None:
    folder = depth_build(tmp_path)
    fields = json.loads((folder / "drift.json").read_text())
    assert (fields["task"], fields["judged_by"], fields["verdict"]) == ("depth", "error", "pass")
    assert fields["error_mean"] == pytest.approx((11 * 0.01 + 0.5) / 12)
    assert fields["error_worst"] == pytest.approx(0.5)
    drift = BuildFolder(folder).read(DRIFT_ARTIFACT)
    assert isinstance(drift, DriftReport)
    assert drift.comparison == load_task("depth").compare(sides())
    check_stated(folder, load_task("depth"), drift, sides())
    with pytest.raises(InputError, match="does not follow"):
        check_stated(folder, load_task("depth"), drift, sides(0.02))
    np.testing.assert_array_equal(read_stored(folder).outputs[0], sides().reference[0])
    shown = io.StringIO()
    Console(file=shown, width=120).print(describe_file(folder / "drift.json"))
    assert "error mean" in shown.getvalue()


def test_a_drift_of_an_unknown_task_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = depth_build(tmp_path)
    monkeypatch.delitem(TASKS, "depth")
    with pytest.raises(InputError, match=r"unknown task 'depth'[\s\S]*classification"):
        BuildFolder(folder).read(DRIFT_ARTIFACT)
    with pytest.raises(InputError, match="unknown task"):
        task_of(BuildFolder(folder).manifest)


def test_the_gate_compares_what_the_task_records(tmp_path: Path) -> None:
    baseline = tmp_path / "depth.json"
    update_baseline(depth_build(tmp_path / "good"), baseline)
    report = gate(tmp_path / "good", baseline)
    assert report.verdict == "pass"
    assert [r.quantity for r in report.rows][:3] == ["verdict", "depth error", "scale_largest"]
    worse = gate(depth_build(tmp_path / "bad", off=0.3), baseline)
    assert [r.quantity for r in worse.rows if r.result == "fail"] == ["depth error"]
    with pytest.raises(InputError, match="not of this build: another task"):
        gate(make_classification(tmp_path / "other"), baseline)


def make_classification(folder: Path) -> Path:
    make_folder(folder, Recipe())
    record(folder)
    return folder


def test_the_report_shows_the_section_of_the_task(tmp_path: Path) -> None:
    page = Page(render(depth_build(tmp_path), lambda _share: None))
    assert "How far off are the depths?" in page.text
    assert "The INT8 graph sees depth" in page.text
    assert page.data["error_worst"] == (str(float(np.float32(0.5))), "worst")
    assert "12" in page.data["images"][1]
    assert "distance from the camera" in page.text
    for word in ("Which answers changed?", "SQNR of the logits", "top-1"):
        assert word not in page.text


def test_the_camera_answers_draws_and_tells(tmp_path: Path) -> None:
    task = load_task("depth")

    def depths(images: np.ndarray) -> Outputs:
        return (np.full((len(images), *SHAPE), 2.5, np.float32),)

    results: list[Result] = []
    sink = type("Sink", (), {"__call__": lambda _self, result: results.append(result), "close": lambda _self: None})()
    network = Network(FakeRunner((3, 12, 12), 3, answer=depths), PREPROCESS, task)
    summary = Loop(network, EveryFrameFeed(ListSource([banded(0), banded(1)], live=False)), [sink]).run()
    assert (summary.results, summary.not_finite) == (2, 0)
    (result, _) = results
    fields = json.loads(json.dumps(result_fields(result, audit.datetime.now(audit.timezone.utc))))
    assert fields["depth"] == {"nearest": 2.5, "shape": [2, 6, 8]}
    large = replace(result, frame=replace(result.frame, pixels=np.zeros((240, 320, 3), np.uint8)))
    shown = drawn(large)
    assert (shown[120:, :, 2] == 255).all(), "drawn by the task"
    assert (shown[120:, :, :2] == 0).all()
    assert answers_table(result).columns[0]._cells[0].plain == "nearest 2.5 m"
    assert "results/s" in counts_line(result)
    feed = Broadcast({}, task.panel_layout(), lambda _pixels: b"", lambda: 0.0)
    assert feed._about()["caption"] == "nearest"
    assert feed._figures(result)["title"] == "depth"
    assert feed._figures(result)["bars"][1] == ["plane 1", 2.5, "2.50 m"]


def test_the_audit_asks_the_task_whether_two_answers_agree(tmp_path: Path) -> None:
    manifest = BuildFolder(depth_build(tmp_path / "build")).manifest
    reference = FakeRunner((3, 12, 12), 3, answer=lambda images: (np.ones((len(images), *SHAPE), np.float32),))
    work = AuditWorker(reference, PREPROCESS, manifest, "here", tmp_path / "audit")
    for number, depth in enumerate((1.0, 3.0)):
        outputs = (np.full((1, *SHAPE), depth, np.float32),)
        frame = Frame(banded(0), number, 0.0, 1.0)
        work.process(Result(frame, outputs, DepthAnswer(outputs[0][0]), Latency(1.0, 1.0, 1.0, 1.0, 1.0), number, 0, 1.0))
    assert (work.compared, work.agreed, work.saved) == (2, 1, 1)
    assert json.loads((tmp_path / "audit" / "frame-000000001.json").read_text())["metres_apart"] == 2.0


ROOT = Path(__file__).resolve().parents[3]
WORDS = re.compile(r"label|logit|top1|argmax|softmax", re.IGNORECASE)
ALLOWED = {
    r"\b(un)?labelled|labelled_images": "images with or without right answers, whatever these are",
    r"labelcolor|(set_|[xy])\w*label\w*|aria-label\w*|</?label": "names of matplotlib and HTML",
    r"at\(\"label\"\)|id=\"label\" class=\"label\"": "the page's element for the title of an answer",
    r"logits\.np[yz]|logits_share|logits_bit_identical": "names in files: of a file, fields of attribution.json and xnorm.json",
    r"in\S*_label": "a file of the kernel's power sensors",
    r"substitute for softmax|SQNR of the logits|the logits' SQNR": "sentences on XNorm, and on the layers of UFO-ViT",
    r"\"softmax\": \"softmax\"": "a kind of site of the certificate, and its name on the page",
    r"labels of a classification|\[\{index, label, probability\}\]": "JSON lines are documented where they are written",
}
PIPELINE = r"labels?"
"""The pipeline opens images with their labels and carries the names of classes from checkpoint to manifest and bundle."""


def test_the_common_rooms_know_no_label_and_no_logit() -> None:
    """What stands in drift, gate, report and camera; the list says what is allowed and why."""
    found = []
    for room in ("drift", "gate", "report", "camera", "bench", "pipeline"):
        for path in sorted((ROOT / "edge" / room).rglob("*")):
            if path.suffix in (".py", ".html", ".js"):
                for number, line in enumerate(path.read_text().splitlines(), start=1):
                    allowed = [*ALLOWED, PIPELINE] if room == "pipeline" else ALLOWED
                    rest = re.sub("|".join(allowed), "", line, flags=re.IGNORECASE)
                    if WORDS.search(rest):
                        found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []
