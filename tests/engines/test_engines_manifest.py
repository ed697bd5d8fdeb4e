"""manifest.json: what is written is what is read, and every changed byte is noticed."""

import dataclasses
import json

import pytest

from calib.errors import InputError
from calib.files import sha256_bytes, sha256_file
from engines.manifest import (
    CalibrationRecord,
    EngineManifest,
    EngineRecord,
    FileRecord,
    TensorInfo,
    read_engine,
    read_manifest,
    verify,
    write_manifest,
)
from engines.receipt import Fallback, Receipt

FILES = {"engine.engine": b"plan", "model.onnx": b"float", "model.int8.onnx": b"qdq", "calibration.json": b"{}"}


@pytest.fixture
def folder(tmp_path):
    record = {}
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        record[name] = FileRecord(name, sha256_bytes(data))
    fallback = Fallback("stem.0/Conv", "int8", "fp16", "why", 0.01)
    manifest = EngineManifest(
        model="ufovit_t",
        precision="int8",
        target="rtx",
        created="2026-11-22T14:00:00+00:00",
        checkpoint=FileRecord("weights.safetensors", "0" * 64),
        onnx=record["model.onnx"],
        qdq_onnx=record["model.int8.onnx"],
        typed_onnx=None,
        calibration=CalibrationRecord("calibration.json", sha256_bytes(b"{}"), 512, "d" * 64),
        engine=EngineRecord("engine.engine", sha256_bytes(b"plan"), 4, "trt_rtx", "1.7", ("8.0", "12.0")),
        input=TensorInfo("image", (-1, 3, 64, 64), "float32"),
        output=TensorInfo("logits", (-1, 10), "float32"),
        preprocess={"mean": [0.5], "sha256": "e" * 64},
        labels=("shirt", "bag"),
        receipt=Receipt(0.99, {"int8": 1.0}, {"fp16": 0.01, "int8": 0.99}, (fallback,)),
        notes=("checked on the CPU",),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def test_round_trip(folder):
    path, manifest = folder
    assert verify(path) == manifest == read_manifest(path)
    assert read_engine(path) == (manifest, b"plan")
    assert json.loads((path / "manifest.json").read_text())["random_weights"] is False


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_byte_is_refused(folder, name):
    path, _ = folder
    data = bytearray(FILES[name])
    data[0] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(InputError, match=name) as caught:
        verify(path)
    assert sha256_file(path / name)[:16] in str(caught.value)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_refused_but_a_device_needs_the_engine_alone(folder, name):
    path, manifest = folder
    (path / name).unlink()
    with pytest.raises(InputError, match=name):
        verify(path)
    if name == "engine.engine":
        with pytest.raises(InputError, match=name):
            verify(path, complete=False)
    else:
        assert verify(path, complete=False) == manifest


def test_a_changed_checkpoint_is_refused_where_it_is_at_hand(folder):
    path, _ = folder
    (path / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        verify(path)


@pytest.mark.parametrize("name", ["../engine.engine", "/etc/passwd", "sub/engine.engine", ""])
def test_no_file_outside_the_folder(folder, name):
    path, manifest = folder
    write_manifest(path, dataclasses.replace(manifest, engine=dataclasses.replace(manifest.engine, file=name)))
    with pytest.raises(InputError, match="outside its folder"):
        verify(path)


def test_missing_and_broken_manifests(tmp_path, folder):
    with pytest.raises(InputError, match="no manifest"):
        verify(tmp_path / "nowhere")
    path, _ = folder
    fields = json.loads((path / "manifest.json").read_text())
    for broken in (
        {**fields, "schema_version": 99},
        {k: v for k, v in fields.items() if k != "engine"},
        {**fields, "model": 3},
    ):
        (path / "manifest.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match="ufovit build"):
            verify(path)
