"""Bounds on every tensor of a network that hold for every input of an interval: rules of the operators, node after node.

What is carried is in `edge.stability.bounds.value`: intervals per channel, lengths of vectors, balls that follow from norms,
rows of a softmax. A tensor of an operator without a rule is unbounded; what follows it may be bounded again.

The bounds are those of exact arithmetic, widened at every node by more than FP32's rounding (SLACK per term summed, Higham,
Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Of LayerNorm this does not hold when the variance is
computed as a difference of sums, and of L2 norms without an eps not for vectors whose squares vanish in FP32. The batch is
taken as 1: a network that mixes the images of a batch is not covered for larger ones.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx

from calib.graph import GraphIndex, TensorType, index_graph, infer_types, to_array
from edge.stability.bounds.norm_tracking import tracked
from edge.stability.bounds.operator import Operator
from edge.stability.bounds.rules import RULES
from edge.stability.bounds.tensor_bounds import Bounds
from edge.stability.bounds.value import LIMIT, Shape, Value, bounded, reduced, unbounded, unit_root

_FLOATS = frozenset(
    (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.UNDEFINED,
    )
)


def bound_tensors(model: onnx.ModelProto, lowest: npt.ArrayLike, highest: npt.ArrayLike) -> Bounds:
    """Bound every float tensor of a graph.

    Args:
        model: FP32 ONNX graph; without subgraphs, or their outputs are unbounded. Left as it is.
        lowest, highest: of the graph's first input, as arrays that broadcast to it: one number, or (C, 1, 1) by channel
            (`edge.images.preprocess.Preprocess.interval`).

    Raises GraphError when shape inference fails on the graph.
    """
    index, types = index_graph(model), infer_types(model, batch=1)
    values: dict[str, Value] = {}
    for place, name in enumerate(index.inputs):
        shape = _shape(types, name)
        values[name] = bounded(shape, lowest, highest) if not place and shape is not None else unbounded(shape)
    values |= {
        name: _constant(to_array(tensor))
        for name, tensor in index.constants.items()
        if _is_float(types, name, tensor.data_type)
    }
    partial_sums: dict[tuple[str, str], float] = {}
    with np.errstate(all="ignore"):
        for node in model.graph.node:
            if node.op_type == "Constant" and node.output[0] in values:
                continue
            for name, value in zip(node.output, _outputs(node, values, index, types, partial_sums), strict=False):
                if name and _is_float(types, name):
                    values[name] = unit_root(value, name)
    return Bounds({name: value for name, value in values.items() if name not in index.constants}, partial_sums)


def _outputs(
    node: onnx.NodeProto,
    values: Mapping[str, Value],
    index: GraphIndex,
    types: Mapping[str, TensorType],
    partial_sums: dict[tuple[str, str], float],
) -> Iterator[Value]:
    constants = {place: to_array(index.constants[name]) for place, name in enumerate(node.input) if name in index.constants}
    inputs = tuple(unit_root(values[name], name) if name in values else None for name in node.input)
    operator = Operator(node, inputs, constants, tuple(_shape(types, name) for name in node.output), partial_sums)
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    result: Value | list[Value] = unbounded(operator.shape)
    if rule is not None:
        try:
            result = rule(operator)
        except (IndexError, ValueError):  # shapes that inference got wrong, or an operator used as its rule does not know
            result = unbounded(operator.shape)
    if isinstance(result, list):
        yield from result
        return
    yield tracked(operator, result) if rule is not None else result
    yield from (unbounded(shape) for shape in operator.shapes[1:])


def _shape(types: Mapping[str, TensorType], name: str) -> Shape | None:
    shape = types[name].shape if name in types else None
    return None if shape is None or None in shape else tuple(int(side or 0) for side in shape)


def _is_float(types: Mapping[str, TensorType], name: str, dtype: int = onnx.TensorProto.UNDEFINED) -> bool:
    return (types[name].dtype if name in types else dtype) in _FLOATS


def _constant(array: npt.NDArray[np.generic]) -> Value:
    if array.size <= LIMIT:
        numbers = array.astype(np.float64)
        return Value(array.shape, numbers, numbers, constant=array)
    low, high = (reduced(array, choose).astype(np.float64) for choose in (np.min, np.max))
    return Value(array.shape, low, high, constant=array)
