"""A small float network, its images and what `ufovit calibrate` wrote of it."""

import json
import re

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tiny_project import sha256

from edge.model.metadata import write_graph_info

FILES = ["calibration.cache", "calibration.json", "model.int8.onnx", "model.refined.onnx"]
CHANNELS, HIDDEN, CLASSES, SIZE = 16, 32, 5, 16
MACS = {"stem": 16 * CHANNELS * 48, "fc1": 16 * CHANNELS * HIDDEN, "fc2": 16 * HIDDEN * CHANNELS, "head": CHANNELS * CLASSES}
MEAN, STD = 0.5, 0.25


def network(path, seed=0, size=SIZE, batch="batch", outlier=0.0, info=None):
    """Saves image (batch, 3, size, size) -> logits (batch, 5).

    A channel of the hidden layer is `outlier`, and weighs nothing in what reads it.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "stem.w": rng.normal(size=(CHANNELS, 3, 4, 4)) / 7,
        "stem.b": rng.normal(size=CHANNELS) / 8,
        "norm.g": rng.uniform(0.5, 2, CHANNELS),
        "norm.b": rng.normal(size=CHANNELS) / 8,
        "fc1.w": rng.normal(size=(CHANNELS, HIDDEN)) / 4,
        "fc1.b": rng.normal(size=HIDDEN) / 8,
        "fc2.w": rng.normal(size=(HIDDEN, CHANNELS)) / 2,
        "head.w": rng.normal(size=(CHANNELS, CLASSES)) / 2,
        "head.b": rng.normal(size=CLASSES) / 8,
    }
    if outlier:
        weights["fc1.b"][0], weights["fc2.w"][0] = outlier, 0
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "stem.w", "stem.b"], ["stem"], name="stem", strides=[4, 4], kernel_shape=[4, 4]),
        node("Gelu", ["stem"], ["act"], name="act"),
        node("Reshape", ["act", "shape"], ["flat"], name="flat"),
        node("Transpose", ["flat"], ["tokens"], name="transpose", perm=[0, 2, 1]),
        node("LayerNormalization", ["tokens", "norm.g", "norm.b"], ["normed"], name="norm", axis=-1),
        node("MatMul", ["normed", "fc1.w"], ["fc1"], name="fc1"),
        node("Add", ["fc1", "fc1.b"], ["fc1+b"], name="add"),
        node("Relu", ["fc1+b"], ["hidden"], name="relu"),
        node("MatMul", ["hidden", "fc2.w"], ["fc2"], name="fc2"),
        node("Add", ["fc2", "tokens"], ["sum"], name="residual"),
        node("ReduceMean", ["sum", "axes"], ["pooled"], name="pool", keepdims=0),
        node("Gemm", ["pooled", "head.w", "head.b"], ["logits"], name="head"),
    ]
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    constants += [numpy_helper.from_array(np.array(v), k) for k, v in (("shape", [0, CHANNELS, -1]), ("axes", [1]))]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *sides])
        for name, sides in (("image", (3, size, size)), ("logits", (CLASSES,)))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if info is not None:
        write_graph_info(model, info)
    onnx.save(model, path)
    return path


def edited(source, path, change):
    model = onnx.load(source)
    change(model)
    onnx.save(model, path)
    return path


def logits(path, images):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


def table_of(folder):
    return json.loads((folder / "calibration.json").read_text())


def dequantized(path):
    """Tensors that a Q/DQ graph quantizes as it runs."""
    return {node.input[0] for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"}


def held_out(images, count=64):
    return np.delete(images, np.round(np.linspace(0, len(images) - 1, count)).astype(int), axis=0)


def sqnr_db(reference, found):
    reference, found = reference.astype(np.float64), found.astype(np.float64)
    return 10 * np.log10((reference**2).sum() / ((reference - found) ** 2).sum())


def figure(pattern, text):
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return float(found[1])


def contents(folder):
    return {p.relative_to(folder): sha256(p) for p in folder.rglob("*") if p.is_file()}


def prepared(pixels):
    return np.ascontiguousarray(((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2), dtype=np.float32)


NORMALISED = ("--mean", MEAN, "--std", f"{STD},{STD},{STD}")
