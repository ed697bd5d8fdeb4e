"""Programs of torch made from ONNX graphs, and what they compute."""

import onnx
from onnx import numpy_helper


def changed(model, name, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = [t for t in copy.graph.initializer if t.name == name]
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype), name))
    return copy
