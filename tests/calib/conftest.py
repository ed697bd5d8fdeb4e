"""A small network with every construction that quantization must tell apart, and images for it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

C = 8  # channels, in 2 heads of 4


def build(nodes, constants, inputs, outputs, opset=20):
    """A checked model; inputs and outputs are (name, type, shape)."""
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info(*v) for v in inputs],
        [h.make_tensor_value_info(*v) for v in outputs],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=10)


def tiny_nodes():
    n = h.make_node
    return [
        n("Conv", ["image", "w_stem"], ["c0"], name="stem/Conv", pads=[1, 1, 1, 1], strides=[2, 2]),  # (B, 8, 4, 4)
        n("Gelu", ["c0"], ["g0"], name="stem/Gelu"),
        n("Conv", ["g0", "w_dw", "b_dw"], ["c1"], name="lpi/Conv", group=C, pads=[1, 1, 1, 1]),
        n("Reshape", ["c1", "to_tokens"], ["r1"], name="flatten"),  # (B, 8, 16)
        n("Transpose", ["r1"], ["x"], perm=[0, 2, 1], name="to_tokens"),  # (B, 16, 8)
        n("LayerNormalization", ["x", "ln_w", "ln_b"], ["ln"], name="norm1"),
        n("MatMul", ["ln", "w_k"], ["k0"], name="attn.k/MatMul"),
        n("Add", ["k0", "b_k"], ["k1"], name="attn.k/Add"),
        n("MatMul", ["ln", "w_v"], ["v1"], name="attn.v/MatMul"),
        n("Transpose", ["k1"], ["kt"], perm=[0, 2, 1], name="attn/Transpose"),
        n("MatMul", ["kt", "v1"], ["kv"], name="attn/kv/MatMul"),  # (B, 8, 8)
        n("ReduceL2", ["kv", "axes"], ["norm"], name="attn/ReduceL2"),
        n("Div", ["kv", "norm"], ["xn"], name="attn/Div"),
        n("MatMul", ["ln", "xn"], ["a"], name="attn/out/MatMul"),  # (B, 16, 8)
        n("Add", ["x", "a"], ["x1"], name="residual"),
        n("ReduceMean", ["x1", "token_axis"], ["pooled"], name="pool", keepdims=0),  # (B, 8)
        n("Gemm", ["pooled", "w_head", "b_head"], ["logits"], transB=1),  # unnamed on purpose
    ]


def tiny_constants():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return {
        "w_stem": draw(C, 3, 3, 3),
        "w_dw": draw(C, 1, 3, 3),
        "b_dw": draw(C, 1)[:, 0],
        "to_tokens": np.array([0, C, 16], np.int64),
        "ln_w": np.ones(C, np.float32),
        "ln_b": np.zeros(C, np.float32),
        "w_k": draw(C, C),
        "b_k": draw(C, 1)[:, 0],
        "w_v": draw(C, C),
        "axes": np.array([-2], np.int64),
        "token_axis": np.array([1], np.int64),
        "w_head": draw(5, C),
        "b_head": draw(5, 1)[:, 0],
    }


@pytest.fixture
def tiny():
    model = build(tiny_nodes(), tiny_constants(), [("image", T.FLOAT, ["batch", 3, 8, 8])], [("logits", T.FLOAT, ["batch", 5])])
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def tiny_path(tiny, tmp_path):
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny, path)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(7).normal(size=(64, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def make_model():
    return build
