"""Graphs in ONNX's text syntax, for tests: one tensor x in, one tensor y out, and constants by name."""

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from calib.ort_session import GraphSession


def text_model(body, shape=(2, 5, 8), opset=20, **constants):
    """The graph of `body`, lines such as `m = ReduceMean(x, axes)`, on x float32 (N, ...), N free; y is its last line's output.

    Constants that the body does not mention are left out; arrays keep their types, numbers become float32.
    """
    dims = ", ".join(["N", *map(str, shape[1:])])
    header = f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[{dims}] x) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(header.replace("\n", " "))
    read = {name for node in model.graph.node for name in node.input}
    for name, value in constants.items():
        array = np.asarray(value) if isinstance(value, np.ndarray) else np.float32(value)
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for node in model.graph.node:
        node.name = node.output[0]
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    onnx.checker.check_model(model, full_check=True)
    return model


def run_text_model(model, x, runtime="reference"):
    """y of a graph, by ONNX's reference evaluator or by ONNX Runtime."""
    if runtime == "reference":
        with np.errstate(all="ignore"):
            return ReferenceEvaluator(model).run(None, {"x": x})[0]
    return GraphSession(model)({"x": x})["y"]


def operators(model):
    """The operators of a graph, in order."""
    return [node.op_type for node in model.graph.node]
