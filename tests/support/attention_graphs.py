"""Graphs of attention written by hand, networks with other weights, and images made to break their bounds."""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from calib.ort_session import TappedGraph
from edge.stability.finders.xnorm import find_sites


def along_rows(graph):
    """The same network with K^T V normalised along its last axis."""
    changed = copy.deepcopy(graph)
    changed.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "rows"))
    for node in changed.graph.node:
        if node.op_type == "ReduceL2" and "xnorm_kv" in node.name:
            node.input[1] = "rows"
    assert len(find_sites(changed, kv_axis=-1)) == 8
    return changed


def redrawn(graph, seed):
    """Another network of the same shape: every weight, gain and bias is multiplied by a number of its own, up to 4 times."""
    rng = np.random.default_rng(seed)
    changed = copy.deepcopy(graph)
    for tensor in changed.graph.initializer:
        if tensor.name.endswith(("weight", "bias")) and len(tensor.dims):
            values = numpy_helper.to_array(tensor)
            factors = np.exp2(rng.uniform(-2, 2, values.shape)) * rng.choice([-1, 1], values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values * factors).astype(np.float32), tensor.name))
    return changed


def hostile_images(size, rng):
    """Images (B, 3, S, S) as no camera makes them."""
    shape = (4, 3, size, size)
    noise = rng.normal(size=shape)
    board = np.indices((size, size)).sum(0) % 2 * 2.0 - 1
    kinds = [
        noise,
        noise * 1e-6,
        noise * 1e4,
        1e4 + noise,
        np.sign(noise) * 2.6,  # saturated, in the units of a preprocessed image
        np.ones(shape) * rng.normal(size=(4, 3, 1, 1)),
        np.zeros(shape),
        np.ones(shape) * 1e4,
        board * np.ones(shape) * 1e3,
        noise * np.exp2(rng.uniform(-20, 13, (4, 1, 1, 1))),
        np.where(rng.random(shape) < 0.001, 1e4, 0.0),
    ]
    return np.concatenate(kinds).astype(np.float32)


B, N, C, H = 2, 5, 8, 2


D = C // H


def joint_attention(how="split", seed=0, damage="", **constants):
    """The stranger's graph, Q, K and V cut by "split", "slice" or "gather"; with other constants, or with some damage."""
    g = Stranger(seed)
    g.constants |= constants
    z = g.node("LayerNormalization", "x g b", "z", epsilon=1e-6)
    if damage == "shuffled channels":
        z = g.node("Gather", "z turn", "zt", axis=2)
    g.node("MatMul", f"{z} w", "m")
    g.node("Add", "c m", "y")
    g.cut(how)
    keys = g.node("Mul", "k scale", "ks") if damage == "scaled keys" else "k"
    values = g.node("Slice", "v -1 far 2 -1", "vr") if damage == "reversed values" else "v"
    g.node("MatMul", f"{keys} {values}", "kv")
    g.norm("q", -1)
    g.norm("kv", -2)
    g.node("MatMul", "uq ukv", "o")
    g.node("Transpose", "o", "t", perm=[0, 2, 1, 3])
    g.node("Reshape", "t flat", "out" if damage != "keys read elsewhere" else "plain")
    if damage == "keys read elsewhere":
        g.node("ReduceSum", "k axes", "energy", keepdims=0)  # (B, H)
        g.node("ReduceSum", "energy 1", "total", keepdims=0)
        g.node("Reshape", "total wide", "everywhere")
        g.node("Add", "plain everywhere", "out")
    return g.model()


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(B, N, C)).astype(np.float32)


def changed(graph, **values):
    """A copy with other constants: name -> array, or a function of the old one."""
    copied = copy.deepcopy(graph)
    for tensor in copied.graph.initializer:
        if tensor.name in values:
            value = values[tensor.name]
            old = numpy_helper.to_array(tensor)
            new = np.asarray(value(old) if callable(value) else value, old.dtype)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return copied


def layer(path, name, factor):
    """Weight and bias of a linear layer times a factor."""
    return {f"{path}.{name}/MatMul.weight": lambda w: w * factor, f"{path}.{name}.bias": lambda b: b * factor}


def logits(graph, images):
    output = graph.graph.output[0].name
    return TappedGraph(graph, (output,))(images)[output]


def identical(one, other, images):
    return np.array_equal(logits(one, images).view(np.uint32), logits(other, images).view(np.uint32))


def with_eps(graph, value, added):
    graph = changed(graph, **{CLIP: value})
    for node in graph.graph.node:
        if added and node.op_type == "Clip":
            node.op_type = "Add"
    return graph


class Stranger:
    """A UFO attention x (B, N, C) -> (B, N, C) of another exporter: one linear layer for Q, K and V."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.nodes = []
        self.constants = {
            "g": rng.uniform(0.5, 2, C), "b": rng.normal(size=C),
            "w": rng.normal(size=(C, 3 * C)), "c": rng.normal(size=3 * C), "eps": 1e-6,
            "scale": rng.uniform(1, 2, (H, 1, 1)), "turn": np.arange(C)[::-1], "flat": [0, N, C], "heads": [0, N, H, D],
            "thirds": [0, N, 3, D, H], "-1": [-1], "-2": [-2], "1": [1], "2": [2], "axes": [2, 3], "far": [-100],
            "wide": [-1, 1, 1],
        }  # fmt: skip

    def node(self, op, inputs, output, **attributes):
        outputs = output.split()
        self.nodes.append(h.make_node(op, inputs.split(), outputs, name=f"{op}:{outputs[0]}", **attributes))
        return output

    def cut(self, how):
        """The joint layer's output y (B, N, 3 C) -> q, v (B, H, N, D), k (B, H, D, N)."""
        if how == "split":
            self.node("Split", "y", "q0 k0 v0", axis=-1, num_outputs=3)
        elif how == "gather":
            self.node("Reshape", "y thirds", "all")
        for i, (name, order) in enumerate({"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}.items()):
            if how == "gather":  # interleaved heads: (B, N, D, H)
                self.constants[f"at{i}"] = i
                self.node("Gather", f"all at{i}", f"{name}0", axis=2)
                self.node("Transpose", f"{name}0", name, perm=[0, 3, 2, 1] if name == "k" else [0, 3, 1, 2])
                continue
            if how == "slice":
                self.constants |= {f"from{i}": [i * C], f"to{i}": [(i + 1) * C]}
                self.node("Slice", f"y from{i} to{i} 2", f"{name}0")
            self.node("Reshape", f"{name}0 heads", f"{name}h")
            self.node("Transpose", f"{name}h", name, perm=order)

    def norm(self, tensor, axis):
        self.node("ReduceL2", f"{tensor} {axis}", f"n{tensor}")
        self.node("Max", f"n{tensor} eps", f"m{tensor}")
        self.node("Div", f"{tensor} m{tensor}", f"u{tensor}")

    def model(self):
        read = {name for node in self.nodes for name in node.input}
        kept = {name: np.asarray(value) for name, value in self.constants.items() if name in read}
        kept = {name: v.astype(np.float32) if v.dtype.kind == "f" else v for name, v in kept.items()}
        ends = [h.make_tensor_value_info(name, T.FLOAT, ["batch", N, C]) for name in ("x", "out")]
        weights = [numpy_helper.from_array(value, name) for name, value in kept.items()]
        graph = h.make_graph(self.nodes, "stranger", ends[:1], ends[1:], weights)
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


CLIP = "blocks.0.attn.xnorm_q/Clip.1"
"""The eps, one constant for every site."""


def constants(graph):
    return {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
