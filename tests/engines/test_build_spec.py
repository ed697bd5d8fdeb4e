"""Targets, build specs, probes and receipts: errors and arithmetic."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from engine_graphs import Graph, attention, convolutions
from hypothesis import given
from hypothesis import strategies as st

import engines
from calib.errors import GraphError, MissingError, UsageError, VerdictError
from engines import backends, hardware
from engines.backends import BACKENDS, load_backend
from engines.build import build
from engines.build_spec import BatchRange, BuildSpec, parse_batch
from engines.layer_records import EngineEvidence, Layer, LayerEvidence
from engines.layer_requests import read_layers
from engines.precision_receipt import check_receipt, make_receipt
from engines.select_target import AUTO, resolve_target
from engines.targets import TARGETS
from engines.trt import api


@given(st.integers(-2, 1100), st.integers(-2, 1100), st.integers(-2, 1100))
def test_batch_range_is_ordered_or_refused(low, mid, high):
    if 1 <= low <= mid <= high <= 1024:
        assert parse_batch(f"{low},{mid},{high}") == BatchRange(low, mid, high)
    else:
        with pytest.raises(UsageError):
            parse_batch(f"{low},{mid},{high}")


@pytest.mark.parametrize("text", ["", "a", "1,2", "1,2,3,4", "1;2;3", "1.5", "-1", "²", "1,,3"])
def test_invalid_batch_text(text):
    with pytest.raises(UsageError, match="MIN,OPT,MAX"):
        parse_batch(text)


def test_one_number_is_a_fixed_batch():
    assert parse_batch("4") == BatchRange(4, 4, 4)


def test_unknown_target_lists_the_known():
    with pytest.raises(UsageError, match="auto, cpu, rtx"):
        resolve_target("jetson-nano-2")
    assert resolve_target("cpu").target is TARGETS["cpu"]


@pytest.mark.parametrize(
    ("gpus", "working", "name", "words"),
    [
        ((), {"trt_rtx"}, "rtx", "no NVIDIA GPU"),
        ((), set(), "cpu", "not usable"),
        (("8.9",), {"trt_rtx"}, "rtx", "8.9"),
        (("9.0",), {"trt_rtx"}, "cpu", "no backend supports"),
        (("8.9",), set(), "cpu", "not usable"),
        (("9.0",), {"trt", "trt_rtx"}, "desktop", "9.0"),
        ((), {"trt", "trt_rtx"}, "rtx", "no NVIDIA GPU"),
    ],
)
def test_auto(monkeypatch, gpus, working, name, words):
    monkeypatch.setattr(hardware, "jetson_module", lambda: "")
    monkeypatch.setattr(hardware, "gpu_compute_capabilities", lambda: gpus)
    monkeypatch.setattr(
        backends, "probe_backend", lambda backend: backends.BackendProbe(backend, backend in working, "", "", None)
    )
    resolution = resolve_target("auto")
    assert resolution.target.name == name
    assert words in resolution.reason


MODULES = {  # names in the device trees of JetPack 5 to 7
    "NVIDIA Jetson Orin Nano Developer Kit": "orin-nano",
    "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super": "orin-nano",
    "NVIDIA Jetson Orin NX Engineering Reference Developer Kit": "orin-nx",
    "NVIDIA Jetson AGX Orin Developer Kit": "agx-orin",
    "NVIDIA Jetson AGX Thor Developer Kit": "thor",
}


@pytest.mark.parametrize("module", MODULES)
def test_a_jetson_is_its_own_target(monkeypatch, tmp_path, module):
    tree = tmp_path / "model"
    tree.write_bytes(module.encode() + b"\0")
    monkeypatch.setattr(hardware, "_DEVICE_TREE", tree)
    assert hardware.jetson_module() == module
    assert resolve_target("auto").target.name == MODULES[module] == resolve_target(MODULES[module]).target.name
    others = [name for name, t in TARGETS.items() if t.jetson and not t.refusal and name != MODULES[module]]
    for other in others:
        with pytest.raises(MissingError, match=f"(?s){TARGETS[other].jetson} itself.*this machine is {module}.*--bundle"):
            resolve_target(other)


def test_jetsons_that_are_not_supported(monkeypatch, tmp_path):
    tree = tmp_path / "model"
    monkeypatch.setattr(hardware, "_DEVICE_TREE", tree)
    tree.write_bytes(b"NVIDIA Jetson Xavier NX Developer Kit\0")
    for name in ("auto", "xavier-nx"):
        with pytest.raises(UsageError, match=r"(?s)xavier-nx.*TensorRT 8\.5.*trtexec"):
            resolve_target(name)
    tree.write_bytes(b"NVIDIA Jetson Nano Developer Kit\0")
    with pytest.raises(
        UsageError, match=r"(?s)there is no target for this Jetson.*Jetson Nano.*Orin Nano, Orin NX, AGX Orin, Thor"
    ):
        resolve_target("auto")


def test_a_machine_that_is_not_a_jetson(monkeypatch, tmp_path):
    tree = tmp_path / "model"
    monkeypatch.setattr(hardware, "_DEVICE_TREE", tree)
    assert hardware.jetson_module() == ""
    tree.write_bytes(b"Raspberry Pi 5 Model B\0")
    assert hardware.jetson_module() == ""
    with pytest.raises(MissingError, match=r"(?s)orin-nano must be built on the Orin Nano itself.*not a Jetson.*ufovit bundle"):
        resolve_target("orin-nano")


def test_every_target_has_a_backend_and_every_backend_a_probe():
    assert {t.backend for t in TARGETS.values()} <= set(BACKENDS)
    assert [p.backend for p in backends.probe_backends()] == list(BACKENDS)
    for name, target in TARGETS.items():
        assert target.name == name
    assert AUTO not in TARGETS


def test_probe_of_a_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    probe = backends.probe_backend("trt_rtx")
    assert (probe.works, probe.install) == (False, "pip install 'ufovit-edge[rtx]'")
    with pytest.raises(MissingError, match=r"ufovit-edge\[rtx\]") as caught:
        api.load("rtx")
    assert caught.value.exit_code == 4


def test_placeholder_package_is_reported(monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    with pytest.raises(MissingError, match="placeholder"):
        api.load("trt")


def test_gpu_query(monkeypatch):
    monkeypatch.setattr(hardware.shutil, "which", lambda _name: "/bin/nvidia-smi")
    answers = {"ok": "8.9, NVIDIA L4\n12.0, NVIDIA GeForce RTX 5090\n", "odd": "No devices were found\n"}
    for key, expected in (("ok", ("8.9", "12.0")), ("odd", ())):
        done = subprocess.CompletedProcess([], 0, stdout=answers[key])
        monkeypatch.setattr(hardware.subprocess, "run", lambda *_a, done=done, **_k: done)
        assert hardware.gpu_compute_capabilities() == expected

    def fail(*args, **kwargs):
        raise subprocess.TimeoutExpired("nvidia-smi", 1)

    monkeypatch.setattr(hardware.subprocess, "run", fail)
    assert hardware.gpu_compute_capabilities() == ()
    monkeypatch.setattr(hardware.shutil, "which", lambda _name: None)
    assert hardware.gpu_compute_capabilities() == ()


def test_unknown_backend_lists_the_known():
    with pytest.raises(UsageError, match="ort, openvino, trt, trt_rtx, torch_trt"):
        load_backend("tvm")


def test_spec_refusals(tmp_path):
    with pytest.raises(UsageError, match="fp32, fp16, int8"):
        BuildSpec(tmp_path, TARGETS["cpu"], "int4")
    with pytest.raises(UsageError, match="floor"):
        BuildSpec(tmp_path, TARGETS["cpu"], "int8", int8_floor=95)
    assert BuildSpec(tmp_path, TARGETS["rtx"], "int8").floor == 0.95
    assert BuildSpec(tmp_path, TARGETS["rtx"], "int8", int8_floor=0.5).floor == 0.5
    assert BuildSpec(tmp_path, TARGETS["rtx"], "fp16", int8_floor=0.5).floor == 0.0


def test_bad_files(tmp_path):
    spec = BuildSpec(tmp_path / "none.onnx", TARGETS["cpu"], "fp32")
    with pytest.raises(GraphError, match="file not found"):
        build(spec)
    for junk in (b"", b"not onnx at all", attention().SerializeToString()[:300]):
        spec.onnx.write_bytes(junk)
        with pytest.raises(GraphError, match="not an ONNX file"):
            build(spec)
    g = Graph(4)
    model = g.model(g.node("Neg", ["image"], "neg"), 4)
    onnx.save(model, spec.onnx)
    with pytest.raises(GraphError, match="the graph has no Conv, MatMul or Gemm"):
        build(spec)


def test_layers_of_a_graph():
    layers = {layer.name: (layer.macs, layer.requested, layer.problem) for layer in read_layers(attention(quantized=True))}
    names = [f"attn.{part}/MatMul" for part in ("q", "k", "v", "kv", "out")]
    assert layers == dict.fromkeys(names, (2048, "int8", ""))
    assert {layer.requested for layer in read_layers(attention())} == {"fp32"}
    problems = {layer.name: layer.problem for layer in read_layers(convolutions(quantized=True))}
    assert problems == {"stem/Conv": "", "lpi/Conv": "", "head/Gemm": ""}


@pytest.mark.parametrize(
    ("scale", "zero", "words"),
    [([0.1] * 4, 0, "activation with per-channel scales"), (0.1, 3, "zero-point of operand A is not 0")],
)
def test_problems_of_a_layer(scale, zero, words):
    g = Graph(4, 4)
    x = g.pair("image", scale, zero, **({"axis": 2} if isinstance(scale, list) else {}))
    out = g.node("MatMul", [x, g.int8_weight(g.weight("w", 4, 4), 1)], "m")
    (layer,) = read_layers(g.model(out, 4, 4))
    assert layer.requested == "int8"
    assert words in layer.problem


LAYERS = (
    Layer("a", "Conv", 60, "int8", ""),
    Layer("b", "MatMul", 30, "int8", "bad axis"),
    Layer("c", "Gemm", 10, "fp16", "no Q/DQ"),
)


def test_receipt_arithmetic():
    evidence = {
        "a": LayerEvidence("int8", "seen"),
        "b": LayerEvidence("fp16", "seen too"),
        "stranger": LayerEvidence("int8", ""),
    }
    receipt = make_receipt(LAYERS, EngineEvidence(evidence), "int8")
    assert receipt.int8_mac_fraction == 0.6
    assert receipt.requested == {"fp16": 0.1, "int8": 0.9}
    assert receipt.actual == {"fp16": 0.3, "int8": 0.6, "unknown": 0.1}
    assert [(f.layer, f.actual, f.mac_fraction) for f in receipt.fallbacks] == [("b", "fp16", 0.3), ("c", "unknown", 0.1)]
    assert receipt.fallbacks[0].reason == "bad axis; seen too"
    assert receipt.fallbacks[1].reason == "no Q/DQ; the engine does not name this layer"
    assert make_receipt(LAYERS, EngineEvidence(), "int8").int8_mac_fraction == 0.0
    check_receipt(receipt, 0.6)
    with pytest.raises(VerdictError, match=r"(?s)0\.6000.*b: int8 -> fp16, 30\.0% of MACs, bad axis; seen too"):
        check_receipt(receipt, 0.601)
    with pytest.raises(GraphError, match="no Conv"):
        make_receipt((), EngineEvidence(), "int8")


def test_an_unknown_public_name_is_refused():
    with pytest.raises(AttributeError):
        _ = engines.nothing


def test_importing_is_light():
    program = (
        "import sys, engines; from engines.build_folder import BuildFolder; from engines.targets import TARGETS;"
        "heavy = {'onnx', 'onnxruntime', 'torch', 'tensorrt', 'tensorrt_rtx', 'cv2', 'numpy'} & set(sys.modules);"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
