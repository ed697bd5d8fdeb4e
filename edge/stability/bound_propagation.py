"""What is known of tensors behind an XNorm without any image: the norm itself is a bound.

    a / ||a||                |.| <= 1, whatever a is and whichever eps guards the division
    gamma (a / ||a||)        |.| <= |gamma| of the head
    XN(Q) . XN(K^T V)        an inner product of a vector of length <= |gamma_q| and a column: <= |gamma_q gamma_kv| where
                             columns were normalised (Cauchy-Schwarz), sqrt(D) times that where rows were

Transposing and reshaping changes no bound. Rounding does, by less than ROUNDING.
"""

from __future__ import annotations

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
class Proof:
    """A bound on a tensor's magnitude.

    Attributes:
        bound: per head, or of length 1 for all.
        axis: along which the vectors of an XNorm lie; None behind a product.
        sites: names of the XNorms that it rests on.
    """

    bound: npt.NDArray[np.float64]
    axis: int | None
    sites: tuple[str, ...]

    @property
    def largest(self) -> float:
        """The bound over all heads, rounding included."""
        return float(self.bound.max()) * (1 + ROUNDING)


def prove(model: onnx.ModelProto, sites: tuple[XNormSite, ...]) -> Mapping[str, Proof]:
    """Tensor -> proof, for everything that follows from the sites' outputs alone."""
    index, types = index_graph(model), infer_types(model)
    proofs = {site.output: Proof(np.ones(1), site.axis, (site.name,)) for site in sites}
    for node in model.graph.node:
        output = node.output[0]
        if output in proofs:
            continue
        known = [proofs.get(name) for name in node.input]
        if node.op_type in _UNCHANGED and known[0] is not None:
            moved = None if node.op_type != "Identity" else known[0].axis
            proofs[output] = Proof(np.array([known[0].bound.max()]), moved, known[0].sites)
        elif node.op_type == "Mul":
            scaled = _gain(node, known, index)
            if scaled is not None:
                proofs[output] = scaled
        elif node.op_type == "MatMul" and len(known) == 2 and known[0] is not None and known[1] is not None:
            shape = types[node.input[0]].shape if node.input[0] in types else None
            product = _product(known[0], known[1], None if shape is None else shape[-1])
            if product is not None:
                proofs[output] = product
    return proofs


def _gain(node: onnx.NodeProto, known: list[Proof | None], index: GraphIndex) -> Proof | None:
    """A proof times a constant that has one value per head, (., H, 1, 1), or one for all."""
    for proof, other in ((known[0], node.input[1]), (known[1], node.input[0])):
        if proof is None or other not in index.constants:
            continue
        gain = np.abs(to_array(index.constants[other]).astype(np.float64))
        per_head = gain.ndim >= 3 and gain.size == gain.shape[-3]
        factors = gain.reshape(-1) if per_head else np.array([gain.max()])
        axis = proof.axis if per_head or gain.size == 1 else None
        if factors.size > 1 and proof.bound.size == 1:
            return Proof(proof.bound[0] * factors, axis, proof.sites)
        if factors.size in (1, proof.bound.size):
            return Proof(proof.bound * factors, axis, proof.sites)
        return Proof(np.array([proof.bound.max() * factors.max()]), axis, proof.sites)
    return None


def _product(left: Proof, right: Proof, depth: int | None) -> Proof | None:
    """(., M, K) x (., K, N): vectors of both sides along K give Cauchy-Schwarz, else K entries are bounded one by one."""
    sizes = {left.bound.size, right.bound.size} - {1}
    if len(sizes) > 1:
        return None
    bound = left.bound * right.bound
    aligned = (left.axis == -1) + (right.axis == -2)
    if aligned < 2 and depth is None:
        return None
    factor = {2: 1.0, 1: float(depth or 1) ** 0.5, 0: float(depth or 1)}[aligned]
    return Proof(bound * factor, None, (*left.sites, *right.sites))
