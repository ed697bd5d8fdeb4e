"""Bounds on the tensors after an XNorm that hold without any image: the norm itself is a bound.

    a / ||a||                |.| <= 1, whatever a is and whichever eps guards the division
    gamma (a / ||a||)        |.| <= |gamma| of the head
    XN(Q) . XN(K^T V)        an inner product of a vector of length <= |gamma_q| and a column: <= |gamma_q gamma_kv| where
                             columns were normalised (Cauchy-Schwarz), sqrt(D) times that where rows were

Transposing and reshaping change no bound. Rounding does, by less than ROUNDING.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from calib.graph import GraphIndex, index_graph, infer_types, to_array
from edge.stability.finders.xnorm import XNormSite

ROUNDING = 2.0**-9
"""Relative: FP16's roundings of a, norm and quotient, 2^-11 each, and of the product."""
_UNCHANGED = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"})


@dataclass(frozen=True)
class TensorBound:
    """A bound on a tensor's magnitude.

    Attributes:
        bound: per head, or of length 1 for all.
        axis: along which the vectors of an XNorm lie; None after a product.
        sites: names of the XNorms that it follows from.
    """

    bound: npt.NDArray[np.float64]
    axis: int | None
    sites: tuple[str, ...]

    @property
    def largest(self) -> float:
        """The bound over all heads, rounding included."""
        return float(self.bound.max()) * (1 + ROUNDING)


def propagate_bounds(model: onnx.ModelProto, sites: tuple[XNormSite, ...]) -> Mapping[str, TensorBound]:
    """Tensor -> bound, for everything that follows from the sites' outputs alone."""
    index, types = index_graph(model), infer_types(model)
    bounds = {site.output: TensorBound(np.full(1, site.gain), site.axis, (site.name,)) for site in sites}
    for node in model.graph.node:
        inputs = [bounds.get(name) for name in node.input]
        if node.output[0] in bounds or not any(inputs):
            continue
        bound = None
        if node.op_type in _UNCHANGED and inputs[0] is not None:
            axis = inputs[0].axis if node.op_type == "Identity" else None
            bound = TensorBound(np.array([inputs[0].bound.max()]), axis, inputs[0].sites)
        elif node.op_type == "Mul":
            bound = _scaled(node, inputs, index)
        elif node.op_type == "MatMul" and inputs[0] is not None and inputs[1] is not None:
            shape = types[node.input[0]].shape if node.input[0] in types else None
            bound = _product(inputs[0], inputs[1], None if shape is None else shape[-1])
        if bound is not None:
            bounds[node.output[0]] = bound
    return bounds


def _scaled(node: onnx.NodeProto, inputs: list[TensorBound | None], index: GraphIndex) -> TensorBound | None:
    """A bound times a constant that has one value per head, (., H, 1, 1), or one for all."""
    for bound, other in ((inputs[0], node.input[1]), (inputs[1], node.input[0])):
        if bound is None or other not in index.constants:
            continue
        gain = np.abs(to_array(index.constants[other]).astype(np.float64))
        per_head = gain.ndim >= 3 and gain.size == gain.shape[-3]
        factors = gain.reshape(-1) if per_head else np.array([gain.max()])
        axis = bound.axis if per_head or gain.size == 1 else None
        if 1 in (factors.size, bound.bound.size) or factors.size == bound.bound.size:
            return TensorBound(bound.bound * factors, axis, bound.sites)
        return TensorBound(np.array([bound.bound.max() * factors.max()]), axis, bound.sites)
    return None


def _product(left: TensorBound, right: TensorBound, depth: int | None) -> TensorBound | None:
    """(., M, K) x (., K, N): vectors of both sides along K give Cauchy-Schwarz, else K entries are bounded one by one."""
    sizes = {left.bound.size, right.bound.size} - {1}
    aligned = (left.axis == -1) + (right.axis == -2)
    if len(sizes) > 1 or (aligned < 2 and depth is None):
        return None
    factor = {2: 1.0, 1: float(depth or 1) ** 0.5, 0: float(depth or 1)}[aligned]
    return TensorBound(left.bound * right.bound * factor, None, (*left.sites, *right.sites))
