"""Small graphs for the tests of `engines`: what a UFO-ViT is made of, with Q/DQ wherever a test wants it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


class Graph:
    """Nodes and weights in the order in which they are added; every call returns the name of the tensor it makes."""

    def __init__(self, *shape: int, seed: int = 0, opset: int = OPSET) -> None:
        self.shape = shape
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(seed)

    def weight(self, name: str, *shape: int, scale: float = 0.2) -> str:
        return self.store(name, (self.random.standard_normal(shape) * scale).astype(np.float32))

    def store(self, name: str, value: np.ndarray) -> str:
        self.weights[name] = value
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def pair(self, tensor: str, scale: float | np.ndarray = 0.05, zero: int = 0, **axis: int) -> str:
        """A Q/DQ pair on an activation."""
        s = self.store(f"{tensor}_scale", np.asarray(scale, np.float32))
        z = self.store(f"{tensor}_zero", np.full(np.shape(scale), zero, np.int8))
        q = self.node("QuantizeLinear", [tensor, s, z], f"{tensor}/Q", **axis)
        return self.node("DequantizeLinear", [q, s, z], f"{tensor}/DQ", **axis)

    def int8_weight(self, name: str, axis: int) -> str:
        """Replace a float weight by INT8 codes and a DequantizeLinear with one scale per slice of `axis`."""
        w = self.weights.pop(name)
        others = tuple(i for i in range(w.ndim) if i != axis)
        scale = np.abs(w).max(axis=others).astype(np.float16).astype(np.float32) / np.float32(127)
        scale = scale.astype(np.float16).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(w.ndim)]
        codes = np.clip(np.rint(w / scale.reshape(shape)), -127, 127).astype(np.int8)
        inputs = [
            self.store(f"{name}_q", codes),
            self.store(f"{name}_s", scale),
            self.store(f"{name}_z", np.zeros(len(scale), np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}/DQ", axis=axis)

    def model(self, output: str, *shape: int | str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *self.shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *shape])],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def attention(*, quantized: bool = False, weight_axis: int = 1, both_sides: bool = True) -> onnx.ModelProto:
    """LayerNorm -> K, V -> K^T V -> XNorm -> times Q, on image (batch, 8, 16) with D = 16: every kind of MatMul.

    MACs for one image: k, v, q 8 x 16 x 16 = 2048 each; kv 16 x 16 x 8 = 2048; out 8 x 16 x 16 = 2048; total 10240.
    """
    g = Graph(8, 16)
    g.store("ln_g", np.ones(16, np.float32))
    g.store("ln_b", np.zeros(16, np.float32))
    x = g.node("LayerNormalization", ["image", "ln_g", "ln_b"], "ln", axis=-1, epsilon=1e-6)
    x_in = g.pair(x) if quantized else x
    parts = {}
    for name in ("q", "k", "v"):
        weight = g.weight(f"w_{name}", 16, 16)
        weight = g.int8_weight(weight, weight_axis if name == "v" else 1) if quantized else weight
        parts[name] = g.node("MatMul", [x_in, weight], f"attn.{name}/MatMul")
    kt = g.node("Transpose", [parts["k"]], "attn.k/Transpose", perm=[0, 2, 1])
    v = parts["v"]
    if quantized:
        kt = g.pair(kt)
        v = g.pair(v) if both_sides else v
    kv = g.node("MatMul", [kt, v], "attn.kv/MatMul")
    g.store("axes", np.array([-2], np.int64))
    g.store("eps", np.array(2.0**-14, np.float32))
    norm = g.node("ReduceL2", [kv, "axes"], "xnorm/ReduceL2", keepdims=1)
    norm = g.node("Clip", [norm, "eps"], "xnorm/Clip")
    kv = g.node("Div", [kv, norm], "xnorm/Div")
    q = parts["q"]
    if quantized:
        q, kv = g.pair(q), g.pair(kv, 0.01)
    out = g.node("MatMul", [q, kv], "attn.out/MatMul")
    out = g.node("Add", [out, "image"], "residual")
    return g.model(out, 8, 16)


def softmax_attention(*, products: str = "qkpv") -> onnx.ModelProto:
    """softmax(q k^T) v with 2 heads of 32, on image (batch, 64, 64); Q/DQ on the sides of the two products in `products`.

    MACs for one image: 262144 each of the layers q, k, v and out, 64 x 64 x 64, and the two products, 2 x 64 x 32 x 64.
    """
    g = Graph(64, 64)
    x = g.pair("image")
    g.store("heads", np.array([0, 64, 2, 32]))
    g.store("joined", np.array([0, 64, 64]))
    parts = {}
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        weight = g.int8_weight(g.weight(f"w_{name}", 64, 64), 1)
        y = g.node("MatMul", [x, weight], f"attn.{name}/MatMul")
        y = g.node("Transpose", [g.node("Reshape", [y, "heads"], f"attn.{name}/heads")], f"attn.{name}/Transpose", perm=perm)
        parts[name] = g.pair(y) if name in products else y
    scores = g.node("MatMul", [parts["q"], parts["k"]], "attn.scores/MatMul")
    p = g.node("Softmax", [scores], "attn.softmax", axis=-1)
    out = g.node("MatMul", [g.pair(p, 1 / 127) if "p" in products else p, parts["v"]], "attn.mix/MatMul")
    out = g.node("Transpose", [out], "attn.mix/Transpose", perm=[0, 2, 1, 3])
    out = g.node("Reshape", [out, "joined"], "attn.mix/join")
    out = g.node("MatMul", [g.pair(out), g.int8_weight(g.weight("w_out", 64, 64), 1)], "attn.out/MatMul")
    out = g.node("Add", [out, "image"], "residual")
    return g.model(out, 64, 64)


ISLAND = frozenset({"attn.kv/MatMul", "xnorm/ReduceL2", "xnorm/Clip", "xnorm/Div"})


def convolutions(*, quantized: bool = False) -> onnx.ModelProto:
    """image (batch, 8, 12, 12) -> 3x3 convolution -> GELU -> 3x3 depthwise convolution -> mean -> Gemm: (batch, 4).

    MACs: 144 x 16 x 72 = 165888; 144 x 16 x 9 = 20736; 16 x 4 = 64.
    """
    g = Graph(8, 12, 12)

    def operands(x: str, weight: str) -> list[str]:
        return [g.pair(x), g.int8_weight(weight, 0)] if quantized else [x, weight]

    g.store("bias", np.zeros(16, np.float32))
    x = g.node("Conv", [*operands("image", g.weight("w1", 16, 8, 3, 3)), "bias"], "stem/Conv", pads=[1, 1, 1, 1])
    x = g.node("Gelu", [x], "gelu")
    x = g.node("Conv", [*operands(x, g.weight("w2", 16, 1, 3, 3)), "bias"], "lpi/Conv", pads=[1, 1, 1, 1], group=16)
    x = g.node("ReduceMean", [x, g.store("hw", np.array([2, 3], np.int64))], "pool", keepdims=0)
    g.store("bias4", np.zeros(4, np.float32))
    x = g.node("Gemm", [*operands(x, g.weight("w3", 4, 16)), "bias4"], "head/Gemm", transB=1)
    return g.model(x, 4)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """ONNX Runtime's result, FP32 in and out, without optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x})[0]


def images(*shape: int, batch: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *shape)).astype(np.float32)
