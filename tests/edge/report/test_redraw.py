"""`ufovit report`: the report written again. Oracle: digests of the folder before and after, and `ufovit verify`."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from report_folder import Recipe, make_folder, render
from rich.console import Console

from calib.errors import ArtifactError, InputError
from calib.files import sha256_file
from edge.cli.console import TerminalProgress
from edge.cli.report import report
from edge.pipeline.rejudge import record_speed, redraw
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import FileRecord, write_manifest
from engines.build_folder.step_record import StepRecord, read_record, write_record
from engines.build_folder.verify import verify_folder
from engines.speed_estimate import MeasuredRatio, MeasuredSpeed

pytestmark = pytest.mark.slow

STEPS = {
    "export": ("model.onnx", "export.json"),
    "certify": ("xnorm.json", "model.folded.onnx"),
    "quantize": ("model.int8.onnx", "calibration.json"),
    "engine": ("engine.engine", "manifest.json"),
    "drift": ("drift.json", "logits.npz", "flips.npz"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A build with every file but the report, all recorded."""
    made = make_folder(tmp_path / "build", Recipe(flips=30))
    (made / ".lock").touch()
    record(made)
    return made


def record(folder: Path, **more: tuple[str, ...]) -> None:
    steps = {**STEPS, **more}
    write_record(
        folder, {name: StepRecord("0" * 64, {f: sha256_file(folder / f) for f in files}) for name, files in steps.items()}
    )


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def quiet() -> TerminalProgress:
    return TerminalProgress(Console(quiet=True))


def test_a_deleted_report_is_drawn_again(folder: Path) -> None:
    before = digests(folder)
    assert redraw(folder, quiet())
    assert (folder / "report.html").read_text() == render(folder, lambda _share: None)
    after = digests(folder)
    assert {name for name in after if before.get(name) != after[name]} == {"report.html", "steps.json"}
    assert read_record(folder)["drift"] == StepRecord("0" * 64, {f: before[f] for f in STEPS["drift"]})
    verify_folder(BuildFolder(folder))
    (folder / "report.html").unlink()
    assert redraw(folder, quiet())
    assert digests(folder) == after


def test_each_file_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashed once, and drawn from the bytes that were hashed; steps.json is what the steps are kept in, too."""
    redraw(folder, quiet())
    openings: Counter[str] = Counter()
    for module, name in ((os, "open"), (io, "open")):
        monkeypatch.setattr(module, name, partial(_counted, getattr(module, name), openings, folder))
    (folder / "report.html").unlink()
    assert redraw(folder, quiet())
    monkeypatch.undo()
    files = {file for step in STEPS.values() for file in step}
    assert {file: openings[file] for file in files} == dict.fromkeys(files, 1)


def _counted(genuine: Any, openings: Counter[str], folder: Path, path: Any, *arguments: Any, **options: Any) -> Any:
    if isinstance(path, (str, os.PathLike)) and Path(path).parent == folder:
        openings[Path(path).name] += 1
    return genuine(path, *arguments, **options)


def test_a_report_that_is_up_to_date_is_left_unchanged(folder: Path) -> None:
    redraw(folder, quiet())
    before, made = digests(folder), (folder / "report.html").stat().st_mtime_ns
    assert not redraw(folder, quiet())
    assert digests(folder) == before
    assert (folder / "report.html").stat().st_mtime_ns == made


def test_an_edited_report_is_replaced(folder: Path) -> None:
    redraw(folder, quiet())
    before = digests(folder)
    (folder / "report.html").write_text("all is well")
    assert redraw(folder, quiet())
    assert digests(folder) == before


@pytest.mark.parametrize("lock", [True, False], ids=["whole", "without hidden files"])
def test_a_copy_is_drawn(folder: Path, tmp_path: Path, *, lock: bool) -> None:
    shutil.copytree(folder, tmp_path / "else" / "where")
    shutil.rmtree(folder)
    copy = tmp_path / "else" / "where"
    if not lock:
        (copy / ".lock").unlink()
    assert report(copy) == 0
    assert Page((copy / "report.html").read_text()).by_id["verdict"] == "FAIL", "a failed verdict does not prevent the report"
    verify_folder(BuildFolder(copy))


def test_what_follows_from_the_attribution_is_drawn_again(folder: Path) -> None:
    from report_folder import attribution

    from calib.artifact import write_artifact

    redraw(folder, quiet())
    write_artifact(folder / "attribution.json", attribution(folder))
    record(folder, attribute=("attribution.json",))
    assert redraw(folder, quiet())
    assert "Which layers does the error come from?" in (folder / "report.html").read_text()


def test_a_measured_speed_is_kept_and_drawn(folder: Path) -> None:
    redraw(folder, quiet())
    (folder / "signature.json").write_text("{}")
    engine = json.loads((folder / "manifest.json").read_text())["engine"]["sha256"]
    measured = MeasuredSpeed(engine, "c" * 64, "fp16", "a GPU", "2026", (MeasuredRatio(1, 1.12, 1.1, 1.14, 40),))
    before = digests(folder)
    with pytest.raises(ArtifactError, match="another engine was measured"):
        record_speed(folder, replace(measured, engine_sha256="0" * 64), quiet())
    assert digests(folder) == before
    record_speed(folder, measured, quiet())
    assert "1.12 times FP16&#39;s speed at batch 1" in (folder / "report.html").read_text()
    assert not (folder / "signature.json").exists(), "it covered the old report"
    verify_folder(BuildFolder(folder))
    record_speed(folder, replace(measured, machine="another GPU"), quiet())
    assert "Measured on another GPU" in (folder / "report.html").read_text()
    after = digests(folder)
    assert all(after[name] == before[name] for name in ("drift.json", "manifest.json", "engine.engine"))


def test_the_signature_is_removed_with_the_report_it_covered(folder: Path) -> None:
    redraw(folder, quiet())
    (folder / "signature.json").write_text("{}")
    assert not redraw(folder, quiet())
    assert (folder / "signature.json").exists()
    (folder / "report.html").unlink()
    assert redraw(folder, quiet())
    assert not (folder / "signature.json").exists()


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _from_a_bundle(folder: Path) -> None:
    write_manifest(folder, replace(BuildFolder(folder).manifest, bundle=FileRecord("b.ufovit", "1" * 64)))
    record(folder)


def _lies(folder: Path) -> None:
    _edit(folder / "drift.json", agreement=1.0)
    record(folder)


SPOILERS = {
    "drift.json was edited": lambda f: _edit(f / "drift.json", verdict="pass"),
    "flips.npz was edited": lambda f: (f / "flips.npz").write_bytes(b"x"),
    "flips.npz is missing": lambda f: (f / "flips.npz").unlink(),
    "logits.npz is missing": lambda f: (f / "logits.npz").unlink(),
    "the engine was replaced": lambda f: (f / "engine.engine").write_bytes(b"another"),
    "the record was edited": lambda f: _edit(f / "steps.json", seal="0" * 64),
    "the record is missing": lambda f: (f / "steps.json").unlink(),
    "drift.json does not follow, and is recorded": _lies,
    "it is a device's": _from_a_bundle,
    "nobody recorded a file": lambda f: (f / "model.typed.onnx").write_bytes(b"x"),
}


@pytest.mark.parametrize("what", SPOILERS)
def test_a_folder_that_is_not_what_was_built_is_left_unchanged(folder: Path, what: str) -> None:
    redraw(folder, quiet())
    SPOILERS[what](folder)
    before = digests(folder)
    (folder / "report.html").unlink()
    del before["report.html"]
    with pytest.raises(InputError) as caught:
        redraw(folder, quiet())
    assert caught.value.exit_code == 2
    assert digests(folder) == before


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a build folder"):
        redraw(tmp_path / "nowhere", quiet())
    assert not (tmp_path / "nowhere").exists()


def test_a_build_that_is_not_finished(folder: Path) -> None:
    for file in STEPS["drift"]:
        (folder / file).unlink()
    steps = read_record(folder)
    del steps["drift"]
    write_record(folder, steps)
    before = digests(folder)
    with pytest.raises(InputError, match=r"drift\.json"):
        redraw(folder, quiet())
    assert digests(folder) == before
