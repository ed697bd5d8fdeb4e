"""`describe_file`: what a person reads of each artifact, against what was written into it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gate_builds import record
from import_graphs import custom_operator, data_if
from network_certificates import HIDDEN, add_certificate, network_certificate
from onnx import TensorProto, helper, numpy_helper
from report_folder import FALLBACK, PLAN_STEPS, TENSORS, Recipe, make_folder
from rich.console import Console
from safetensors.numpy import save_file

from calib.artifact import write_artifact
from calib.errors import InputError, UsageError
from calib.files import sha256_file
from edge.inspect import describe_file
from edge.model.metadata import METADATA_KEY
from engines.layer_records import EngineEvidence
from engines.precision_receipt import Fallback
from engines.speed_estimate import MeasuredRatio, MeasuredSpeed, SpeedEstimate, describe_fp16, make_estimate


def shown(path: Path) -> str:
    stream = io.StringIO()
    Console(file=stream, width=250, highlight=False).print(describe_file(path))
    return stream.getvalue()


def facts(text: str) -> dict[str, str]:
    """Name -> text of the two-column part."""
    rows = [line.split("  ", 1) for line in text.splitlines() if "  " in line]
    return {name: rest.strip() for name, rest in rows if name.strip()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("build"), Recipe(flips=100, fallbacks=(FALLBACK,)))


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("random"), Recipe(random_weights=True))


def recorded(folder: Path, recipe: Recipe) -> Path:
    record(make_folder(folder, recipe))
    return folder


def test_manifest(folder: Path) -> None:
    text = shown(folder / "manifest.json")
    written = json.loads((folder / "manifest.json").read_text())
    assert facts(text)["model"] == "ufovit_t, int8, target rtx"
    assert written["engine"]["sha256"] in text
    assert "300,000 bytes (0.3 MB)" in text
    assert "93.8% int8, 6.2% fp16" in facts(text)["does"]
    assert FALLBACK.layer in text, "not read as markup"
    assert FALLBACK.reason in text
    for name in ("checkpoint", "onnx", "xnorm", "folded_onnx", "qdq_onnx", "calibration"):
        assert written[name]["sha256"] in text


def test_steps_of_an_engine(folder: Path) -> None:
    """Oracle: the constants of the recipe, summed here."""
    text = shown(folder / "manifest.json")
    moved = sum(step.weight_bytes + (step.activation_bytes or 0) for step in PLAN_STEPS)
    assert facts(text)["runs"].startswith(f"66 steps in one inference, which move {moved:,} bytes")
    assert re.search(r"^pointwise +60 +46,200 bytes +1,693,440 bytes \(1\.7 MB\) +0", text, re.MULTILINE)
    assert "The steps of blocks.0" in text
    assert "blocks.0.attn.v/<i>MatMul</i>" in text, "not read as markup"


def test_the_expected_and_the_measured_speed(tmp_path: Path) -> None:
    evidence = EngineEvidence(steps=PLAN_STEPS)
    fp16 = describe_fp16("b" * 64, evidence, ())
    write_artifact(tmp_path / "fp16_plan.json", fp16)
    assert facts(shown(tmp_path / "fp16_plan.json"))["runs"].startswith("66 steps")
    write_artifact(tmp_path / "speed.json", make_estimate("a" * 64, evidence, (), fp16, "thor"))
    text = shown(tmp_path / "speed.json")
    assert facts(text)["FP16 runs"].startswith("66 steps")
    assert re.search(r"^thor +Jetson T5000 +faster: 1\.00 to 1\.00 times FP16's speed at batch 1", text, re.MULTILINE)
    write_artifact(tmp_path / "speed.json", SpeedEstimate("a" * 64, None, None, (), "weights overflow FP16"))
    assert "no estimate: weights overflow FP16" in shown(tmp_path / "speed.json")
    measured = MeasuredSpeed("a" * 64, "b" * 64, "fp16", "Orin Nano", "2026", (MeasuredRatio(8, 1.5, 1.4, 1.6, 40),))
    write_artifact(tmp_path / "measured_speed.json", measured)
    assert "1.50 times FP16's speed at batch 8 (1.40 to 1.60, 40 pairs)" in shown(tmp_path / "measured_speed.json")


LAYERS = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "image", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Int8"}],
        }
    ]
}


def test_files_of_trtexec(tmp_path: Path) -> None:
    """A device writes them; they are described anywhere."""
    layers, profile = tmp_path / "layers.json", tmp_path / "profile.json"
    layers.write_text(json.dumps(LAYERS))
    assert re.search(r"^reformat +1 +0 bytes +960 bytes +0", shown(layers), re.MULTILINE)
    times = [{"count": 9}, {"name": "fast", "averageMs": 0.25}, {"name": "slow", "averageMs": 0.75}]
    profile.write_text(json.dumps(times))
    text = shown(profile)
    assert facts(text)["sum of their mean times"] == "1.000 ms"
    assert text.index("slow") < text.index("fast")
    assert "75.0%" in text


@pytest.mark.parametrize("content", ["{}", '{"layers": []}', '{"a": "b"}'])
def test_another_json_file_is_of_an_unknown_kind(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(UsageError, match="unknown kind of artifact"):
        shown(tmp_path / "other.json")


@pytest.mark.parametrize(
    "content", ['{"Layers": ["names", "only"]}', '[{"name": "a"}]', '{"Layers": [{"LayerType": "signal"}]}']
)
def test_files_of_trtexec_without_steps_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(InputError):
        shown(tmp_path / "other.json")


def test_calibration_table_lists_the_widest_first(folder: Path) -> None:
    text = shown(folder / "calibration.json")
    lines = [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in TENSORS]
    tensors = json.loads((folder / "calibration.json").read_text())["tensors"]
    assert lines == sorted(tensors, key=lambda name: -tensors[name]["amax"])
    assert facts(text)["tensors"] == str(len(TENSORS))
    sources = {
        line.split()[0]: line.split()[-2] for line in text.splitlines() if line.split()[:1] and line.split()[0] in TENSORS
    }
    assert sources == {name: scale["source"] for name, scale in tensors.items()}
    assert set(sources.values()) == {"data", "proof"}
    assert facts(text)["from proof"].startswith(f"{list(sources.values()).count('proof')} of {len(TENSORS)} scales")


def test_certificate(folder: Path) -> None:
    text = shown(folder / "xnorm.json")
    written = json.loads((folder / "xnorm.json").read_text())
    said, sites, before = facts(text), written["sites"], written["before"]
    assert said["verdict"] == "STABLE in fp16, int8 (before the repair: unstable)"
    assert said["images"] == str(written["images"])
    counts = {v: sum(s["verdicts"]["fp16"]["verdict"] == v for s in before) for v in ("stable", "at risk", "unstable")}
    assert said["XNorms in fp16"] == f"{len(sites)} stable (before: {', '.join(f'{n} {v}' for v, n in counts.items())})"
    assert said["based on"].startswith(
        f"certified maxima at {sum(s['bound_sum_sq'] is not None for s in sites)} of {len(sites)}"
    )
    assert said["folded"] == f"{sum(bool(s['fold']) for s in sites)} XNorms, 6 weights times 2^-3 to 2^-1"
    assert said["islands"] == "none"
    assert said["repair checked"] == "on 24 images FP32 logits are the same to the last bit, ranges as scaled"
    assert said["error, all of FP16"].startswith("0.0004 at worst")
    assert f"NaN or infinity at 1, first {before[-1]['name']}" in said["error, all of FP16"]
    assert said["error, sums in FP32"].startswith("0.00035 at worst")
    assert "direction error 0.008" in said["INT8 after the norm"]
    assert "direction error 0.027" in said["INT8 before the norm"]
    for name in ("onnx_sha256", "folded_onnx_sha256", "data_sha256"):
        assert written[name] in text
    lines = text[text.index("smallest headroom first") :].splitlines()
    for site in sites:
        (line,) = [line for line in lines if line.startswith(site["name"])]
        assert site["verdicts"]["fp16"]["reason"] in line, "not read as markup"
        assert f"{site['sum_sq_min']:.3g} .. {site['sum_sq_max']:.3g}" in line
        assert ("2^-5 (k/MatMul.weight 2^-3, v/MatMul.weight 2^-1 to 2^-2 by head)" in line) == bool(site["fold"])


def test_network_certificate(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe())
    add_certificate(tmp_path)
    record(tmp_path)
    text = shown(tmp_path / "certificate.json")
    written = json.loads((tmp_path / "certificate.json").read_text())
    said, cover = facts(text), written["coverage"]
    assert said["verdict"] == "STABLE in what is judged, 1 place not judged (before the repair: unstable) in FP16 and BF16"
    assert said["based on"].startswith(
        f"overflow ruled out for every input at {cover['certified']} of {cover['stored']} tensors"
    )
    assert said["emulated as it is"] == "25.00% of 16 images answered alike, 3 with NaN or infinity, no finite output"
    assert said["emulated repaired"] == "100.00% of 16 images answered alike, SQNR of the outputs 58.5 dB"
    assert said["repairs"] == "3 scaled in the weights, 1 in FP32 islands"
    assert said["islands"] == "1 site in FP32: 2 Casts, 4,096 values of an image cross them"
    for name in ("onnx_sha256", "repaired_onnx_sha256", "data_sha256"):
        assert written[name] in text
    lines = text.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("LayerNorm ")]
    assert row == ["LayerNorm", "3", "unstable", ">", "stable", "2.9", "bits", "blocks.0.norm/ReduceMean", "3", "of", "3", "3"]
    repaired = [line for line in lines if "scaled in the weights by 2^-5" in line]
    assert [line.split()[0] for line in repaired] == [f"blocks.{i}.norm/ReduceMean" for i in range(3)]
    assert any(line.split()[:1] == [f"If_{HIDDEN}"] for line in lines), "not read as markup"
    of_folder = shown(tmp_path)
    assert facts(of_folder)["certificate"].startswith("STABLE in what is judged, 1 place not judged")
    assert "Places by kind, 16 bits" in of_folder


def test_an_unstable_network_is_a_warning(tmp_path: Path) -> None:
    write_artifact(tmp_path / "certificate.json", network_certificate(unstable=True))
    text = shown(tmp_path / "certificate.json")
    assert "UNSTABLE: FP16 and BF16 cannot compute this network" in text
    listed = text[text.index("Not stable, or repaired") :].splitlines()
    assert listed[2].split()[:5] == ["blocks.2.attn/Softmax", "softmax", "unstable", "unstable", "x"]
    write_artifact(tmp_path / "certificate.json", network_certificate())
    assert "cannot compute" not in shown(tmp_path / "certificate.json")


def test_an_unstable_xnorm_comes_first(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe(xnorm="unstable", xnorm_blocks=30))
    text = shown(tmp_path / "xnorm.json")
    last = json.loads((tmp_path / "xnorm.json").read_text())["sites"][-1]
    assert "UNSTABLE: FP16 and INT8 cannot compute this network" in text
    assert facts(text)["verdict"].startswith("UNSTABLE")
    assert facts(text)["XNorms in fp16"].startswith("59 stable, 1 unstable")
    lines = text[text.index("smallest headroom first (20 of 60)") :].splitlines()
    assert lines[2].startswith(last["name"])
    assert "unstable" in lines[2]
    assert len([line for line in lines if line.startswith("blocks")]) == 20


def test_islands_and_their_cost(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe(precision="fp16", xnorm="island"))
    text = shown(tmp_path / "xnorm.json")
    assert facts(text)["islands"] == "1 XNorm in FP32: 3 Casts, 12,345 values of an image cross them"
    assert facts(text)["verdict"].startswith("STABLE in fp16 (")
    assert [line.split()[0] for line in text.splitlines() if line.rstrip().endswith("FP32 island")] == [
        "blocks.2.attn.xnorm_kv/ReduceL2"
    ]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["sites"][0]["verdicts"].pop("fp16"),
        lambda c: c["before"].pop(),
        lambda c: c.update(sites=[], before=[]),
        lambda c: c.update(precisions=["fp8"]),
        lambda c: c.update(precisions=[]),
    ],
)
def test_a_certificate_without_all_verdicts_is_refused(tmp_path: Path, spoil: Any) -> None:
    make_folder(tmp_path, Recipe())
    (tmp_path / "steps.json").unlink()  # the file alone
    written = json.loads((tmp_path / "xnorm.json").read_text())
    spoil(written)
    (tmp_path / "xnorm.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match="without a verdict") as caught:
        describe_file(tmp_path / "xnorm.json")
    assert "next: ufovit certify" in str(caught.value)


def test_drift(folder: Path) -> None:
    written = json.loads((folder / "drift.json").read_text())
    said = facts(shown(folder / "drift.json"))
    assert said["verdict"] == f"FAIL: {written['reason']}"
    assert said["flips"] == f"right to wrong: 100, wrong to right: {written['flips']['wrong_to_right']}"
    assert said["mcnemar p"] == f"{written['mcnemar_p']:.5g}"
    assert f"kl mean: {written['distance']['kl_mean']:.5g}" in said["distance"]
    assert said["reliability reference"].startswith(f"ece: {written['reliability_reference']['ece']:.5g}")
    assert f"low: {written['interval']['low_points']:.5g} points" in said["interval"]
    assert f"high: {written['interval']['high_points']:.5g} points" in said["interval"]
    assert said["data"] == written["data"]
    assert said["data sha256"] == written["data_sha256"]
    elsewhere = {"reason", "reference", "engine", "schema_version", "sqnr_db", "drop_points", "budget_points"}
    assert {name.replace("_", " ") for name in written.keys() - elsewhere} <= said.keys()
    assert {"judged", "against", "sqnr", "drop", "budget"} <= said.keys()
    assert "the graph, not the engine" in said["judged"]


def test_export_and_steps(folder: Path) -> None:
    said = facts(shown(folder / "export.json"))
    assert said["simplification"].startswith("used: no, reason: onnxsim took more than 120 s")
    assert "131.38 dB" in said["parity"]
    text = shown(folder / "steps.json")
    assert facts(text)["done"] == "all"
    assert sha256_file(folder / "model.onnx") in text


RECORDED = (
    "steps.json", "manifest.json", "drift.json", "logits.npz", "flips.npz", "golden.npz", "export.json", "report.html",
    "xnorm.json", "calibration.json", "model.onnx", "engine.engine",
)  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_a_folder_with_another_file_than_the_recorded_one_is_refused(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, Recipe())
    for file in ("golden.npz", "report.html"):
        (tmp_path / file).write_bytes(b"of the build")
    record(tmp_path)
    assert "every recorded file" in shown(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=re.escape(name)):
        describe_file(tmp_path)


STEPS = "with this digest in steps.json"
RECORDERS = {
    "drift.json": STEPS,
    "xnorm.json": f"{STEPS} and manifest.json",
    "model.int8.onnx": f"{STEPS} and manifest.json",
    "manifest.json": STEPS,
}


@pytest.mark.parametrize("name", ["drift.json", "xnorm.json", "model.int8.onnx", "steps.json", "manifest.json"])
def test_a_file_of_a_build_folder_must_be_the_recorded_one(tmp_path: Path, name: str) -> None:
    record(make_folder(tmp_path / "build", Recipe()))
    path = tmp_path / "build" / name
    assert facts(shown(path))["recorded"] == ("nowhere beside it" if name == "steps.json" else RECORDERS[name])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"0", b"1", 1) if b"0" in data else data + b"\0")
    with pytest.raises(InputError):
        describe_file(path)
    path.write_bytes(data)
    (tmp_path / "copy").mkdir()
    if name != "steps.json":
        (tmp_path / "copy" / name).write_bytes(data)
        assert facts(shown(tmp_path / "copy" / name))["recorded"] == "not known: no steps.json beside it"


def test_without_its_record_a_folder_may_hold_the_engine_and_its_manifest_alone(tmp_path: Path) -> None:
    record(make_folder(tmp_path, Recipe()))
    (tmp_path / "steps.json").unlink()
    with pytest.raises(InputError, match="unexpected file"):
        describe_file(tmp_path)
    for path in tmp_path.iterdir():
        if path.name not in ("manifest.json", "engine.engine"):
            path.unlink()
    assert facts(shown(tmp_path))["verdict"] == "none: no drift.json"


@pytest.mark.parametrize("name", ["report.html", "flips.npz", "attribution.json"])
def test_a_folder_with_a_file_that_nothing_records_is_refused(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, Recipe())
    (tmp_path / name).unlink(missing_ok=True)
    record(tmp_path)
    shown(tmp_path)
    (tmp_path / name).write_bytes(b"added")
    with pytest.raises(InputError, match="unexpected file"):
        describe_file(tmp_path)


def test_folder(folder: Path) -> None:
    text = shown(folder)
    assert facts(text)["verdict"].startswith("FAIL")
    assert facts(text)["digests"].startswith("every recorded file")
    for name in ("model.int8.onnx", "engine.engine", "drift.json"):
        assert name in text
    assert FALLBACK.layer in text


def test_folder_without_a_verdict(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe())
    (tmp_path / "drift.json").unlink()
    record(tmp_path)
    assert facts(shown(tmp_path))["verdict"] == "none: no drift.json"


def test_engine_and_its_manifest(folder: Path, tmp_path: Path) -> None:
    text = shown(folder / "engine.engine")
    assert sha256_file(folder / "engine.engine") in text
    assert facts(text)["backend"] == "trt_rtx 1.7.1.116"
    alone = tmp_path / "alone.engine"
    alone.write_bytes(b"plan")
    assert "without a manifest" in shown(alone)


def test_a_replaced_engine_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe())
    (tmp_path / "engine.engine").write_bytes(b"another plan")
    for path in (tmp_path / "engine.engine", tmp_path):
        with pytest.raises(InputError, match="does not match"):
            describe_file(path)


@pytest.mark.parametrize("file", ["", "manifest.json", "drift.json", "engine.engine"])
def test_random_weights_are_stamped(random_folder: Path, folder: Path, file: str) -> None:
    assert "RANDOM WEIGHTS" in shown(random_folder / file)
    assert "RANDOM WEIGHTS" not in shown(folder / file)


def test_onnx_graph(folder: Path) -> None:
    text = shown(folder / "model.int8.onnx")
    said = facts(text)
    assert said["input"] == "image: float (batch, 3)"
    assert said["output"] == "logits: float (batch, 3)"
    assert said["opset"] == "20"
    assert said["Q/DQ"] == f"{len(TENSORS)} activations, 1 weights"
    assert f"{len(TENSORS)} QuantizeLinear" in said["nodes"]
    assert said["multiply-accumulates"] == "9 in 1 layers, for one image"
    assert said["metadata calib.method"] == "entropy"
    assert "The lint has no findings" in text
    assert "Layers in float" not in text


def test_onnx_with_something_to_find(tmp_path: Path) -> None:
    """A weight quantized alone: TensorRT runs such a product in float."""
    weight = numpy_helper.from_array(np.ones((5, 7), np.int8), "w")
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    zero = numpy_helper.from_array(np.int8(0), "z")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], name="dequantize"),
        helper.make_node("MatMul", ["x", "wf"], ["y"], name="product"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, k]) for n, k in (("x", 5), ("y", 7))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, scale, zero])
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    text = shown(path)
    assert "1 findings of the lint" in text
    assert "product" in text
    assert "Layers in float: 1" in text
    assert "100.00%" in text
    assert "no Q/DQ on operand A" in " ".join(text.split())
    assert facts(text)["multiply-accumulates"].startswith("70 in 1 layers")


def _checkpoint(path: Path, **changes: Any) -> None:
    metadata = {
        "schema_version": 1,
        "model": "ufovit_t",
        "image_size": 64,
        "classes": 2,
        "kv_axis": -2,
        "labels": ["cat", "[red]dog[/red]"],
        "preprocess": {"image_size": 64, "resize": 64, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        "random_weights": False,
        "training": {"data": "none", "top1": 0.5},
        **changes,
    }
    tensors = {"a": np.zeros((3, 5), np.float16), "b": np.zeros(7, np.float32)}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(metadata)})


def test_checkpoint(tmp_path: Path) -> None:
    from edge.model.sizes import config

    path = tmp_path / "w.safetensors"
    _checkpoint(path, kv_axis=config("ufovit_t", image_size=64, classes=2).kv_axis)
    text = shown(path)
    said = facts(text)
    assert said["tensors"].startswith("2, 22 numbers")
    assert said["types"] == "F16 15, F32 7"
    assert said["model"] == "ufovit_t, 64 px, 2 classes"
    assert said["labels"] == "cat, [red]dog[/red]"
    assert said["training top1"] == "0.5"
    assert "RANDOM" not in text
    _checkpoint(path, kv_axis=config("ufovit_t", image_size=64, classes=2).kv_axis, random_weights=True)
    assert "RANDOM WEIGHTS" in shown(path)


def test_a_strangers_safetensors(tmp_path: Path) -> None:
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "s.safetensors", metadata={"format": "pt"})
    text = shown(tmp_path / "s.safetensors")
    assert "not a checkpoint of this toolkit" in text
    assert facts(text)["metadata format"] == "pt"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", b"hello", "calibration.json"),
        ("model.onnx", b"\xff" * 300, "not an ONNX file"),
        ("model.onnx", b"", "an empty file"),
        ("w.safetensors", b"\x00" * 40, "cannot be read"),
        ("manifest.json", b"{}", "schema version"),
        ("drift.json", b"[", "not a JSON file"),
        ("xnorm.json", b'{"schema_version": 1}', "malformed artifact"),
        ("steps.json", b'{"export": 3}', "malformed record"),
    ],
)
def test_what_is_no_artifact_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        describe_file(tmp_path / name)


def test_unknown_files_get_the_list(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError) as caught:
        describe_file(tmp_path / "notes.txt")
    for known in (
        "manifest.json",
        "xnorm.json",
        "calibration.json",
        "drift.json",
        "export.json",
        "*.onnx",
        "*.safetensors",
        "*.engine",
    ):
        assert known in str(caught.value)
    with pytest.raises(InputError, match="file or folder not found"):
        describe_file(tmp_path / "absent.json")
    with pytest.raises(InputError, match="no manifest"):
        describe_file(tmp_path)


def test_torch_is_not_needed(folder: Path) -> None:
    files = [
        folder / n
        for n in ("", "manifest.json", "model.int8.onnx", "engine.engine", "drift.json", "calibration.json", "xnorm.json")
    ]
    program = (
        "import sys, pathlib; from edge.inspect import describe_file; "
        "[describe_file(pathlib.Path(p)) for p in sys.argv[1:]]; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "False"


def small_graph(opset: int = 20) -> onnx.ModelProto:
    """Images (n, 4, 6) through a layer of 6 x 8 weights and an Einsum, which no calibration quantizes."""
    weight = numpy_helper.from_array(np.arange(48, dtype=np.float32).reshape(6, 8), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
        helper.make_node("Einsum", ["h", "h"], ["y"], name="scores", equation="bij,bkj->bik"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 4, 6]), ("y", ["n", 4, 4]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_files_of_weights_are_named_with_their_digests(tmp_path: Path) -> None:
    """The digest of both is that of the graph's bytes followed by those of the weights; either file changes it."""
    path, weights = tmp_path / "net.onnx", tmp_path / "net.bin"
    onnx.save(small_graph(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    stated = facts(shown(path))
    both = hashlib.sha256(path.read_bytes() + weights.read_bytes()).hexdigest()
    assert sha256_file(path) in stated["file"]
    assert stated["weights in net.bin"] == f"{weights.stat().st_size:,} bytes, sha256 {sha256_file(weights)}"
    assert stated["graph and weights"] == f"sha256 {both}"
    assert (stated["opset"], stated["input"], stated["output"]) == ("20", "x: float (n, 4, 6)", "y: float (n, 4, 4)")
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    assert facts(shown(path))["graph and weights"] not in ("", f"sha256 {both}")
    weights.unlink()
    with pytest.raises(InputError, match=r"second file, which is missing[\s\S]*net\.bin"):
        shown(path)
    onnx.save(small_graph(), path)
    assert "graph and weights" not in facts(shown(path))


def test_a_float_graph_names_what_calibration_leaves_in_float(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(small_graph(), path)
    (line,) = [line.split() for line in shown(path).splitlines() if line.startswith("scores")]
    assert line[1] == "Einsum"
    assert "Layers that calibration leaves in float: 1" in shown(path)
    onnx.save(small_graph(opset=12), path)
    assert re.search(r"Calibration refuses this graph as it is[\s\S]*opset", shown(path))


def test_what_import_leaves_in_float_is_listed_with_its_share(tmp_path: Path) -> None:
    """A product in a branch: 16 patches of 8 x 48 and 8 x 5 at the head, twice; a custom operator, which nobody can count."""
    onnx.save(data_if(), tmp_path / "if.onnx")
    assert re.search(rf"if_\d+/then_branch/t +MatMul +{40 / 6224:.2%} +it lies in a body", shown(tmp_path / "if.onnx"))
    onnx.save(custom_operator("com.microsoft"), tmp_path / "custom.onnx")
    assert re.search(r"gelu_\d+ +Gelu +not counted +TensorRT has no INT8 form", shown(tmp_path / "custom.onnx"))


def test_a_layer_that_cannot_be_counted_has_no_share_of_zero() -> None:
    assert [Fallback("a", "int8", "fp32", "", share).share for share in (0.25, 0.0)] == ["25.00%", "not counted"]
