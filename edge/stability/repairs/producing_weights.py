"""The constants that scale a tensor when they are multiplied: weights and biases of what computes it for one reader alone.

    MatMul, Gemm, Conv, ConvTranspose    weight, bias               norms                gain, bias
    MatMul + Add                         weight and the constant    Mul by a constant    the constant

Between them and the tensor there may be operators that pass a positive factor on: Reshape, Transpose, Relu, pooling ...
"""

from collections.abc import Collection

import onnx

from calib.graph_editor import GraphEditor
from edge.stability.finders.site_graph import VIEWS
from edge.stability.repairs.homogeneity import NORMS_OF_DEGREE_0

_PASSING = (*VIEWS, "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Neg", "Abs")
_LAYERS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_WITH_GAIN = tuple(name for name in NORMS_OF_DEGREE_0 if name != "LpNormalization")


def producing_weights(editor: GraphEditor, tensor: str, readers: Collection[str]) -> list[tuple[str, int]] | None:
    """(node, position) of every constant that scales `tensor`; None where others than `readers` read it."""
    index = editor.index
    allowed = set(readers)
    biases: list[tuple[str, int]] = []
    while True:
        at = index.producers.get(tensor)
        if (
            at is None
            or tensor in editor.read_elsewhere
            or not {index.names[i] for i in index.consumers.get(tensor, ())} <= allowed
        ):
            return None
        name = index.names[at]
        node = editor.node(name)
        if node.op_type in _LAYERS or node.op_type in _WITH_GAIN:
            weights = _weights(editor, name, node)
            return None if weights is None else [*weights, *biases]
        constants = [i for i in range(len(node.input)) if editor.is_constant(name, i)]
        if node.op_type == "Mul" and len(constants) == 1:
            return [(name, constants[0]), *biases]
        if node.op_type == "Add" and len(constants) == 1:
            biases.append((name, constants[0]))
            tensor = node.input[1 - constants[0]]
        elif node.op_type in _PASSING:
            tensor = node.input[0]
        else:
            return None
        allowed = {name}


def _weights(editor: GraphEditor, name: str, node: onnx.NodeProto) -> list[tuple[str, int]] | None:
    """Gain or weight, and bias; of a MatMul the one constant among its factors."""
    if node.op_type == "MatMul":
        constants = [(name, at) for at in (0, 1) if editor.is_constant(name, at)]
        return constants if len(constants) == 1 else None
    places = [(name, at) for at in range(1, len(node.input)) if node.input[at]]
    return places if places and all(editor.is_constant(*place) for place in places) else None
