"""A site: one place of a graph where a 16-bit format may overflow, or lose small numbers, and what has to be known of it.

    layer_norm      LayerNormalization, or in pieces         x - mean, its squares, their sum
    rms_norm        RMSNormalization, or in pieces           squares, their sum
    l2_norm         x / ||x||, in any order of its factors   squares, their sum                (an XNorm is one of these)
    response_norm   ||x|| as a gate of x, as in GRN          squares, their sum
    instance_norm   InstanceNormalization, GroupNormalization as layer_norm
    variance        a mean or sum of squares of its own      squares, their sum
    softmax         Softmax and LogSoftmax                   the logits it reads
    exponential     Exp, Pow                                 the result
    reciprocal      Reciprocal, Div by an activation, 1/Sqrt the denominator, the result
    sum             ReduceSum, ReduceMean, average pooling   partial sums
    product         MatMul, Conv, Gemm                       the result; partial sums where the target accumulates in 16 bits
    residual        Add of two activations                   the result
    output          an output of the graph                   its values
    constant        a weight or another constant             its values, in 16 bits
    other           any other tensor that is stored          its values

numpy and onnx are not needed to read sites from a certificate.
"""

from dataclasses import dataclass
from typing import Literal

SiteKind = Literal[
    "xnorm", "l2_norm", "layer_norm", "rms_norm", "instance_norm", "group_norm", "response_norm", "variance", "softmax",
    "exponential", "reciprocal", "sum", "product", "residual", "output", "constant", "other",
]  # fmt: skip
Quantity = Literal[
    "value", "square", "sum", "sum of squares", "deviation", "squared deviation", "sum of squared deviations", "partial sum"
]  # fmt: skip
"""What is taken of a tensor x, over some axes: x, x^2, its sum, sum x^2, x - mean, its square, their sum, or of two tensors
what their matrix product adds up. Of a sum and a product it is the largest partial sum, whatever the order of summation:
(sum |x| + |sum x|) / 2."""


@dataclass(frozen=True)
class Probe:
    """One quantity at a site.

    Attributes:
        quantity: what is taken.
        tensors: of one tensor; of two for the partial sums of a product.
        axes: over which is summed, negative; empty for elements.
        stored: whether a tensor of the graph holds it, in the network's type; otherwise it exists inside an operator only, in
            the type in which the target computes that operator (`edge.stability.target_precisions`).
        divides: whether what follows divides by it, or by its root, so that it must not vanish either.
        saturates: which infinities change nothing: those "below" zero, as of a mask before a softmax or what Exp reads, or
            "both", as inside 1 / (1 + exp(-x)).
    """

    quantity: Quantity
    tensors: tuple[str, ...]
    axes: tuple[int, ...] = ()
    stored: bool = True
    divides: bool = False
    saturates: Literal["no", "below", "both"] = "no"


@dataclass(frozen=True)
class Observed:
    """A quantity over images.

    Attributes:
        maximum: largest magnitude.
        minimum: smallest magnitude other than zero; inf where there is none.
        count: how many numbers.
        zeros: how many are exactly zero.
        overflowing: how many FP16 rounds to infinity; of a sum and a partial sum, how many finished sums.
        vanishing: how many are not zero and FP16 rounds to zero.
    """

    maximum: float
    minimum: float
    count: int
    zeros: int
    overflowing: int
    vanishing: int


@dataclass(frozen=True)
class Eps:
    """What keeps the division of a norm finite.

    Attributes:
        kind: "clamp", max(n, eps), or "added", n + eps.
        acts_on: the "norm", its "square" (a sum) or the "mean" of squares.
        value: the constant in the graph.
        node: name of the node that applies it; that of the norm where it is an attribute of it (`epsilon`).
        tensor: name of the constant; empty where it is an attribute.
    """

    kind: Literal["clamp", "added"]
    acts_on: Literal["norm", "square", "mean"]
    value: float
    node: str
    tensor: str

    @property
    def on_norm(self) -> float:
        """The value in units of the norm, or of the root of the mean."""
        return self.value if self.acts_on == "norm" else self.value**0.5


@dataclass(frozen=True)
class Site:
    """One place, by the names of its nodes and tensors.

    Attributes:
        kind: see the module's docstring.
        name: the node that it is known by, unique together with the kind.
        op_type: operator of that node; of a constant that of its first reader, of an input "Input".
        nodes: names of the nodes that compute in FP32 where the site is an FP32 island, in graph order.
        reads: the tensor that it reads (of a product the first); for a constant its name.
        output: the tensor that it computes.
        axes: of a norm or sum, negative.
        eps: constants that keep a division finite, see `Eps`.
        probes: what FP16 has to hold.
    """

    kind: SiteKind
    name: str
    op_type: str
    nodes: tuple[str, ...]
    reads: str
    output: str
    axes: tuple[int, ...] = ()
    eps: tuple[Eps, ...] = ()
    probes: tuple[Probe, ...] = ()
