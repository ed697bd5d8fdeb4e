"""How the tensors of a norm scale with what it reads: f(2^-p x) = 2^-(p d) f(x), with the degree d of each tensor.

    x, x - mean(x), ||x||, |x|     1          x^2, sum x^2, mean x^2          2
    x / ||x||                      0          1 / ||x||, (sum x^2)^(-1/2)    -1

An eps has the degree of the tensor that it keeps from zero, and is scaled along with it: then the norm is exact for every x,
LN_eps(x) = LN_{4^-p eps}(2^-p x), in FP32 to the last bit, as powers of two change no digit.
"""

from collections.abc import Callable, Mapping

import onnx

from calib.graph import GraphIndex, to_array
from edge.stability.site import Eps, Site

NORMS_OF_DEGREE_0 = (
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization",
)  # fmt: skip
PASSING = (
    "Identity", "Expand", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Abs", "Neg", "Relu", "ReduceMean",
    "ReduceSum", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "GlobalAveragePool",
)  # fmt: skip
_Degrees = list[float]

_RULES: Mapping[str, Callable[[_Degrees], float | None]] = {
    **dict.fromkeys(PASSING, lambda d: d[0]),
    **dict.fromkeys(NORMS_OF_DEGREE_0, lambda _d: 0.0),
    "Mul": sum,
    "Div": lambda d: d[0] - d[1],
    "Sqrt": lambda d: d[0] / 2,
    "Reciprocal": lambda d: -d[0],
    "ReduceSumSquare": lambda d: 2 * d[0],
    "Sub": lambda d: d[0] if d[0] == d[1] else None,
    "Add": lambda d: d[0] if d[0] == d[1] else None,
}
"""Degrees of the inputs -> that of the output; None where it has none."""


def degrees(index: GraphIndex, site: Site) -> dict[str, float] | None:
    """Degree of what the site reads and of every tensor that it computes from it; None where a node has none.

    Nodes of the site that what it reads is computed by are left out.
    """
    found = {site.reads: 1.0}
    guards = {eps.node for eps in site.eps}
    for name in site.nodes:
        node = index.nodes[name]
        if not any(tensor in found for tensor in node.input):
            continue
        degree = _guarded(node, found) if name in guards and _is_guard(node) else _degree(index, node, found)
        if degree is None or any(node.output[1:]):
            return None
        found[node.output[0]] = degree
    return found


def degree_of_eps(index: GraphIndex, eps: Eps, known: Mapping[str, float]) -> float:
    """Degree of what an eps acts on: of the attribute of an operator, the mean of squares."""
    return known[index.nodes[eps.node].output[0]] if eps.tensor or _is_guard(index.nodes[eps.node]) else 2.0


def _is_guard(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Add", "Max", "Clip", "Pad")


def _guarded(node: onnx.NodeProto, known: Mapping[str, float]) -> float | None:
    """Degree of the input that is not the eps; a Clip from above has none."""
    if node.op_type == "Clip" and len(node.input) > 2 and node.input[2]:
        return None
    return next((known[tensor] for tensor in node.input if tensor in known), None)


def _degree(index: GraphIndex, node: onnx.NodeProto, known: Mapping[str, float]) -> float | None:
    if node.op_type == "Pow":
        power = to_array(index.constants[node.input[1]]) if node.input[1] in index.constants else None
        return (
            None
            if power is None or power.size != 1 or node.input[0] not in known
            else known[node.input[0]] * float(power.item())
        )
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    inputs = list(node.input[:1]) if node.op_type in (*PASSING, *NORMS_OF_DEGREE_0) else list(node.input)
    if not all(tensor in known or tensor in index.constant_like for tensor in inputs):
        return None
    return rule([known.get(tensor, 0.0) for tensor in inputs])
