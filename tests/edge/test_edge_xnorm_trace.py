"""Tracing to linear layers. Oracles: the torch modules themselves, and ONNX Runtime: tapped tensors against matrix . z + offset."""

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.graph import index_graph, infer_types
from calib.taps import TappedGraph
from edge.model.attention import UfoAttention
from edge.model.fold import fold
from edge.xnorm.measure import trace_layers
from edge.xnorm.sites import find_sites
from edge.xnorm.trace import Tracer

B, N, C, H = 2, 5, 8, 2
D = C // H


def trace(model):
    """[(site, traced)] of a graph."""
    tracer = Tracer(model, index_graph(model), infer_types(model))
    return [(site, trace_layers(tracer, site)) for site in find_sites(model)]


@pytest.fixture(scope="module")
def attentions(make_network):
    """{path: (attention, the LayerNorm in front of it)} of the folded network that `tiny_graph` was exported from."""
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


def linear(nodes, name, source, constants, rng, channels=C):
    constants[f"{name}.w"] = rng.normal(size=(C, channels)).astype(np.float32)
    constants[f"{name}.b"] = rng.normal(size=channels).astype(np.float32)
    nodes.append(h.make_node("MatMul", [source, f"{name}.w"], [f"{name}.m"], name=f"{name}.m"))
    nodes.append(h.make_node("Add", [f"{name}.b", f"{name}.m"], [f"{name}.y"], name=f"{name}.y"))
    return f"{name}.y"


def joint_attention(how="split", seed=0, damage=""):
    """A stranger's UFO attention x (B, N, C) -> (B, N, C) with one linear layer for Q, K and V, cut by Split, Slice or Gather.

    Its heads are interleaved when `how` is "gather": channel h + H d of a third is place d of head h.
    """
    rng = np.random.default_rng(seed)
    nodes, k = [], {"g": rng.uniform(0.5, 2, C).astype(np.float32), "b": rng.normal(size=C).astype(np.float32)}
    k |= {"axis-2": np.array([-2]), "flat": np.array([0, N, C]), "last": np.array([2]), "eps": np.float32(1e-6)}

    def node(op, inputs, output, **attributes):
        nodes.append(
            h.make_node(op, inputs, [output] if isinstance(output, str) else output, name=f"{op}:{output}", **attributes)
        )
        return output

    node("LayerNormalization", ["x", "g", "b"], "z", epsilon=1e-6)
    if damage == "shuffled channels":
        k["turn"] = np.arange(C)[::-1].copy()
        node("Gather", ["z", "turn"], "z2", axis=2)
    joint = linear(nodes, "qkv", "z2" if damage == "shuffled channels" else "z", k, rng, 3 * C)
    if how == "split":
        node("Split", [joint], ["q0", "k0", "v0"], axis=-1, num_outputs=3)
    elif how == "slice":
        for i, name in enumerate("qkv"):
            k |= {f"from{i}": np.array([i * C]), f"to{i}": np.array([(i + 1) * C])}
            node("Slice", [joint, f"from{i}", f"to{i}", "last"], f"{name}0")
    else:
        k["by three"] = np.array([0, N, 3, D, H])
        node("Reshape", [joint, "by three"], "all")
        for i, name in enumerate("qkv"):
            k[f"pick{i}"] = np.array(i)
            node("Gather", ["all", f"pick{i}"], f"{name}0", axis=2)  # (B, N, D, H)
    for name, turned in (("q", False), ("k", True), ("v", False)):
        if how == "gather":
            node("Transpose", [f"{name}0"], name, perm=[0, 3, 2, 1] if turned else [0, 3, 1, 2])
        else:
            k["heads"] = np.array([0, N, H, D])
            node("Reshape", [f"{name}0", "heads"], f"{name}h")
            node("Transpose", [f"{name}h"], name, perm=[0, 2, 3, 1] if turned else [0, 2, 1, 3])
    value = "v"
    if damage == "reversed values":
        k |= {"minus": np.array([-1]), "end": np.array([-100]), "token axis": np.array([2])}
        value = node("Slice", ["v", "minus", "end", "token axis", "minus"], "vr")
    if damage == "scaled keys":
        k["scale"] = rng.uniform(1, 2, (H, 1, 1)).astype(np.float32)
        node("Mul", ["k", "scale"], "ks")
    node("MatMul", ["ks" if damage == "scaled keys" else "k", value], "kv")
    for name, axis in (("q", -1), ("kv", -2)):
        k[f"axis{axis}"] = np.array([axis])
        node("ReduceL2", [name, f"axis{axis}"], f"n{name}")
        node("Max", [f"n{name}", "eps"], f"m{name}")
        node("Div", [name, f"m{name}"], f"u{name}")
    node("MatMul", ["uq", "ukv"], "heads out")
    node("Transpose", ["heads out"], "tokens", perm=[0, 2, 1, 3])
    node("Reshape", ["tokens", "flat"], "out" if damage != "keys read elsewhere" else "plain")
    if damage == "keys read elsewhere":
        k["two axes"] = np.array([2, 3])
        node("ReduceSum", ["k", "two axes"], "energy", keepdims=0)  # (B, H)
        k["all axes"] = np.array([1])
        node("ReduceSum", ["energy", "all axes"], "total", keepdims=0)
        k["as tokens"] = np.array([-1, 1, 1])
        node("Reshape", ["total", "as tokens"], "wide")
        node("Add", ["plain", "wide"], "out")
    ends = [h.make_tensor_value_info(name, T.FLOAT, ["batch", N, C]) for name in ("x", "out")]
    graph = h.make_graph(nodes, "joint", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), n) for n, v in k.items()])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(B, N, C)).astype(np.float32)


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
        assert layer.weight == "qkv.w"
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
