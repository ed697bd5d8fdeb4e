"""A graph as strangers bring them: uint8 pictures (batch, 48, 80, 3) in; a map, scores and an index out."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH, CLASSES = 48, 80, 5
SHAPES = ((4, 6, 10), (CLASSES,), ())
"""Of the map (float32), the scores (float32) and the place of the largest value of the map (int64), for one picture."""


def two_output_graph(batch="batch"):
    rng = np.random.default_rng(0)
    weights = {
        "scale": np.float32(1 / 255),
        "patches": rng.normal(0, 0.1, (4, 3, 8, 8)).astype(np.float32),
        "head": rng.normal(0, 1, (4, CLASSES)).astype(np.float32),
        "bias": rng.normal(0, 0.1, CLASSES).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], name="float", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"], name="scaled"),
        helper.make_node("Transpose", ["scaled"], ["planes"], name="planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "patches"], ["map"], name="patch", strides=[8, 8]),
        helper.make_node("Relu", ["map"], ["positive"], name="relu"),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "head", "bias"], ["scores"], name="head"),
        helper.make_node("Flatten", ["map"], ["places"], name="places"),
        helper.make_node("ArgMax", ["places"], ["index"], name="largest", axis=1, keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, HEIGHT, WIDTH, 3])
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
    outputs = [
        helper.make_tensor_value_info(name, kind, [batch, *shape])
        for name, kind, shape in zip(("map", "scores", "index"), kinds, SHAPES, strict=True)
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "two outputs", [image], outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def pictures(count, seed=0):
    """uint8 (count, HEIGHT, WIDTH, 3), smooth enough that the scores differ from picture to picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)
