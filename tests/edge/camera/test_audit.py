"""The audit: every Nth result against FP32, disagreements kept in bounded number, never in the way."""

import json
import shutil
import threading
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest
from camera_fakes import LABELS, PREPROCESS, banded, picture, result

from calib.errors import InputError, MissingError
from edge.camera import audit as audit_module
from edge.camera.audit import Audit, AuditStatus, AuditWorker, audit_folder, open_reference
from edge.runtime.runner import FakeRunner
from edge.tasks.interval import share_interval
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import FileRecord, write_manifest


@pytest.fixture
def manifest(built):
    return replace(BuildFolder(built / "out").manifest, labels=LABELS)


@pytest.fixture
def about(manifest):
    return FakeRunner((3, 12, 12), 3), PREPROCESS, manifest, "rtsp://camera.lan/a"


def logits(row):
    return tuple(float(i == row) for i in range(3))


def test_answers_are_compared_and_those_that_differ_are_kept(tmp_path, about, manifest):
    work = AuditWorker(*about, tmp_path / "audit")
    answers = [(0, 0), (1, 1), (2, 0), (1, 1), (0, 2)]  # what the picture shows, what the engine says
    for number, (shown, said) in enumerate(answers):
        work.process(result(banded(shown), number, logits=logits(said)))
    work.close()
    assert (work.compared, work.agreed, work.saved) == (5, 3, 2)
    assert sorted(p.name for p in (tmp_path / "audit").iterdir()) == [
        *("frame-000000002.json", "frame-000000002.png", "frame-000000004.json", "frame-000000004.png")
    ]
    record = json.loads((tmp_path / "audit" / "frame-000000002.json").read_text())
    assert (record["engine_answer"], record["reference_answer"], record["frame"]) == ("top", "bottom", 2)
    assert record["source"] == "rtsp://camera.lan/a"
    assert record["engine_sha256"] == manifest.engine.sha256
    assert record["reference_sha256"] == manifest.onnx.sha256
    np.testing.assert_allclose(record["reference_logits"], FakeRunner((3, 12, 12), 3)(PREPROCESS(banded(2))[None])[0][0])
    exact = np.exp(record["reference_logits"]) / np.exp(record["reference_logits"]).sum()
    assert record["reference_probability"] == pytest.approx(exact[2], rel=1e-6)
    from PIL import Image

    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "audit" / record["picture"])), banded(2))
    assert about[0].closed


def test_an_audit_that_agrees_leaves_nothing_behind(tmp_path, about):
    work = AuditWorker(*about, tmp_path / "audit")
    work.process(result(banded(0), logits=logits(0)))
    assert not (tmp_path / "audit").exists()


def test_the_number_kept_is_bounded(tmp_path, about):
    work = AuditWorker(*about, tmp_path / "audit", max_saved=3)
    for number in range(10):
        work.process(result(banded(0), number, logits=logits(1)))
    assert (work.compared, work.agreed, work.saved) == (10, 0, 3)
    assert len(list((tmp_path / "audit").iterdir())) == 6


def test_a_full_disk_ends_the_keeping_and_not_the_comparing(tmp_path, about, monkeypatch):
    def full(path, _pixels):
        raise MissingError("disk full, nothing was written", where=path)

    monkeypatch.setattr(audit_module, "write_png", full)
    said = []
    work = AuditWorker(*about, tmp_path / "audit", said.append)
    for number in range(5):
        work.process(result(banded(0), number, logits=logits(1)))
    assert (work.compared, work.saved) == (5, 0)
    assert len(said) == 1
    assert "disk full" in said[0]


def test_every_nth_result_is_compared(tmp_path, about):
    audit = Audit(AuditWorker(*about, tmp_path), 3, capacity=100)
    for number in range(10):
        audit(result(banded(1), number, logits=logits(1)))
    audit.close()
    assert audit.status == AuditStatus(compared=4, agreed=4)


def test_an_audit_that_is_behind_skips_and_holds_nobody_up(tmp_path, about):
    go = threading.Event()

    def slow(images):
        go.wait(60)
        return (np.zeros((len(images), 3), np.float32),)

    audit = Audit(AuditWorker(FakeRunner((3, 12, 12), 3, answer=slow), *about[1:], tmp_path), 1)
    for number in range(50):
        audit(result(picture(), number, logits=logits(0)))
    assert audit.status.skipped >= 45
    go.set()
    audit.close()
    standing = audit.status
    assert standing.compared + standing.skipped == 50
    assert standing.agreed == standing.compared


def test_the_standing_is_said_with_its_interval():
    low, high = (getattr(share_interval(97, 100), name) for name in ("low_points", "high_points"))
    text = str(AuditStatus(100, 97, 5, 3))
    assert f"97 of 100 answers as FP32, 97.00% [{low:.2f}, {high:.2f}], 5 skipped, 3 saved" == text
    assert str(AuditStatus(skipped=2)) == "nothing compared yet, 2 skipped"


def test_the_reference_is_the_fp32_graph_of_the_build(built, tiny_images):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(built / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: tiny_images})
    with open_reference(BuildFolder(built / "out")) as reference:
        np.testing.assert_allclose(reference(tiny_images)[0], expected, rtol=1e-5, atol=1e-5)


def test_another_graph_is_no_reference(built, tmp_path):
    shutil.copytree(built / "out", tmp_path / "out")
    with (tmp_path / "out" / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(InputError, match=r"model\.onnx"):
        open_reference(BuildFolder(tmp_path / "out"))


def test_a_build_from_a_bundle_has_no_reference(built, tmp_path):
    shutil.copytree(built / "out", tmp_path / "out")
    (tmp_path / "out" / "model.onnx").unlink()
    manifest = BuildFolder(built / "out").manifest
    with pytest.raises(InputError, match="the FP32 graph is missing"):
        open_reference(BuildFolder(tmp_path / "out"))
    write_manifest(tmp_path / "out", replace(manifest, bundle=FileRecord("a.ufovit", "0" * 64)))
    (tmp_path / "out" / "steps.json").unlink()
    with pytest.raises(InputError, match="a build from a bundle has no FP32 graph") as raised:
        open_reference(BuildFolder(tmp_path / "out"))
    assert "without --audit" in str(raised.value)


def test_runs_have_folders_of_their_own(tmp_path):
    when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert audit_folder(tmp_path, when) == tmp_path / "20300102T030405Z"


def test_records_are_plain_json(tmp_path, about):
    work = AuditWorker(*about, tmp_path / "audit")
    work.process(result(banded(0), 7, logits=logits(1)))
    fields = json.loads((tmp_path / "audit" / "frame-000000007.json").read_text())
    assert fields["schema_version"] == 1
    assert fields["labels"] == list(LABELS)
