"""Repair by powers of two: XN(2^-p a) = XN(a), so that a site can be moved to where a 16-bit format holds it, at no cost.

    q     W_Q, b_Q <- 2^-p W_Q, 2^-p b_Q                                   a = Q
    kv    W_K, b_K <- 2^-r W_K, 2^-r b_K,  W_V, b_V <- 2^-s W_V, 2^-s b_V   a = K^T V,  p = r + s

Powers of two change no digit of an FP32 number: the logits stay the same to the last bit. p is chosen per site, or per head
where one p does not do: the largest sum a^2 to reckon with goes below the largest number, the smallest one observed above the
floor (`edge.stability.verdict`), the middle of the gap to the middle of the window. K and V share p: weights shrunk by all of
it could lose digits themselves.

An eps that no observed vector feels stays a clamp, or becomes one, that FP16 can hold: exact wherever it is inactive. One that
some vector feels shrinks by the same power of two, which is exact for every input.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from calib.errors import InputError
from calib.graph_editor import GraphEditor
from edge.stability.finders.xnorm import XNormSite
from edge.stability.float_formats import FP16
from edge.stability.observed_ranges import Float64, Int64
from edge.stability.site import Eps
from edge.stability.trace_layers import Projection
from edge.stability.verdict import MARGIN_BITS, SiteCase, floor_of_sum, reckoned_sum

SAFE_EPS = FP16.smallest_normal
SMALLEST_WEIGHT_RMS = 2.0**-12.5
"""Root mean square of a head's weights below which rounding to multiples of 2^-24 adds more noise than FP16's 11 bits do."""
LOSABLE = 2.0**-48
"""Share of a constant's largest number that a subnormal one may lose: half of FP32's digits below the last."""
_SUFFIX = "folded"
_NEGLIGIBLE = 2.0**-25
"""n + eps = n in FP32 for eps below this share of n."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Fold:
    """What is done to one site.

    Attributes:
        site: where.
        exponents: int64 (1, H) for "q", (2, H) for "kv" (keys, values): weights and biases are multiplied by 2^-exponent.
        eps: each eps that changes, and the one that takes its place.
    """

    site: XNormSite
    exponents: Int64
    eps: tuple[tuple[Eps, Eps], ...] = ()

    @property
    def changes(self) -> bool:
        """Whether anything is done at all."""
        return bool(self.exponents.any()) or bool(self.eps)


def plan_fold(case: SiteCase, layers: tuple[Projection, ...]) -> Iterator[Fold]:
    """Foldings that would bring a site into FP16's window: one exponent for all heads if that can do, then one per head.

    Without the linear layers that compute it only its eps can change.
    """
    heads = len(case.observed.zero)
    with np.errstate(divide="ignore"):  # a head of zeros
        top, bottom = np.log2(reckoned_sum(case)), np.log2(case.observed.sum_min)
    candidates = [_totals(top.max(), bottom.min(), case.dim, heads), _totals(top, bottom, case.dim, heads)]
    for total in candidates if layers else [np.zeros(heads, np.int64)]:
        exponents = None if total is None else _split(total, case, layers)
        if exponents is not None:
            yield from _with_eps(case, exponents)


def plan_fit(case: SiteCase, layers: tuple[Projection, ...]) -> Iterator[Fold]:
    """For an FP32 island: just what lets the layers' outputs, which are stored on its edge, fit FP16; one exponent a layer."""
    heads = len(case.observed.zero)
    if layers:
        needed = [max(0, int(_limits(case, i, layer)[0].max())) for i, layer in enumerate(layers)]
        yield from _with_eps(case, np.tile(np.array(needed, np.int64)[:, None], (1, heads)))


def _with_eps(case: SiteCase, exponents: Int64) -> Iterator[Fold]:
    """The folding with these exponents, unless some eps has no exact value under it."""
    norms = np.sqrt(case.observed.sum_min)
    changes = [(eps, _folded_eps(eps, norms, exponents.sum(axis=0))) for eps in case.site.eps]
    if all(new is not None for _, new in changes):
        yield Fold(case.site, exponents, tuple((old, new) for old, new in changes if new and new != old))


def _totals(top: Float64 | float, bottom: Float64 | float, dim: int, heads: int) -> Int64 | None:
    """(H,) exponents p that centre log2 of sum a^2, from bottom to top, in FP16's window; None where it is too wide."""
    ceiling, floor = math.log2(FP16.largest), math.log2(floor_of_sum(dim, FP16))
    lowest = np.ceil((np.broadcast_to(top, heads) - ceiling) / 2)  # -inf where nothing is large
    highest = np.floor((np.broadcast_to(bottom, heads) - floor) / 2)  # +inf for a head without a nonzero vector
    if (lowest > highest).any():
        return None
    middle = np.where(np.isfinite(lowest) & np.isfinite(highest), (np.maximum(lowest, -1e6) + np.minimum(highest, 1e6)) / 2, 0)
    return np.asarray(np.clip(np.rint(middle), lowest, highest), dtype=np.int64)


def _split(total: Int64, case: SiteCase, layers: tuple[Projection, ...]) -> Int64 | None:
    """Exponents by layer, (1, H) or (2, H), that add up to `total`; None when a layer would leave FP16."""
    if not layers:
        return np.zeros((len(case.site.factors) or 1, len(total)), np.int64)
    (low_k, high_k), *others = (_limits(case, i, layer) for i, layer in enumerate(layers))
    if not others:
        return total[None] if ((low_k <= total) & (total <= high_k)).all() else None
    ((low_v, high_v),) = others
    size_k, size_v = (np.log2(_weight_rms(layer)) for layer in layers)
    wanted = np.rint((total + (size_k - size_v).mean()) / 2)  # alike for all heads, which share one INT8 scale
    low, high = np.maximum(low_k, total - high_v), np.minimum(high_k, total - low_v)
    if (low > high).any():
        return None
    keys = np.clip(wanted, low, high).astype(np.int64)
    return np.stack([keys, total - keys])


def _limits(case: SiteCase, i: int, layer: Projection) -> tuple[Float64, Float64]:
    """(H,) smallest and largest exponent of a layer: its output must fit FP16, its weights must keep their digits."""
    reach = case.expected.factor_max[i] if case.site.operand == "kv" else case.expected.argument_max
    low = np.ceil(np.log2(np.maximum(reach, 1e-300)) - math.log2(FP16.largest) + MARGIN_BITS)
    largest = np.abs(layer.matrix).max(axis=(1, 2))
    low = np.maximum(low, np.ceil(np.log2(np.maximum(largest, 1e-300)) - math.log2(FP16.largest)))
    high = np.floor(np.log2(_weight_rms(layer)) - math.log2(SMALLEST_WEIGHT_RMS))
    return low, np.maximum(high, low)


def _weight_rms(layer: Projection) -> Float64:
    """Root mean square of the weights of each head, (H,); 1 for a head of zeros, which has no digits to lose."""
    rms = np.sqrt((layer.matrix**2).mean(axis=(1, 2)))
    return np.asarray(np.where(rms > 0, rms, 1.0))


def _folded_eps(eps: Eps, norms: Float64, total: Int64) -> Eps | None:
    """What an eps becomes when head h, of smallest norm norms[h], is multiplied by 2^-total[h]; None if nothing is exact."""
    power = 1 if eps.acts_on == "norm" else 2
    safe, share = SAFE_EPS ** (1 / power), _NEGLIGIBLE ** (1 / power)  # on the norm
    idle = eps.on_norm < norms if eps.kind == "clamp" else eps.on_norm < share * norms
    moved = norms * np.exp2(-total)
    if idle.all() and (moved > 2 * safe).all():  # no observed vector feels it: any clamp below them does the same
        keeps = eps.kind == "clamp" and float(FP16.round(np.float32(eps.value))) > 0 and bool((eps.on_norm < moved).all())
        return eps if keeps else replace(eps, value=SAFE_EPS, kind="clamp")
    if len(set(total.tolist())) > 1:
        return None
    value = math.ldexp(eps.value, -int(total[0]) * power)
    exact = float(np.float32(value)) == value and abs(value) >= 2.0**-126
    return replace(eps, value=value) if exact else None


def folded_graph(
    model: onnx.ModelProto, folds: tuple[Fold, ...], layers: tuple[tuple[Projection, ...], ...]
) -> onnx.ModelProto:
    """A copy of the FP32 graph with every folding carried out; constants that other nodes read too are copied first.

    `folds` and `layers` are one per site, `layers` as `plan_fold` got them. Raises InputError when a power of two takes a
    constant out of FP32.
    """
    editor = GraphEditor(model)
    for fold, own in zip(folds, layers, strict=True):
        for layer, exponents in zip(own, fold.exponents, strict=False):
            if exponents.any():
                _scale(editor, layer, exponents)
        for old, new in fold.eps:
            _set_eps(editor, old, new)
    return editor.finish()


def _scale(editor: GraphEditor, layer: Projection, exponents: Int64) -> None:
    """Multiply weight and bias of a layer by 2^-exponents[h] on the channels of head h."""
    factors = np.ones(editor.index.constants[layer.weight].dims[1], np.float32)
    factors[layer.channels] = np.exp2(-exponents.astype(np.float32))[:, None]
    _change(editor, layer.matmul, layer.weight, lambda weight: times_exactly(weight, factors, layer.weight))
    if layer.bias:
        readers = (editor.index.names[i] for i in editor.index.consumers[editor.node(layer.matmul).output[0]])
        add = next(name for name in readers if editor.node(name).op_type == "Add")
        _change(editor, add, layer.bias, lambda bias: times_exactly(bias, factors.reshape(bias.shape), layer.bias))


def _change(editor: GraphEditor, node: str, constant: str, change: Callable[[Array], Array]) -> None:
    """Let a node read other values of a constant; what was changed before, such as the other heads of a joint layer, stays."""
    at = editor.position(node, constant)
    editor.set_constant(node, at, change(editor.constant(node, at)), _SUFFIX)


def _set_eps(editor: GraphEditor, old: Eps, new: Eps) -> None:
    """Give an eps another value; an added one may become a clamp."""
    node, value = editor.node(old.node), np.float32(new.value)
    if old.tensor:
        _change(editor, old.node, old.tensor, lambda values: np.full_like(values, value))
    else:
        next(a for a in node.attribute if a.name == "min").f = float(value)
    if new.kind != old.kind:
        node.op_type = "Max"


def times_exactly(values: Array, factors: npt.NDArray[np.float32], where: str) -> Array:
    """values * factors, without a digit lost that a sum could show. Raises InputError."""
    with np.errstate(over="ignore", under="ignore"):
        new = values * factors
        lost = np.abs(new / factors - values).max(initial=0)
    if not lost <= LOSABLE * np.abs(values).max(initial=0):
        raise InputError("a power of two takes a constant out of FP32", where=where)
    return new
