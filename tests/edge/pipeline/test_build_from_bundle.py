"""A device builds from a bundle and judges; again, on another GPU, without one, killed on the way."""

import shutil

import numpy as np
import pytest
from bundle_contents import DEVICE_FILES, IMAGES, VERDICT_FILES, alter, contents, device, files, json_of, pack
from tiny_network import TINY
from tiny_project import LABELS, sha256

from calib.errors import MissingError
from edge.model.sizes import SIZES
from engines.build_folder.folder import BuildFolder
from engines.build_folder.verify import verify_folder
from engines.hardware import Gpu
from engines.trt import api

pytestmark = pytest.mark.slow

try:
    api.load("rtx")
except MissingError as missing:
    pytest.skip(f"{missing}", allow_module_level=True)


@pytest.fixture
def project(rtx, tmp_path, tiny_size):
    """A writable copy of it."""
    shutil.copytree(rtx, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_device_builds_and_judges(project, on_a_gpu, capsys):
    runner = on_a_gpu()
    assert device(project) == 0
    out = capsys.readouterr().out
    assert "PASS" in out
    assert "engine itself" in out
    folder, source = project / "device", json_of(project / "rtx/manifest.json")
    assert files(folder) == DEVICE_FILES | VERDICT_FILES
    manifest, drift = json_of(folder / "manifest.json"), json_of(folder / "drift.json")
    assert manifest["bundle"] == {"file": "b.ufovit", "sha256": sha256(project / "b.ufovit")}
    assert manifest["engine"]["sha256"] == drift["engine"]["sha256"] == sha256(folder / "engine.engine")
    assert manifest["engine"]["bytes"] == (folder / "engine.engine").stat().st_size
    traced = ("model", "precision", "checkpoint", "onnx", "xnorm", "folded_onnx", "refined_onnx", "qdq_onnx", "typed_onnx")
    traced += ("calibration", "preprocess", "labels", "batch", "int8_floor", "input", "outputs", "random_weights")
    assert {name: manifest[name] for name in traced} == {name: source[name] for name in traced}
    assert manifest["receipt"] == source["receipt"], "the same graph, the same builder"
    assert manifest["notes"] == ["built from a bundle"]
    for record in ("typed_onnx", "xnorm", "calibration"):
        assert manifest[record]["sha256"] == sha256(folder / manifest[record]["file"])
    assert drift["reference"]["sha256"] == source["onnx"]["sha256"]
    assert drift["preprocess_sha256"] == source["preprocess"]["sha256"]
    packed, logits = contents(project / "b.ufovit"), np.load(folder / "logits.npz")
    assert np.array_equal(logits["reference"], packed["logits.npy"])
    assert np.array_equal(logits["labels"], packed["labels.npy"])
    assert drift["images"] == IMAGES == sum(runner.batches)
    assert drift["agreement"] == np.mean(logits["engine"].argmax(1) == packed["logits.npy"].argmax(1))
    assert drift["top1_engine"] == np.mean(logits["engine"].argmax(1) == packed["labels.npy"])
    assert max(runner.batches) <= 8
    assert [check.status for check in verify_folder(BuildFolder(folder))] == ["ok"] * 11
    golden = np.load(folder / "golden.npz")
    assert np.array_equal(golden["tensor"], packed["golden.npy"])
    assert np.array_equal(golden["pixels"].ravel(), packed["pixels.npy"][: golden["pixels"].size])


def test_a_second_run_reuses_every_step_and_a_changed_bundle_runs_them_again(project, on_a_gpu, capsys):
    on_a_gpu()
    assert device(project) == 0
    before = {
        name: (sha256(project / "device" / name), (project / "device" / name).stat().st_mtime_ns) for name in DEVICE_FILES
    }
    shutil.copy(project / "b.ufovit", project / "renamed.ufovit")
    for bundle in ("b.ufovit", "renamed.ufovit"):
        capsys.readouterr()
        assert device(project, bundle=bundle) == 0
        assert capsys.readouterr().out.count("unchanged, reused") == 3
    assert before == {
        name: (sha256(project / "device" / name), (project / "device" / name).stat().st_mtime_ns) for name in DEVICE_FILES
    }
    assert pack(project, "--images", "23") == 0
    capsys.readouterr()
    assert device(project) == 0
    assert "reused" not in capsys.readouterr().out
    assert json_of(project / "device/drift.json")["images"] == 23
    assert json_of(project / "device/manifest.json")["bundle"]["sha256"] == sha256(project / "b.ufovit")
    assert device(project, "--force") == 0
    assert "reused" not in capsys.readouterr().out


def test_another_gpu_judges_anew(project, on_a_gpu, monkeypatch, capsys):
    on_a_gpu()
    for gpus, ran in ((("8.6",), 3), (("8.6",), 0), (("8.9",), 1)):
        monkeypatch.setattr(
            "edge.pipeline.build_from_bundle.gpus", lambda gpus=gpus: tuple(Gpu("a GPU", capability) for capability in gpus)
        )
        capsys.readouterr()
        assert device(project) == 0
        assert capsys.readouterr().out.count("unchanged, reused") == 3 - ran


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda logits: np.roll(logits, 1, axis=1), id="classes swapped"),
        pytest.param(np.zeros_like, id="zeros"),
        pytest.param(lambda logits: -logits, id="negated"),
        pytest.param(lambda logits: np.full_like(logits, np.nan), id="NaN"),
        pytest.param(lambda logits: np.where(np.arange(len(logits))[:, None] == 0, np.inf, logits), id="one infinite"),
        pytest.param(lambda logits: logits[::-1].copy(), id="images swapped"),
    ],
)
def test_a_broken_engine_fails(project, on_a_gpu, capsys, change):
    on_a_gpu(change)
    assert device(project) == 1
    assert "FAIL" in capsys.readouterr().out
    assert json_of(project / "device/drift.json")["verdict"] == "fail"


def test_an_engine_is_given_batches_that_it_takes(project, on_a_gpu):
    """24 images, 10 to a batch, none smaller than 10: the last four are filled up, and only four answers count."""
    alter(project, batch=(10, 10, 10))
    runner = on_a_gpu()
    assert device(project) == 0
    assert runner.batches == [10, 10, 10]
    engine = np.load(project / "device/logits.npz")["engine"]
    assert engine.shape == (IMAGES, len(LABELS))
    np.testing.assert_allclose(engine, np.load(project / "device/logits.npz")["reference"], atol=0.5 * np.abs(engine).max())


def test_without_a_gpu_the_engine_and_its_receipt_are_there_and_no_verdict(project, without_a_gpu, on_a_gpu, capsys):
    for reused in (0, 2):
        assert device(project) == 3
        captured = capsys.readouterr()
        assert "its drift is unknown" in captured.err
        assert "80." in captured.out.partition("receipt")[2], "the receipt is shown"
        assert "verdict" not in captured.out
        assert captured.out.count("unchanged, reused") == reused
        assert files(project / "device") == DEVICE_FILES
    receipt = json_of(project / "device/manifest.json")["receipt"]
    assert receipt == json_of(project / "rtx/manifest.json")["receipt"]
    on_a_gpu()
    assert device(project) == 0
    assert files(project / "device") == DEVICE_FILES | VERDICT_FILES


def test_a_verdict_does_not_outlive_the_gpu_that_gave_it(project, on_a_gpu, monkeypatch):
    with monkeypatch.context():
        on_a_gpu()
        assert device(project) == 0
    monkeypatch.undo()
    monkeypatch.setitem(SIZES, TINY.name, TINY)
    monkeypatch.setattr("edge.runtime.engine_runner.open_device", lambda *_a, **_k: (_ for _ in ()).throw(MissingError("none")))
    assert device(project, "--force") == 3
    assert files(project / "device") == DEVICE_FILES
