"""Operator sets 9 to 23 come in as opset 20. Oracle: torch, and ONNX Runtime on the file as given."""

import warnings

import numpy as np
import onnx
import pytest
from import_graphs import GraphWriter, attention_opset23, plain, run, save
from onnx import numpy_helper

from calib.errors import GraphError
from calib.graph import opset_version
from edge.onnx_import.check_rewrites import rewrite
from edge.onnx_import.import_model import import_onnx
from edge.onnx_import.imported import ImportOptions
from engines.trt.api import Builder
from engines.typed_graph import type_graph


def networks():
    """A convolutional network and a transformer, of operators whose definition changed between opsets 9 and 20."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
            self.depthwise, self.head = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Linear(8, 5)

        def forward(self, x):
            y = torch.clamp(self.depthwise(functional.hardswish(self.norm(self.stem(x)))), 0, 6)
            y = functional.interpolate(y, scale_factor=2, mode="nearest")
            y = functional.max_pool2d(functional.pad(y, (1, 1, 1, 1)), 2)
            return self.head(y.mean((2, 3)))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.norm, self.head = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 5)
            self.qkv, self.out, self.token = nn.Linear(16, 48), nn.Linear(16, 16), nn.Parameter(torch.randn(1, 1, 16))

        def forward(self, x):
            t = self.patch(x).flatten(2).transpose(1, 2)
            t = torch.cat([self.token.expand(t.shape[0], -1, -1), t], 1)
            b, n, c = t.shape
            q, k, v = self.qkv(self.norm(t)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = ((q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
            return self.head(functional.gelu(t + self.out(mixed))[:, 0])

    torch.manual_seed(0)
    return {"convolutional": Convolutional().eval(), "transformer": Transformer().eval()}


def exported(network, path, opset):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that people still use is deprecated
        torch.onnx.export(
            network, (torch.zeros(2, 3, 16, 16),), path, opset_version=opset, dynamo=False,
            input_names=["x"], dynamic_axes={"x": {0: "n"}},
        )  # fmt: skip
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutional", "transformer"])
@pytest.mark.parametrize("opset", [9, 11, 12, 13, 17, 20])
def test_torch_exports_of_every_age_are_imported(name, opset, tmp_path):
    import torch

    network = networks()[name]
    result = import_onnx(exported(network, tmp_path / "net.onnx", opset), ImportOptions())
    images = np.random.default_rng(1).standard_normal((5, 3, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(result.model, x=images)[0], expected, rtol=1e-4, atol=1e-5)
    assert (result.opset, opset_version(result.model), result.model.ir_version) == (opset, 20, 9)
    operators = [node.op_type for node in result.model.graph.node]
    assert "Flatten" not in operators, "Softmax over the last axis stays one node"
    assert "Constant" not in operators
    if opset == 20 and name == "transformer":
        for newer in (21, 22, 23):
            model = onnx.load(tmp_path / "net.onnx")
            model.opset_import[0].version, model.ir_version = newer, 10
            again = import_onnx(save(model, tmp_path, "newer.onnx"), ImportOptions())
            assert opset_version(again.model) == 20
            np.testing.assert_array_equal(run(again.model, x=images)[0], run(result.model, x=images)[0])


@pytest.mark.parametrize("opset", range(9, 24))
def test_operators_that_never_changed_keep_their_place(opset, tmp_path):
    model = plain(opset, ir=8 if opset < 21 else 10)
    result = import_onnx(save(model, tmp_path), ImportOptions())
    assert [node.name for node in result.model.graph.node] == [node.name for node in model.graph.node]
    images = np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(run(result.model, x=images)[0], run(model, x=images)[0])


def test_attention_is_expanded_into_products(tmp_path):
    result = import_onnx(save(attention_opset23(), tmp_path), ImportOptions())
    operators = [node.op_type for node in result.model.graph.node]
    assert operators.count("MatMul") == 6
    assert operators.count("Softmax") == 1
    assert not {"Attention", "RMSNormalization", "Where", "Expand", "CastLike", "Identity"} & set(operators)
    assert [change.node for change in result.changes if change.kind == "expanded"] == ["attention_6", "rmsnormalization_7"]


def test_rms_normalization_reaches_every_parser(tmp_path):
    """TensorRT 10 reads opset 20 and 22, RMSNormalization is of 23: the typed graph has it by ReduceL2. Oracle: float64."""
    g = GraphWriter()
    gain, images = g.random(16), np.random.default_rng(2).standard_normal((4, 3, 16, 16)).astype(np.float32)
    normed = g.add("RMSNormalization", "x", gain, axis=-1, epsilon=1e-3)
    result = import_onnx(save(g.model(normed, opset=23, ir=10), tmp_path), ImportOptions())
    assert rewrite(result.model, [images], result).parity.sqnr_db > 100
    exact = images.astype(np.float64)
    gains = next(numpy_helper.to_array(tensor) for tensor in g.weights if tensor.name == gain)
    exact *= gains / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(run(result.model, x=images)[0], exact, rtol=1e-5, atol=1e-6)
    typed = type_graph(result.model)
    assert [node.op_type for node in typed.graph.node] == ["Cast", "ReduceL2", "Mul", "Pad", "ReduceL2", "Div", "Mul", "Cast"]
    assert opset_version(typed) == 20
    pytest.importorskip("tensorrt_rtx")
    assert Builder("rtx").parse(typed.SerializeToString()).num_layers >= len(typed.graph.node)


def test_what_opset_20_cannot_express_is_named(tmp_path):
    g = GraphWriter()
    quantized = g.add("QuantizeLinear", g.pooled(), g.const(0.1), output_dtype=onnx.TensorProto.INT8)
    model = g.model(g.head(g.add("DequantizeLinear", quantized, g.const(0.1))), opset=21, ir=10)
    with pytest.raises(
        GraphError, match=r"(?s)needs an operator set newer than 20.*quantizelinear_4.*output_dtype.*export at opset 20"
    ):
        import_onnx(save(model, tmp_path), ImportOptions())


def test_what_the_converter_cannot_do_is_named(monkeypatch, tmp_path):
    def failing(_model, _version):
        raise RuntimeError("No Adapter From Version $17 for Relu")

    monkeypatch.setattr(onnx.version_converter, "convert_version", failing)
    with pytest.raises(GraphError, match=r"(?s)cannot be converted.*relu_1 \(Relu\).*No Adapter.*export at opset 13 to 20"):
        import_onnx(save(plain(), tmp_path), ImportOptions())
