"""What joins an FP32 island. Oracles: nodes and Casts counted by hand, the emulated FP16 network with a narrow island."""

import numpy as np
import pytest
from onnx_text import run_text_model, text_model

from edge.stability.certify import CertifyConfig
from edge.stability.fp16_network import emulated_agreement
from edge.stability.network_certification import certify_network
from edge.stability.target_precisions import target_precisions
from engines.typed_graph import type_graph

RANDOM = np.random.default_rng(5)
ATTENTION = """
n = LayerNormalization<epsilon = 0.00001>(x, one) q = MatMul(n, wq) k = MatMul(n, wk) t = Transpose<perm = [0, 2, 1]>(k)
l = MatMul(q, t) g = Mul(l, scale) a = Softmax(g) m = MatMul(a, v) y = MatMul(m, head)
"""
IMAGES = (RANDOM.standard_normal((8, 1, 8)) + 1e-3 * RANDOM.standard_normal((8, 6, 8))).astype(np.float32)
"""Tokens that are nearly alike, and so are their logits: FP16 keeps little of the differences."""
WEIGHTS = {name: RANDOM.standard_normal((8, 8)).astype(np.float32) for name in ("wq", "wk", "head")}
WEIGHTS["v"] = RANDOM.standard_normal((6, 8)).astype(np.float32)


def attention(factor, scale):
    large = {name: WEIGHTS[name] * np.float32(factor) for name in ("wq", "wk")}
    constants = {**WEIGHTS, **large, "one": np.ones(8, np.float32), "scale": np.float32(scale)}
    return text_model(ATTENTION, (2, 6, 8), **constants)


def certified(model):
    return certify_network(
        model,
        lambda: [IMAGES],
        interval=(np.float64(-8), np.float64(8)),
        data_sha256="0" * 64,
        config=CertifyConfig(("fp16",), backend="trt_rtx"),
    )


def computed(model, names):
    """The tensors that nodes of these names compute."""
    return {node.output[0] for node in model.graph.node if {node.name, node.output[0]} & set(names)}


def emulated_db(model, tensors):
    names = frozenset(node.name or node.output[0] for node in model.graph.node if node.output[0] in tensors)
    return emulated_agreement(model, model, IMAGES, keep_fp32=names, precisions=target_precisions("trt_rtx")).sqnr_db


def casts(model, tensors):
    names = frozenset(node.name or node.output[0] for node in model.graph.node if node.output[0] in tensors)
    return sum(node.op_type == "Cast" for node in type_graph(model, keep_fp32=names).graph.node)


@pytest.fixture(scope="module")
def magnified():
    """Logits of 1e5, which decide the softmax by far more than what FP16 keeps of queries and keys."""
    model = attention(2.0**8, 0.125)
    return model, certified(model)


def test_queries_and_keys_of_large_logits_join(magnified):
    model, done = magnified
    assert done.certificate.verdict != "unstable"
    island = computed(done.model, done.certificate.fp32_nodes)
    assert island == {"n", "q", "k", "t", "l", "g", "a"}
    narrow = {"l", "g", "a"}
    assert casts(model, island) < casts(model, narrow), "a out, as x is FP32; not q, t in too"
    assert emulated_db(model, island) >= emulated_db(model, narrow) + 20
    np.testing.assert_array_equal(run_text_model(done.model, IMAGES, "ort"), run_text_model(model, IMAGES, "ort"))


def test_queries_and_keys_of_small_logits_stay():
    """The product overflows, what the softmax reads is small: less than LARGE_LOGITS."""
    done = certified(attention(2.0**8, 2.0**-17))
    island = computed(done.model, done.certificate.fp32_nodes)
    assert island >= {"l", "g"}
    assert not island & {"q", "k", "y"}, "layers with weights stay in FP16"


def test_without_an_island_nothing_joins():
    done = certified(attention(1.0, 0.125))
    assert done.certificate.fp32_nodes == ()


def test_a_layer_with_weights_does_not_join_for_a_cast():
    """The last layer reads the island and gives the network's output: in FP32 it would save both Casts."""
    constants = {"w": WEIGHTS["wq"] * np.float32(2**8), "head": WEIGHTS["head"]}
    body = "a = MatMul(x, w) s = Pow(a, two) n = Mul(s, down) y = MatMul(n, head)"
    model = text_model(body, (2, 6, 8), **constants, two=np.float32(2), down=np.float32(2**-15))
    done = certified(model)
    assert computed(done.model, done.certificate.fp32_nodes) == {"s", "n"}
    assert casts(model, {"s", "n", "y"}) < casts(model, {"s", "n"})
