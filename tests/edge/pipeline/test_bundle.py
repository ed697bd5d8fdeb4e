"""From a build to a bundle, and from a bundle to a verdict on a device: what is packed, what is refused, what a device leaves.

The builder is the real TensorRT-RTX. Oracles: zipfile, json and numpy on the files, Pillow for every pixel, ONNX Runtime called
directly for every logit. Where no GPU runs the engine, its graph does, injected in the engine's place.
"""

import shutil
import zipfile
from dataclasses import replace

import numpy as np
import onnx
import pytest
from bundle_contents import ARRAYS, GRAPH, IMAGES, contents, json_of, pack, refused_to_pack
from PIL import Image
from tiny_project import LABELS, sha256

from calib.errors import DataError, MissingError
from edge.cli import run
from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.pipeline.verdict_images import open_verdict_images
from edge.tasks.registry import task_of
from engines.build_folder.folder import BuildFolder
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


def test_pixels(folder):
    """The test images of the project, read from the IDX file with gzip alone."""
    import gzip

    data = gzip.decompress((folder / "test/images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)


test_pixels.__test__ = False


def as_network_sees(image, mean=0.5, std=0.25, size=32):
    """uint8 (H, W) or (H, W, 3) -> float32 (3, S, S) by Pillow: resized in floats, the centre cut out, normalised."""
    channels = image[..., None].repeat(3, axis=2) if image.ndim == 2 else image.repeat(3 // image.shape[2], axis=2)
    height, width = image.shape[:2]
    resized = [round(side * size / min(height, width)) for side in (width, height)]
    planes = [Image.fromarray(channels[..., c].astype(np.float32)).resize(resized, Image.Resampling.BILINEAR) for c in range(3)]
    left, top = ((side - size) // 2 for side in resized)
    cut = np.stack([np.asarray(plane)[top : top + size, left : left + size] for plane in planes])
    return ((cut / 255 - mean) / std).astype(np.float32)


def answers(path, tensors):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.stack(tensors)})[0]


def test_a_bundle_holds_what_the_build_and_the_images_are(rtx):
    found, manifest = contents(rtx / "b.ufovit"), json_of(rtx / "rtx/manifest.json")
    assert set(found) == {"bundle.json", "manifest.json", GRAPH, "calibration.json", "certificate.json", "xnorm.json", *ARRAYS}
    with zipfile.ZipFile(rtx / "b.ufovit") as archive:
        for file in ("manifest.json", GRAPH, "calibration.json", "certificate.json", "xnorm.json"):
            assert archive.read(file) == (rtx / "rtx" / file).read_bytes(), file
    chosen = np.linspace(0, 79, IMAGES).round().astype(int)
    pixels, labels = test_pixels(rtx)[chosen], np.load(rtx / "rtx/logits.npz")["labels"][chosen]
    assert np.array_equal(found["pixels.npy"], pixels.ravel())
    assert found["shapes.npy"].tolist() == [[28, 28, 1]] * IMAGES
    assert np.array_equal(found["labels.npy"], labels)
    tensors = [as_network_sees(image) for image in pixels]
    np.testing.assert_allclose(found["golden.npy"], tensors[0], atol=1e-4)
    np.testing.assert_allclose(found["logits.npy"], answers(rtx / "rtx/model.onnx", tensors), rtol=1e-3, atol=1e-3)
    assert {name: str(found[name].dtype) for name in ARRAYS} == dict(
        zip(ARRAYS, ("uint8", "int64", "int64", "float32", "float32"), strict=True)
    )
    info = found["bundle.json"]
    same = ("model", "precision", "batch", "int8_floor", "random_weights")
    assert {name: info[name] for name in same} == {name: manifest[name] for name in same}
    assert (info["graph"], info["budget_points"]) == (GRAPH, json_of(rtx / "rtx/drift.json")["budget_points"])
    assert info["reference"] == manifest["onnx"]
    assert info["members"][GRAPH]["sha256"] == manifest["typed_onnx"]["sha256"] == sha256(rtx / "rtx" / GRAPH)


def test_facts_of_the_graph_are_those_of_onnx(rtx):
    facts, graph = contents(rtx / "b.ufovit")["bundle.json"]["facts"], onnx.load(rtx / "rtx" / GRAPH).graph
    multiplying = [node.name for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert [layer["name"] for layer in facts["layers"]] == multiplying == facts["traceable"]
    assert facts["input"]["name"] == graph.input[0].name
    assert [output["name"] for output in facts["outputs"]] == [output.name for output in graph.output]
    assert facts["input"]["shape"] == [-1, 3, 32, 32]


def test_the_same_build_and_images_give_the_same_bytes(project):
    for out in ("first.ufovit", "again.ufovit"):
        assert pack(project, out=out) == 0
    assert sha256(project / "again.ufovit") == sha256(project / "first.ufovit")
    assert pack(project, "--images", "23", out="again.ufovit") == 0
    assert sha256(project / "again.ufovit") != sha256(project / "first.ufovit")


def test_large_images_are_stored_smaller_and_the_answers_are_those_to_the_stored_ones(project, photos):
    assert pack(project, "--data", str(photos), out="photos.ufovit") == 0
    found, start, stored = contents(project / "photos.ufovit"), 0, []
    for height, width, channels in found["shapes.npy"]:
        stored.append(found["pixels.npy"][start : start + height * width * channels].reshape(height, width, channels))
        start += stored[-1].size
    for label, image in zip(LABELS, stored, strict=True):
        original = Image.open(photos / label / "a.png")
        shorter = min(original.size)
        size = tuple(round(side * 64 / shorter) for side in original.size) if shorter > 64 else original.size
        expected = np.asarray(original.resize(size, Image.Resampling.BILINEAR) if shorter > 64 else original)
        assert np.array_equal(image, expected), label
        assert min(image.shape[:2]) == min(64, shorter)
    tensors = [as_network_sees(image) for image in stored]
    np.testing.assert_allclose(found["logits.npy"], answers(project / "rtx/model.onnx", tensors), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["golden.npy"], tensors[0], atol=1e-4)
    assert not np.allclose(tensors[0], tensors[0][::-1], atol=0.1), "red and blue differ, or the next test shows nothing"


def test_a_build_for_a_cpu_is_refused(project, built, capsys):
    shutil.copytree(built / "out", project / "cpu")
    refused_to_pack(
        project, capsys, "not typed for a GPU", "target cpu", "ufovit build ufovit_tiny int8 --target rtx", source="cpu"
    )


@pytest.mark.parametrize(
    "file",
    [
        "model.onnx",
        GRAPH,
        "calibration.json",
        "certificate.json",
        "xnorm.json",
        "engine.engine",
        "manifest.json",
        "drift.json",
        "steps.json",
    ],
)
def test_a_build_whose_files_were_changed_is_refused(project, capsys, file):
    path = project / "rtx" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused_to_pack(project, capsys, file)


@pytest.mark.parametrize("file", [GRAPH, "manifest.json", "drift.json", "steps.json"])
def test_a_build_whose_files_are_missing_is_refused(project, capsys, file):
    (project / "rtx" / file).unlink()
    refused_to_pack(project, capsys, file if file != "steps.json" else "")


def test_the_images_of_the_verdict_are_the_default(project):
    assert run(["bundle", str(project / "rtx"), "--images", str(IMAGES), "--out", str(project / "new.ufovit")]) == 0
    found, given = contents(project / "new.ufovit"), contents(project / "b.ufovit")
    assert all(np.array_equal(found[name], given[name]) for name in ARRAYS)
    build = BuildFolder(project / "rtx")
    moved = replace(build.read(DRIFT_ARTIFACT), data=str(project / "moved"))
    with pytest.raises(DataError, match="no longer available") as error:
        open_verdict_images(moved, task_of(build.manifest), "ufovit bundle rtx --data DIR")
    assert error.value.next_command == "ufovit bundle rtx --data DIR"


def test_images_that_do_not_fit_are_refused(project, capsys):
    before = sorted(p.name for p in project.iterdir())
    assert pack(project, "--data", str(project / "none"), out="new.ufovit") == 2
    assert sorted(p.name for p in project.iterdir()) == before


def test_a_bundle_is_a_file(project, capsys):
    assert pack(project, out="rtx") == 2
    assert "a bundle must be a file" in capsys.readouterr().err
    (project / "b.ufovit").unlink()
    assert run(["bundle", str(project / "rtx"), "--data", str(project / "test")]) == 0
    assert (project / "rtx.ufovit").is_file(), "beside the build, by default"
