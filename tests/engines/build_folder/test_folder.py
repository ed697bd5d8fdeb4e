"""`BuildFolder`: every file is hashed once, and what is returned is what was hashed. Oracle: hashlib, and counted openings."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from calib.artifact import Artifact
from calib.errors import InputError
from engines.build_folder import safe_files
from engines.build_folder.file_names import ENGINES
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest, EngineRecord, FileRecord, write_manifest
from engines.build_folder.step_record import StepRecord, write_record
from engines.build_folder.verify import examine_folder, verify_folder
from engines.layer_records import TensorInfo
from engines.precision_receipt import Receipt

FILES = {"model.onnx": b"graph", "engine.engine": b"plan" * 1000, "golden.npz": b"arrays", "report.html": b"<html>"}
TEXT = Artifact("golden.npz", lambda data, path: (data.decode(), path.name))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "build"
    path.mkdir()
    for name, data in FILES.items():
        (path / name).write_bytes(data)
    manifest = EngineManifest(
        model="ufovit_t", precision="fp32", target="rtx", created="2026-01-01T00:00:00+00:00", checkpoint=None,
        onnx=FileRecord("model.onnx", sha256(path / "model.onnx")), qdq_onnx=None, calibration=None,
        engine=EngineRecord("engine.engine", sha256(path / "engine.engine"), 4000, "trt_rtx", "1.7", ("8.0",)),
        input=TensorInfo("image", (-1, 3, 64, 64), "float32"), outputs=(TensorInfo("logits", (-1, 2), "float32"),),
        preprocess={"sha256": "e" * 64}, labels=("a", "b"), receipt=Receipt(0.0, {}, {}, ()), task="classification",
    )  # fmt: skip
    write_manifest(path, manifest)
    record(path)
    return path


def record(path):
    files = (*FILES, "manifest.json")
    write_record(path, {"all": StepRecord("0" * 64, {name: sha256(path / name) for name in files})})


@pytest.fixture
def openings(monkeypatch):
    """File name -> how often it was opened."""
    counted, genuine = Counter(), safe_files.opened

    def opened(path, **options):
        counted[path.name] += 1
        return genuine(path, **options)

    monkeypatch.setattr(safe_files, "opened", opened)
    return counted


def test_what_is_read_is_what_lies_there(folder):
    build = BuildFolder(folder)
    assert build.manifest.engine.sha256 == build.sha256("engine.engine") == sha256(folder / "engine.engine")
    assert build.engine() == FILES["engine.engine"]
    assert build.read(TEXT) == ("arrays", "golden.npz")
    assert list(build.steps) == ["all"]
    assert build.find(Artifact("flips.npz", lambda _data, _path: None)) is None
    with pytest.raises(InputError, match=r"(?s)file is missing.*flips\.npz"):
        build.data("flips.npz")


def test_each_file_is_opened_once(folder, openings):
    build = BuildFolder(folder)
    assert build.manifest == build.manifest
    assert build.read(TEXT) is build.read(TEXT)
    verify_folder(build)
    verify_folder(build)
    assert openings == Counter([*FILES, "manifest.json", "steps.json"])


def test_a_graph_is_hashed_again_whenever_its_bytes_are_returned(folder):
    build = BuildFolder(folder)
    verify_folder(build)
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match="does not match its recorded digest"):
        build.data("model.onnx")


@pytest.mark.parametrize("name", [*FILES, "manifest.json", "steps.json"])
def test_a_changed_file_is_refused_when_it_is_read(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    build = BuildFolder(folder)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        build.data(name)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        verify_folder(build)
    assert [file.file for file in examine_folder(build) if file.problem] == [name]


def test_what_is_about_to_be_replaced_is_not_looked_at(folder, openings):
    (folder / "report.html").write_bytes(b"edited")
    (folder / "drift.json").write_bytes(b"recorded by nobody")
    verify_folder(BuildFolder(folder), ignore=("report.html", "drift.json"))
    assert "report.html" not in openings
    for ignored, named in (("report.html", "drift.json"), ("drift.json", "report.html")):
        with pytest.raises(InputError, match=named.replace(".", r"\.")):
            verify_folder(BuildFolder(folder), ignore=(ignored,))


def test_without_a_manifest_the_record_alone_decides(folder):
    """What is left of a build whose answers are used elsewhere: see `edge.drift.stored_reference`."""
    for name in ("manifest.json", *ENGINES, "model.onnx"):
        (folder / name).unlink(missing_ok=True)
    assert BuildFolder(folder).read(TEXT)[0] == "arrays"
    (folder / "golden.npz").write_bytes(b"others")
    with pytest.raises(InputError, match="does not match its recorded digest"):
        BuildFolder(folder).read(TEXT)
    with pytest.raises(InputError, match="no manifest"):
        _ = BuildFolder(folder).manifest


def test_a_checkpoint_in_the_folder_is_checked_and_not_signed(folder, tmp_path):
    pytest.importorskip("cryptography", reason="pip install 'ufovit-edge[sign]'")
    import dataclasses

    from pem_keys import pem_pair

    from engines.build_folder.signing import sign

    (folder / "weights.safetensors").write_bytes(b"weights")
    checkpoint = FileRecord("weights.safetensors", sha256(folder / "weights.safetensors"))
    write_manifest(folder, dataclasses.replace(BuildFolder(folder).manifest, checkpoint=checkpoint))
    record(folder)
    private, _ = pem_pair(tmp_path, "ours")
    assert set(sign(folder, private).files) == {*FILES, "manifest.json", "steps.json"}
    (folder / "weights.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        verify_folder(BuildFolder(folder))
    (folder / "weights.safetensors").unlink()
    verify_folder(BuildFolder(folder))


def test_a_required_signature_covers_every_file_that_is_read(folder, tmp_path):
    pytest.importorskip("cryptography", reason="pip install 'ufovit-edge[sign]'")
    from pem_keys import pem_pair

    from engines.build_folder.signing import sign

    (private, ours), (_, theirs) = (pem_pair(tmp_path, name) for name in ("ours", "theirs"))
    with pytest.raises(InputError, match="not signed"):
        BuildFolder(folder, require_signature=ours)
    signature = sign(folder, private)
    with pytest.raises(InputError, match="signed with another key"):
        BuildFolder(folder, require_signature=theirs)
    build = BuildFolder(folder, require_signature=ours)
    assert build.signature == signature
    assert build.engine() == FILES["engine.engine"]
    verify_folder(build)
    (folder / "golden.npz").write_bytes(b"other arrays")
    record(folder)  # a writer of the folder can make the record fit, but cannot sign it
    assert BuildFolder(folder).read(TEXT)[0] == "other arrays"
    with pytest.raises(InputError, match=r"steps\.json"):
        BuildFolder(folder, require_signature=ours).read(TEXT)
    (folder / "steps.json").unlink()
    with pytest.raises(InputError, match=r"golden\.npz"):
        BuildFolder(folder, require_signature=ours).read(TEXT)


@pytest.mark.parametrize("function", ["fstat", "fdopen"])
def test_a_descriptor_that_cannot_be_looked_at_is_closed_and_told_of(folder, monkeypatch, function):
    def fail(*_arguments, **_options):
        raise OSError(5, "Input/output error")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(safe_files.os, function, fail)
    with pytest.raises(InputError, match=r"(?s)file cannot be read.*model\.onnx.*Input/output error"):
        safe_files.read_contained(folder / "model.onnx")
    monkeypatch.undo()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
