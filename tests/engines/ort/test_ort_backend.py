"""Target cpu: the optimized model has the outputs of the graph, and its receipt lists the layers that stay in float."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from engine_graphs import attention, convolutions, images, run

from calib.errors import BackendError, MissingError, UsageError
from engines.build import build
from engines.build_spec import BuildSpec
from engines.ort import backend
from engines.ort.backend import pair_per_reader
from engines.targets import TARGETS
from engines.typed_graph import type_graph

CPU = TARGETS["cpu"]


def built(folder, model, precision, floor=0.0):
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return build(BuildSpec(path, CPU, precision, int8_floor=floor))


@pytest.mark.parametrize(("model", "shape"), [(attention(), (8, 16)), (convolutions(), (8, 12, 12))])
def test_fp32_engine_computes_the_same(tmp_path, model, shape):
    engine = built(tmp_path, model, "fp32")
    x = images(*shape)
    np.testing.assert_allclose(run(onnx.load_model_from_string(engine.data), x), run(model, x), rtol=1e-5, atol=1e-5)
    assert engine.receipt.actual == {"fp32": 1.0}
    assert engine.receipt.int8_mac_fraction == 0.0
    assert engine.compute_capabilities == ()


def test_int8_products_are_int8_and_agree(tmp_path):
    model = attention(quantized=True)
    engine = built(tmp_path, model, "int8", 1.0)
    assert engine.receipt.int8_mac_fraction == 1.0
    operators = {n.op_type for n in onnx.load_model_from_string(engine.data).graph.node}
    assert "MatMulIntegerToFloat" in operators
    assert "MatMul" not in operators
    x = images(8, 16)
    # exact integers inside; a float sum in another order may move one code of 127 per quantization
    np.testing.assert_allclose(run(onnx.load_model_from_string(engine.data), x), run(model, x), atol=0.06)


def test_convolutions_without_int8_output_are_named(tmp_path):
    engine = built(tmp_path, convolutions(quantized=True), "int8")
    assert {(f.layer, f.requested, f.actual) for f in engine.receipt.fallbacks} == {
        ("stem/Conv", "int8", "fp32"),
        ("lpi/Conv", "int8", "fp32"),
        ("head/Gemm", "int8", "fp32"),  # QGemm takes an INT32 bias only
    }
    assert engine.receipt.int8_mac_fraction == 0.0
    assert engine.receipt.fallbacks[0].layer == "stem/Conv"  # heaviest first


def test_one_sided_product_stays_float(tmp_path):
    engine = built(tmp_path, attention(quantized=True, both_sides=False), "int8")
    assert [(f.layer, f.actual) for f in engine.receipt.fallbacks] == [("attn.kv/MatMul", "fp32")]


def test_pair_per_reader_changes_no_value():
    model = attention(quantized=True)
    separate = pair_per_reader(model)
    count = [sum(n.op_type == "QuantizeLinear" for n in m.graph.node) for m in (model, separate)]
    assert count[1] == count[0] + 2  # q, k and v share one pair
    onnx.checker.check_model(separate, full_check=True)
    x = images(8, 16)
    np.testing.assert_array_equal(run(separate, x), run(model, x))


def test_deterministic(tmp_path):
    assert built(tmp_path, attention(quantized=True), "int8").data == built(tmp_path, attention(quantized=True), "int8").data


def test_fp16_is_refused(tmp_path):
    with pytest.raises(UsageError, match="computes FP16 graphs in FP32"):
        built(tmp_path, type_graph(attention()), "fp16")


def test_rejected_graph(tmp_path, monkeypatch):
    import onnxruntime

    def reject(*args, **kwargs):
        raise RuntimeError("[ONNXRuntimeError] : 10 : INVALID_GRAPH : node attn.q/MatMul")

    monkeypatch.setattr(onnxruntime, "InferenceSession", reject)
    with pytest.raises(BackendError, match=r"(?s)rejects the graph.*graph\.onnx.*attn\.q/MatMul"):
        built(tmp_path, attention(), "fp32")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("write failed: No space left on device")]
)
def test_full_disk_is_reported(tmp_path, monkeypatch, error):
    import onnxruntime

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(MissingError, match="disk full"):
        built(tmp_path, attention(), "fp32")


@pytest.mark.parametrize(("free", "refusal"), [(0, MissingError), (1 << 30, BackendError)])
def test_a_full_disk_that_the_library_does_not_name(tmp_path, monkeypatch, free, refusal):
    import onnxruntime

    def fail(*args, **kwargs):
        raise RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Protobuf serialization failed.")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=free))
    with pytest.raises(refusal):
        built(tmp_path, attention(), "fp32")


def test_missing_library(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match=r"ufovit-edge\[build\]"):
        backend.version()
