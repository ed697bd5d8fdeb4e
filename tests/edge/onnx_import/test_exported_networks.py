"""Networks as torch's two exporters write them, through the import. Oracle: torch's outputs, counts of operators by hand."""

import logging
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from calib.ort_session import GraphSession
from edge.onnx_import.check_rewrites import rewrite
from edge.onnx_import.import_model import import_onnx
from edge.onnx_import.imported import ImportOptions
from edge.stability.finders.xnorm import find_sites
from edge.stability.trace_layers import trace_sites

DEPTH, WIDTH, HEADS, SIDE = 2, 32, 2, 16


class SoftmaxAttention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), fused

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(-1, 16, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(-1, 16, WIDTH))


class XNormAttention(nn.Module):
    """Attention by XNorm in the spelling of the public reproductions: one gamma, norms over the last axis, no eps."""

    def __init__(self):
        super().__init__()
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, HEADS).reshape(1, HEADS, 1, 1))

    def forward(self, x):
        q, k, v = (
            layer(x).view(-1, 16, HEADS, WIDTH // HEADS).permute(0, *order)
            for layer, order in ((self.fc_q, (2, 1, 3)), (self.fc_k, (2, 3, 1)), (self.fc_v, (2, 1, 3)))
        )
        units = [tensor * self.gamma / torch.norm(tensor, 2, -1, True) for tensor in (q, k @ v)]
        return self.fc_o((units[0] @ units[1]).permute(0, 2, 1, 3).contiguous().view(-1, 16, WIDTH))


class Network(nn.Module):
    """A vision transformer of two blocks: images (B, 3, 16, 16) -> logits (B, 5)."""

    def __init__(self, attention, activation):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * DEPTH + 1))
        self.attention = nn.ModuleList(attention() for _ in range(DEPTH))
        hidden = [(nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)) for _ in range(DEPTH)]
        self.ffn = nn.ModuleList(nn.Sequential(first, activation, second) for first, second in hidden)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        for i in range(DEPTH):
            x = x + self.attention[i](self.norms[2 * i](x))
            x = x + self.ffn[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


def imported(tmp_path, attention, activation, export):
    """The rewritten graph, the record and torch's logits of four images."""
    torch.manual_seed(0)
    network, images = Network(attention, activation).eval(), torch.randn(4, 3, SIDE, SIDE)
    for norm in network.norms:
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias, 0, 0.2)
    path, (opset, dynamo) = tmp_path / "network.onnx", export
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    free = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamo else {"dynamic_axes": {"x": {0: "n"}}}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (images,), path, opset_version=opset, dynamo=dynamo, input_names=["x"], **free, verbose=False
        )
        logits = network(images).numpy()
    given = import_onnx(path, ImportOptions())
    record = rewrite(given.model, [images.numpy()], given)
    (output,) = GraphSession(given.model)({"x": images.numpy()}).values()
    assert np.abs(output - logits).max() < 1e-5 * np.abs(logits).max()
    assert all(result.kept for result in record.rewriters)
    return given.model, record


@pytest.mark.slow
@pytest.mark.parametrize("export", [(11, False), (14, False), (17, False)], ids=str)
def test_a_vision_transformer_gets_its_operators_back(tmp_path, export):
    """LayerNorm is written out before opset 17, GELU before 20; all are single nodes after the import."""
    model, record = imported(tmp_path, lambda: SoftmaxAttention(fused=False), nn.GELU(), export)
    count = Counter(node.op_type for node in model.graph.node)
    assert (count["LayerNormalization"], count["Gelu"], count["Softmax"]) == (2 * DEPTH + 1, DEPTH, DEPTH)
    assert not {"Erf", "Pow", "Sqrt", "Sub", "Div"} & set(count), "the scale of the logits is a factor of q"
    assert count["ReduceMean"] == 1, "the head's"
    places = {result.kind: sum(bool(node.into) for node in result.nodes) for result in record.rewriters}
    assert places.get("layer_norm", 0) == (2 * DEPTH + 1 if export[0] < 17 else 0)
    assert places["gelu"] == DEPTH
    assert places["attention_scale"] == places["joint_linear"] == DEPTH


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "operator", "export"),
    [
        (nn.GELU(approximate="tanh"), "Gelu", (14, False)),
        (nn.Hardswish(), "HardSwish", (11, False)),
        (nn.Mish(), "Mish", (14, False)),
    ],
    ids=str,
)
def test_activations_and_fused_attention_get_their_operators_back(tmp_path, activation, operator, export):
    fused = export[0] >= 14  # scaled_dot_product_attention divides the scale between q and k
    model, _ = imported(tmp_path, lambda: SoftmaxAttention(fused=fused), activation, export)
    count = Counter(node.op_type for node in model.graph.node)
    assert count[operator] == DEPTH
    assert not {"Erf", "Tanh", "Clip", "Softplus", "Sqrt"} & set(count)
    assert not count["Mul"], "the scale of the logits, a power of two, is in the layer of q, separate now"


@pytest.mark.slow
@pytest.mark.parametrize("export", [(14, False), (18, True)], ids=str)
def test_the_xnorms_of_the_public_reproductions_are_found_and_traced(tmp_path, export):
    model, record = imported(tmp_path, XNormAttention, nn.GELU(approximate="tanh"), export)
    assert Counter(node.op_type for node in model.graph.node)["Gelu"] == DEPTH
    sites = find_sites(model, expected=2 * DEPTH, kv_axis=-1)
    assert sorted(site.operand for site in sites) == ["kv", "kv", "q", "q"]
    assert not any(site.eps for site in sites), "none had an eps"
    assert {result.kind for result in record.rewriters} >= {"l2_norm"}
    for site, layers in zip(sites, trace_sites(model, sites), strict=True):
        assert len(layers.layers) == (1 if site.operand == "q" else 2), "bounded from the LayerNorm on"
        assert all(layer.norm is not None and layer.owned for layer in layers.layers)
