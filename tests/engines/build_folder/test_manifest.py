"""manifest.json and the folder around it: what is written is what is read, and every changed byte is noticed."""

import dataclasses
import json
import os
import random

import pytest

from calib.calibration_table import REFINED as REFINED_OF_CALIB
from calib.errors import InputError
from calib.files import sha256_bytes, sha256_file, write_json
from engines.build_folder.file_names import ARTIFACTS, REFINED
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import (
    CalibrationRecord,
    EngineManifest,
    EngineRecord,
    FileRecord,
    TensorInfo,
    write_manifest,
)
from engines.build_folder.step_record import StepRecord, parse_record, read_record, write_record
from engines.build_folder.verify import examine_folder, verify_folder, verify_recorded
from engines.precision_receipt import Fallback, Receipt


def verify(path, **options):
    """The manifest, once the files that it records are checked."""
    build = BuildFolder(path)
    verify_recorded(build, **options)
    return build.manifest


def read_engine(path):
    build = BuildFolder(path)
    return build.manifest, build.engine()


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
        task="classification",
        created="2026-11-22T14:00:00+00:00",
        checkpoint=FileRecord("weights.safetensors", "0" * 64),
        onnx=record["model.onnx"],
        qdq_onnx=record["model.int8.onnx"],
        typed_onnx=None,
        calibration=CalibrationRecord("calibration.json", sha256_bytes(b"{}"), 512, "d" * 64),
        engine=EngineRecord("engine.engine", sha256_bytes(b"plan"), 4, "trt_rtx", "1.7", ("8.0", "12.0")),
        input=TensorInfo("image", (-1, 3, 64, 64), "float32"),
        outputs=(TensorInfo("logits", (-1, 10), "float32"),),
        preprocess={"mean": [0.5], "sha256": "e" * 64},
        labels=("shirt", "bag"),
        receipt=Receipt(0.99, {"int8": 1.0}, {"fp16": 0.01, "int8": 0.99}, (fallback,)),
        notes=("checked on the CPU",),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def test_round_trip(folder):
    path, manifest = folder
    assert verify(path) == manifest == BuildFolder(path).manifest
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


OUTSIDE = ["../engine.engine", "/etc/passwd", "sub/engine.engine", "", ".", "..", "engine\0.engine"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_outside_the_folder(folder, name):
    path, manifest = folder
    write_manifest(path, dataclasses.replace(manifest, engine=dataclasses.replace(manifest.engine, file=name)))
    with pytest.raises(InputError, match="outside its folder"):
        verify(path)
    write_manifest(path, dataclasses.replace(manifest, checkpoint=FileRecord(name, "0" * 64)))
    with pytest.raises(InputError, match="outside its folder"):
        verify(path)


def test_missing_and_broken_manifests(tmp_path, folder):
    with pytest.raises(InputError, match="not a build folder"):
        verify(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no manifest"):
        verify(tmp_path / "empty")
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


def test_a_manifest_of_before_the_newer_fields_is_read(folder):
    path, manifest = folder
    fields = json.loads((path / "manifest.json").read_text())
    for name in ("version_compatible", "hardware_compatibility", "timing_cache_sha256", "device"):
        del fields["engine"][name]
    (path / "manifest.json").write_text(json.dumps(fields))
    assert BuildFolder(path).manifest == manifest
    fields["engine"]["hardware_compatibility"] = "all"
    (path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"engine\.hardware_compatibility: expected one of .*ampere_plus"):
        verify(path)


def test_an_engine_that_is_no_file_is_refused(folder, tmp_path):
    path, _ = folder
    engine = path / "engine.engine"
    engine.rename(path / "elsewhere")
    for make, said in (
        (lambda: engine.symlink_to("elsewhere"), "link to elsewhere"),
        (engine.mkdir, "not a regular file"),
        (lambda: os.mkfifo(engine), "not a regular file"),
    ):
        make()
        for read in (verify, read_engine):
            with pytest.raises(InputError, match=rf"(?s)engine\.engine.*{said}|{said}.*engine\.engine"):
                read(path)
        engine.rmdir() if engine.is_dir() else engine.unlink()


# --- the whole folder

REPORT = b"<html>"


@pytest.fixture
def sealed(folder):
    """The same folder with a verdict, an export record, a report and a record of steps, all of which fit."""
    path, manifest = folder
    onnx, engine = manifest.onnx.sha256, manifest.engine.sha256
    table = {"onnx_sha256": onnx, "source_sha256": "", "data_sha256": "d" * 64, "images": 512, "preprocess_sha256": "e" * 64}
    write_json(path / "calibration.json", table)
    manifest = dataclasses.replace(
        manifest, calibration=dataclasses.replace(manifest.calibration, sha256=sha256_file(path / "calibration.json"))
    )
    write_manifest(path, manifest)
    write_json(path / "export.json", {"onnx_sha256": onnx})
    drift = {
        "reference": {"sha256": onnx}, "engine": {"sha256": engine}, "preprocess_sha256": "e" * 64, "random_weights": False,
    }  # fmt: skip
    write_json(path / "drift.json", drift)
    (path / "report.html").write_bytes(REPORT)
    reseal(path)
    return path


WROTE = {
    "export": ("model.onnx", "export.json"),
    "calibrate": ("calibration.json",),
    "quantize": ("model.int8.onnx",),
    "engine": ("engine.engine", "manifest.json"),
    "drift": ("drift.json",),
    "report": ("report.html",),
}
ALL = {"steps.json", *(file for files in WROTE.values() for file in files)}


def reseal(path):
    """What somebody who may write everything does after a change: a consistent record."""
    write_record(
        path,
        {
            step: StepRecord("0" * 64, {file: sha256_file(path / file) for file in files if (path / file).exists()})
            for step, files in WROTE.items()
        },
    )


def test_a_folder_is_checked_file_by_file(sealed):
    checked = verify_folder(BuildFolder(sealed))
    assert {file.file: file.sha256 for file in checked} == {name: sha256_file(sealed / name) for name in ALL}
    assert {file.status for file in checked} == {"ok"}


@pytest.mark.parametrize("name", sorted(ALL))
def test_any_flip_is_refused_by_name(sealed, name):
    good, rng = (sealed / name).read_bytes(), random.Random(name)
    for position in {0, len(good) // 2, len(good) - 1, *(rng.randrange(len(good)) for _ in range(20))}:
        data = bytearray(good)
        data[position] ^= 1 << rng.randrange(8)
        (sealed / name).write_bytes(data)
        refused(sealed, name)
    for data in (good[:-1], b"", good + b"\n", good + good):
        (sealed / name).write_bytes(data)
        refused(sealed, name)
    (sealed / name).unlink()
    refused(sealed, name)
    (sealed / name).symlink_to("/etc/passwd")
    refused(sealed, name)


def refused(path, name):
    """The folder is refused naming this file, and no other is blamed."""
    with pytest.raises(InputError) as caught:
        verify_folder(BuildFolder(path))
    where = next(line for line in str(caught.value).splitlines() if line.startswith("  where: "))
    assert where.split(",")[0] == f"  where: {path / name}", str(caught.value)
    assert [file.file for file in examine_folder(BuildFolder(path)) if file.problem] == [name]


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("export.json", "onnx_sha256", "9" * 64),
        ("drift.json", "reference", {"sha256": "9" * 64}),
        ("drift.json", "engine", {"sha256": "9" * 64}),
        ("drift.json", "preprocess_sha256", "9" * 64),
        ("drift.json", "random_weights", True),
        ("calibration.json", "onnx_sha256", "9" * 64),
        ("calibration.json", "source_sha256", "9" * 64),
        ("calibration.json", "data_sha256", "9" * 64),
        ("calibration.json", "images", 511),
        ("calibration.json", "preprocess_sha256", "9" * 64),
    ],
)
def test_an_artifact_of_another_build_is_refused_though_every_digest_was_made_to_fit(sealed, file, field, value):
    fields = json.loads((sealed / file).read_text())
    write_json(sealed / file, {**fields, field: value})
    manifest = BuildFolder(sealed).manifest
    table = dataclasses.replace(manifest.calibration, sha256=sha256_file(sealed / "calibration.json"))
    write_manifest(sealed, dataclasses.replace(manifest, calibration=table))
    reseal(sealed)
    refused(sealed, file)
    with pytest.raises(InputError, match="artifacts of different builds"):
        verify_folder(BuildFolder(sealed))
    write_json(sealed / file, fields)
    write_manifest(sealed, manifest)
    reseal(sealed)
    verify_folder(BuildFolder(sealed))  # the change was all that was wrong


def test_the_certificate_speaks_of_the_graphs_beside_it(sealed):
    (sealed / "model.folded.onnx").write_bytes(b"folded")
    folded = FileRecord("model.folded.onnx", sha256_bytes(b"folded"))
    manifest = BuildFolder(sealed).manifest
    fields = {"onnx_sha256": sha256_bytes(b"float"), "folded_onnx_sha256": folded.sha256}
    for field, said in ((None, None), ("onnx_sha256", "different builds"), ("folded_onnx_sha256", "different builds")):
        write_json(sealed / "xnorm.json", {**fields, **({field: "9" * 64} if field else {})})
        certificate = FileRecord("xnorm.json", sha256_file(sealed / "xnorm.json"))
        table = json.loads((sealed / "calibration.json").read_text())
        write_json(sealed / "calibration.json", {**table, "onnx_sha256": folded.sha256})
        calibration = dataclasses.replace(manifest.calibration, sha256=sha256_file(sealed / "calibration.json"))
        parts = {"xnorm": certificate, "folded_onnx": folded, "calibration": calibration}
        write_manifest(sealed, dataclasses.replace(manifest, **parts))
        reseal(sealed)
        refused(sealed, "xnorm.json") if said else verify_folder(BuildFolder(sealed))


@pytest.mark.parametrize("field", [None, "onnx_sha256", "repaired_onnx_sha256"])
def test_the_networks_certificate_speaks_of_the_graphs_beside_it(sealed, field, monkeypatch):
    monkeypatch.setitem(WROTE, "certify", ("certificate.json",))
    fields = {"onnx_sha256": sha256_bytes(b"float"), "repaired_onnx_sha256": None}
    write_json(sealed / "certificate.json", {**fields, **({field: "9" * 64} if field else {})})
    reseal(sealed)
    refused(sealed, "certificate.json") if field else verify_folder(BuildFolder(sealed))


@pytest.mark.parametrize("name", sorted({*ARTIFACTS} - ALL - {"signature.json"}))
def test_a_file_that_nobody_recorded_is_refused(sealed, name):
    (sealed / name).write_bytes(b"made by nobody")
    refused(sealed, name)
    with pytest.raises(InputError, match=r"unexpected file"):
        verify_folder(BuildFolder(sealed))


def test_files_of_other_names_are_nobodys_business(sealed):
    (sealed / "notes.txt").write_text("mine")
    (sealed / ".lock").touch()
    verify_folder(BuildFolder(sealed))


def test_swapped_files_are_both_named(sealed):
    a, b = sealed / "model.onnx", sealed / "model.int8.onnx"
    a.rename(sealed / "t")
    b.rename(a)
    (sealed / "t").rename(b)
    assert [file.file for file in examine_folder(BuildFolder(sealed)) if file.problem] == [a.name, b.name]


def test_the_chain_is_checked_even_if_the_record_was_made_to_fit(sealed):
    (sealed / "engine.engine").write_bytes(b"nalp")
    reseal(sealed)
    refused(sealed, "engine.engine")
    with pytest.raises(InputError, match=r"of manifest\.json"):
        verify_folder(BuildFolder(sealed))


def test_a_device_needs_the_engine_and_its_manifest_alone(sealed):
    for name in sorted(ALL - {"engine.engine", "manifest.json"}):
        (sealed / name).unlink()
    checked = verify_folder(BuildFolder(sealed), complete=False)
    assert [file.file for file in checked] == ["engine.engine", "manifest.json"]
    with pytest.raises(InputError, match=r"steps\.json"):
        verify_folder(BuildFolder(sealed))
    (sealed / "drift.json").write_text("{}")
    with pytest.raises(InputError, match=r"(?s)unexpected file.*drift\.json"):
        verify_folder(BuildFolder(sealed), complete=False)
    (sealed / "drift.json").unlink()
    (sealed / "model.onnx").write_bytes(b"another")
    with pytest.raises(InputError, match=r"model\.onnx"):
        verify_folder(BuildFolder(sealed), complete=False)
    (sealed / "model.onnx").unlink()
    (sealed / "manifest.json").unlink()
    with pytest.raises(InputError, match="no manifest"):
        verify_folder(BuildFolder(sealed), complete=False)


def test_graphs_that_stayed_in_the_bundle_are_not_asked_for(sealed):
    """On a device the record tells what was written there; the manifest also names graphs that were not."""
    (sealed / "model.onnx").unlink()
    reseal(sealed)
    assert "model.onnx" not in {file.file for file in verify_folder(BuildFolder(sealed))}


@pytest.mark.parametrize("name", OUTSIDE)
def test_neither_record_nor_manifest_may_name_a_path(sealed, name):
    good, manifest = read_record(sealed), BuildFolder(sealed).manifest
    write_record(sealed, {**good, "odd": StepRecord("", {name: "0" * 64})})
    refused(sealed, "steps.json")
    write_manifest(sealed, dataclasses.replace(manifest, typed_onnx=FileRecord(name, "0" * 64)))
    reseal(sealed)
    refused(sealed, "manifest.json")


def test_two_digests_of_one_file_are_refused(sealed):
    manifest = BuildFolder(sealed).manifest
    write_manifest(sealed, dataclasses.replace(manifest, typed_onnx=FileRecord("model.onnx", "0" * 64)))
    reseal(sealed)
    refused(sealed, "manifest.json")


def test_no_folder_no_record_and_an_unsealed_one(sealed, tmp_path):
    with pytest.raises(InputError, match="not a build folder"):
        verify_folder(BuildFolder(tmp_path / "nowhere"))
    steps = json.loads((sealed / "steps.json").read_text())["steps"]
    write_json(sealed / "steps.json", steps)
    refused(sealed, "steps.json")
    with pytest.raises(InputError, match=r"(?s)malformed record.*ufovit build"):
        parse_record((sealed / "steps.json").read_bytes(), sealed / "steps.json")


def test_the_names_agree_with_those_of_calib():
    """Written twice, because `calib.calibration_table` needs numpy, and a folder is verified without it."""
    assert REFINED == REFINED_OF_CALIB
