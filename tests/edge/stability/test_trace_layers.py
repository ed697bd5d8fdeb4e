"""Tracing to linear layers. Oracles: the torch modules, and ONNX Runtime: tapped tensors against matrix . z + offset."""

import copy

import numpy as np
import pytest
from attention_graphs import C, D, H, N, inputs, joint_attention
from onnx import helper as h
from onnx import numpy_helper

from calib.ort_session import TappedGraph
from edge.model.attention import UfoAttention
from edge.model.export_foldings import fold
from edge.stability.finders.xnorm import find_sites
from edge.stability.trace_layers import trace_sites


def trace(model):
    """[(site, traced)] of a graph."""
    sites = find_sites(model)
    return list(zip(sites, trace_sites(model, sites), strict=True))


@pytest.fixture(scope="module")
def attentions(make_network):
    """{path: (attention, the LayerNorm before it)} of the folded network that `tiny_graph` was exported from."""
    network = fold(make_network(0))
    modules = dict(network.named_modules())
    return {
        name: (module, modules[name.replace(".attn", ".norm1")])
        for name, module in modules.items()
        if isinstance(module, UfoAttention)
    }


def test_layers_are_those_of_the_torch_network(tiny_graph, attentions):
    traced = trace(tiny_graph)
    assert len(traced) == 8
    for site, found in traced:
        attention, norm = attentions[site.name.split(".xnorm")[0]]
        linears = [attention.q] if site.operand == "q" else [attention.k, attention.v]
        assert len(found.layers) == len(linears)
        for layer, linear in zip(found.layers, linears, strict=True):
            heads, dim, width = layer.matrix.shape
            assert (heads, dim, width) == (attention.heads, linear.out_features // attention.heads, linear.in_features)
            assert layer.channels.tolist() == np.arange(heads * dim).reshape(heads, dim).tolist()
            weight, bias = (p.detach().numpy() for p in (linear.weight, linear.bias))
            np.testing.assert_array_equal(layer.matrix.reshape(-1, width), weight)
            np.testing.assert_array_equal(layer.offset.reshape(-1), bias)
            np.testing.assert_array_equal(layer.norm.gain, norm.weight.detach().numpy())
            np.testing.assert_array_equal(layer.norm.bias, norm.bias.detach().numpy())
            assert layer.owned
        keys_and_values = {(layer.source, layer.order.tobytes()) for layer in found.layers}
        assert len(keys_and_values) == 1, "keys and values are of the same tokens in the same order"


def test_tokens_are_counted(tiny_graph):
    assert [found.tokens for _, found in trace(tiny_graph)] == [0, 4, 0, 4, 0, 5, 0, 5]


@pytest.mark.parametrize("how", ["split", "slice", "gather"])
def test_a_joint_layer_is_traced(how):
    """Each traced tensor is matrix . z + offset, channel by channel, of the tensors that ONNX Runtime computes."""
    model = joint_attention(how)
    (q, q_layers), (kv, kv_layers) = trace(model)
    tensors = TappedGraph(model, ("z", q.argument, *kv.factors))(inputs())
    z = tensors["z"].astype(np.float64)
    turned = {q.argument: False, kv.factors[0]: True, kv.factors[1]: False}
    layers = [*q_layers.layers, *kv_layers.layers]
    assert len(layers) == 3
    for (name, transposed), layer in zip(turned.items(), layers, strict=True):
        expected = np.einsum("hdc,bnc->bhnd", layer.matrix, z) + layer.offset[None, :, None]
        found = tensors[name].swapaxes(-1, -2) if transposed else tensors[name]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert layer.owned
        assert (layer.weight, layer.bias) == ("w", "c")
    assert kv_layers.tokens == N
    if how == "gather":
        assert layers[0].channels.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]], "interleaved heads"


def test_a_wrong_layout_would_show():
    """Negative control of the test above: heads taken as blocks where they are interleaved."""
    model = joint_attention("gather")
    (q, found), _ = trace(model)
    tensors = TappedGraph(model, ("z", q.argument))(inputs())
    (layer,) = found.layers
    wrong = layer.matrix.transpose(1, 0, 2).reshape(H, D, C)
    expected = np.einsum("hdc,bnc->bhnd", wrong, tensors["z"].astype(np.float64))
    assert np.abs(tensors[q.argument] - layer.offset[None, :, None] - expected).max() > 0.1


def test_a_layer_behind_channels_that_were_shuffled_reads_no_layer_norm():
    (_, found), _ = trace(joint_attention(damage="shuffled channels"))
    assert [layer.norm for layer in found.layers] == [None]
    (_, found), _ = trace(joint_attention())
    assert found.layers[0].norm is not None


def test_values_in_another_order_are_told_apart():
    """sum k_n v_(N-1-n) is another sum: the bound on tokens that meet themselves would not hold of it."""
    _, (_, found) = trace(joint_attention(damage="reversed values"))
    keys, values = found.layers
    assert keys.order.tolist() == [list(range(N))]
    assert values.order.tolist() == [list(range(N))[::-1]]


def test_keys_that_serve_something_else_may_not_be_scaled():
    (_, q), (_, kv) = trace(joint_attention(damage="keys read elsewhere"))
    assert [layer.owned for layer in kv.layers] == [False, True]
    assert kv.scalable == ()
    assert q.scalable == q.layers


def test_what_is_no_rearrangement_of_a_layer_is_not_traced():
    (_, q), (_, kv) = trace(joint_attention(damage="scaled keys"))
    assert kv.layers == ()
    assert kv.tokens == N
    assert len(q.layers) == 1


@pytest.mark.parametrize("damage", ["weight is computed", "no layer", "bias along the tokens", "bias is computed"])
def test_untraceable_is_none_and_no_error(tiny_graph, damage):
    changed = copy.deepcopy(tiny_graph)
    nodes = {node.name: node for node in changed.graph.node}
    matmul = nodes["blocks.0.attn.q/MatMul"]
    add = next(node for node in changed.graph.node if matmul.output[0] in node.input)
    bias = next(i for i, name in enumerate(add.input) if name != matmul.output[0])
    if damage == "weight is computed":
        at = list(changed.graph.node).index(matmul)
        changed.graph.node.insert(at, h.make_node("Relu", [matmul.input[1]], ["computed"], name="relu"))
        nodes = {node.name: node for node in changed.graph.node}
        nodes["blocks.0.attn.q/MatMul"].input[1] = "computed"
    elif damage == "no layer":
        matmul.op_type, matmul.input[1] = "Mul", add.input[bias]
    elif damage == "bias along the tokens":
        changed.graph.initializer.append(numpy_helper.from_array(np.ones((32, 1), np.float32), "tall"))
        add.input[bias] = "tall"
    else:
        add.input[bias] = matmul.output[0]
    (site, found), *others = trace(changed)
    assert site.name == "blocks.0.attn.xnorm_q/ReduceL2"
    assert found.layers == ()
    assert all(len(traced.layers) in (1, 2) for _, traced in others)
