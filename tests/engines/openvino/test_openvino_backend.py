"""Target cpu with OpenVINO: the prepared graph computes the same to the bit, the receipt is that of the executed graph."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_graphs import Graph, attention, convolutions, images, run

from calib.errors import BackendError, MissingError, UsageError
from engines.build import build
from engines.build_spec import BuildSpec
from engines.layer_requests import graph_facts
from engines.openvino.executed_graph import executed_evidence
from engines.openvino.qdq_order import quantize_early
from engines.select_target import with_backend
from engines.targets import TARGETS
from engines.typed_graph import type_graph

pytest.importorskip("openvino", reason="pip install 'ufovit-edge[openvino]'")
CPU = with_backend(TARGETS["cpu"], "openvino")


def built(folder, model, precision, floor=0.0):
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return build(BuildSpec(path, CPU, precision, int8_floor=floor))


def moved(*, second_reader=False, per_channel=False):
    """LayerNorm -> Transpose -> Reshape -> Q -> DQ -> Conv on (batch, 16, 8), as a local patch interaction is exported."""
    g = Graph(16, 8)
    g.store("gain", np.ones(8, np.float32))
    x = g.node("LayerNormalization", ["image", "gain"], "norm", axis=-1, epsilon=1e-6)
    t = g.node("Transpose", [x], "turn", perm=[0, 2, 1])
    grid = g.node("Reshape", [t, g.store("grid", np.array([-1, 8, 4, 4], np.int64))], "grid_of")
    pair = g.pair(grid, np.full(8, 0.05, np.float32), axis=1) if per_channel else g.pair(grid)
    g.weight("w", 8, 1, 3, 3)
    conv = g.node("Conv", [pair, g.int8_weight("w", 0)], "lpi/Conv", group=8, pads=[1, 1, 1, 1])
    if second_reader:
        conv = g.node("Add", [conv, grid], "more")
    return g.model(conv, 8, 4, 4)


def exact(model, x):
    """Outputs without any optimization, so that only the order of the operators differs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"image": x})[0]


def test_a_pair_moves_before_transposes_and_reshapes():
    model = moved()
    early = quantize_early(model)
    onnx.checker.check_model(early, full_check=True)
    order = [node.op_type for node in early.graph.node if node.op_type != "DequantizeLinear"]
    assert order == ["LayerNormalization", "QuantizeLinear", "Transpose", "Reshape", "Conv"]
    assert {node.name for node in early.graph.node} == {node.name for node in model.graph.node}
    x = images(16, 8)
    np.testing.assert_array_equal(exact(early, x), exact(model, x))
    assert not np.array_equal(exact(model, -x), exact(model, x)), "control"


@pytest.mark.parametrize("options", [{"second_reader": True}, {"per_channel": True}])
def test_what_another_node_reads_or_a_scale_per_channel_stays(options):
    model = moved(**options)
    early = quantize_early(model)
    assert [node.name for node in early.graph.node] == [node.name for node in model.graph.node]


def test_a_graph_without_moves_is_left_as_it_is():
    model = attention()
    assert quantize_early(model) == model


def test_an_int8_engine_runs_every_product_in_int8_and_says_so(tmp_path):
    model = attention(quantized=True)
    engine = built(tmp_path, model, "int8", 1.0)
    assert (engine.backend, engine.receipt.int8_mac_fraction) == ("openvino", 1.0)
    assert engine.receipt.kernels >= 5, "three linear layers and two products"
    x = images(8, 16)
    np.testing.assert_allclose(run(onnx.load_model_from_string(engine.data), x), run(model, x), atol=0.06)
    assert built(tmp_path, model, "int8").data == engine.data


def test_a_depthwise_convolution_is_int8_which_ort_leaves_in_float(tmp_path):
    assert built(tmp_path, moved(), "int8").receipt.actual == {"int8": 1.0}


def test_layers_without_pairs_are_named_with_their_kernel(tmp_path):
    assert built(tmp_path, attention(), "fp32").receipt.actual == {"fp32": 1.0}
    assert built(tmp_path, convolutions(), "fp32").receipt.actual == {"fp32": 1.0}
    engine = built(tmp_path, attention(quantized=True, both_sides=False), "int8")
    assert [(f.layer, f.actual) for f in engine.receipt.fallbacks] == [("attn.kv/MatMul", "fp32")]
    assert "OpenVINO runs MatMul with" in engine.receipt.fallbacks[0].reason


def test_what_it_refuses(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="FP16 graphs in FP32"):
        built(tmp_path, type_graph(attention()), "fp16")
    unknown = attention()
    unknown.graph.node[-1].op_type, unknown.graph.node[-1].domain = "Unheard", "nowhere"
    unknown.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    with pytest.raises(BackendError, match="OpenVINO rejects the graph") as refused:
        built(tmp_path, unknown, "fp32")
    assert "--backend ort" in str(refused.value)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingError, match="openvino is not installed"):
        built(tmp_path, attention(), "fp32")


def test_which_runtime_a_cpu_gets(monkeypatch):
    cpu, rtx = TARGETS["cpu"], TARGETS["rtx"]
    assert with_backend(cpu, None).backend == "openvino"
    assert with_backend(cpu, "ort").backend == "ort"
    assert with_backend(rtx, None) is rtx
    for target, name in ((rtx, "openvino"), (cpu, "torch-tensorrt"), (cpu, "x")):
        with pytest.raises(UsageError, match="does not support this target"):
            with_backend(target, name)
    monkeypatch.setattr("engines.select_target.find_spec", lambda _name: None)
    assert with_backend(cpu, None).backend == "ort"


def softmax_attention(*, quantized_shares):
    """softmax(Q Kᵀ) V of 4 heads on (batch, 4, 16, 32), both products in INT8, or the second in float."""
    g = Graph(4, 16, 32)
    q, kt = g.pair("image"), g.pair(g.node("Transpose", ["image"], "k", perm=[0, 1, 3, 2]))
    shares = g.node("Softmax", [g.node("MatMul", [q, kt], "scores/MatMul")], "softmax", axis=-1)
    value = g.node("Mul", ["image", g.store("half", np.array(0.5, np.float32))], "v")
    operands = [g.pair(shares, 1 / 127), g.pair(value)] if quantized_shares else [shares, value]
    return g.model(g.node("MatMul", operands, "out/MatMul"), 4, 16, 32)


def test_fused_attention_is_int8_only_where_all_it_reads_is(tmp_path):
    """OpenVINO generates one kernel for both products: with a float operand it does not tell which product is INT8."""
    assert built(tmp_path, softmax_attention(quantized_shares=True), "int8").receipt.actual == {"int8": 1.0}
    mixed = built(tmp_path, softmax_attention(quantized_shares=False), "int8").receipt
    assert mixed.actual == {"unknown": 1.0}
    assert "Subgraph" in mixed.fallbacks[0].reason


def scaled_convolutions():
    """Two convolutions, each followed by Mul and Add per channel, which OpenVINO folds into them, names included."""
    g = Graph(3, 8, 8)
    x = "image"
    for name, group, channels in (("first", 1, 3), ("second", 8, 1)):
        g.weight(f"w_{name}", 8, channels, 3, 3)
        bias = g.weight(f"b_{name}", 8)
        weight = g.int8_weight(f"w_{name}", 0)
        x = g.node("Conv", [g.pair(x), weight, bias], f"{name}/Conv", group=group, pads=[1, 1, 1, 1])
        x = g.node("Mul", [x, g.weight(f"m_{name}", 8, 1, 1)], f"{name}/Mul")
        x = g.node("HardSwish", [g.node("Add", [x, g.weight(f"a_{name}", 8, 1, 1)], f"{name}/Add")], f"{name}/act")
    return g.model(x, 8, 8, 8)


def test_layers_that_lost_their_names_are_found_by_what_follows(tmp_path):
    model = scaled_convolutions()
    assert built(tmp_path, model, "int8").receipt.actual == {"int8": 1.0}
    evidence = executed_evidence(model.SerializeToString(), model.SerializeToString(), graph_facts(model)).layers
    assert set(evidence) == {"first/Conv", "second/Conv"}
