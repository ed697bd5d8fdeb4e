"""The error of every unit: what has accumulated at its end, what it inherits, what it introduces, and of which kind.

With F(.) a unit of the float network, J(.) the same unit as judged, x its inputs in the float network, y in the judged run:

    accumulated    J(y) - F(x)        inherited    F(y) - F(x)        introduced    J(x) - F(x)

and the introduced error falls into the four parts of `edge.attribution.graph_variants`. Every unit is fed by itself: the graphs
are cut at all ends and the pieces run side by side, so that all this takes one run of a whole graph for each form.

For each quantized activation x the noise of its Q/DQ, |s clip(round(x / s)) - x|^2, is held against that of scales s 2^(k/2):
a scale that is off shows there, whatever else its layer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib import metrics
from calib.errors import InputError
from calib.graph import index_graph
from calib.ort_session import GraphSession, check_batch
from edge.attribution.graph_variants import FED, Activation, Forms, activations, cut, tapped
from edge.attribution.layer_spans import Unit
from edge.images.preprocess import Float32

PARTS = ("accumulated", "inherited", "introduced", "fp16", "rounding", "clipping", "weights")
FACTORS = 2.0 ** (np.arange(-4, 5) / 2)
"""Scales that are tried, in units of the scale in the graph."""
_OWN = len(FACTORS) // 2
_VALUES = 1 << 19
"""Values of one activation and batch that the scales are tried on: all of them up to a few dozen small images. Fewer would miss
the rare large ones, which decide how much clipping costs."""
_CAN_HIDE = {"Div": (1,), "Reciprocal": (0,), "Clip": (0,), "Max": (0, 1), "Min": (0, 1), "QuantizeLinear": (0,)}
"""Operators behind whose inputs an infinity may be gone: x / infinity is 0, a clipped one is a number."""

Tensors = dict[str, NDArray[Any]]
Look = Callable[[Float32], Tensors]
"""Images (B, 3, S, S) -> tensors of the judged run by name, the logits among them."""


@dataclass
class UnitError:
    """Sums over all images and elements at the end of one unit: of x^2, and of the squared error of each of PARTS."""

    signal: float = 0.0
    noise: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def db(self, part: str) -> float:
        """SQNR of one of PARTS."""
        return decibels(self.signal, self.noise[part])


@dataclass
class ScaleError:
    """How well the scale of one activation fits it.

    Attributes:
        activation: as the judged graph has it.
        noise: squared error with each of FACTORS, summed.
        clipped: the part of it, at the scale in the graph, that clipping makes.
        beyond, count: values beyond the range, and all.
        largest: largest magnitude.
    """

    activation: Activation
    noise: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(FACTORS)))
    clipped: float = 0.0
    beyond: int = 0
    count: int = 0
    largest: float = 0.0

    @property
    def excess_db(self) -> float:
        """Noise at the scale in the graph over that of the best scale tried."""
        return decibels(float(self.noise[_OWN]), float(self.noise.min())) if self.noise.min() > 0 else 0.0

    @property
    def best_factor(self) -> float:
        """What the scale would have to be multiplied with; 1 where nothing tried is better."""
        return 1.0 if self.noise[_OWN] == self.noise.min() else float(FACTORS[int(self.noise.argmin())])

    @property
    def clipping_share(self) -> float:
        """Of the noise, the part that clipping makes."""
        return self.clipped / float(self.noise[_OWN]) if self.noise[_OWN] else 0.0


@dataclass(frozen=True)
class Measured:
    """All sums.

    Attributes:
        units: name of the unit -> its errors.
        scales: by tensor, in graph order.
        not_finite: tensor of the judged run -> numbers that are NaN or infinite, where there are any, in graph order.
        base_logits, judged_logits: (n, classes).
    """

    units: dict[str, UnitError]
    scales: dict[str, ScaleError]
    not_finite: dict[str, int]
    base_logits: Float32
    judged_logits: Float32


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), within +-300: + for no noise, - for no signal and for noise that is no number."""
    return metrics.power_ratio_db(signal, noise)


def measure(
    base: onnx.ModelProto,
    forms: Forms,
    units: Sequence[Unit],
    look: Look,
    pairs: Iterable[tuple[Float32, Float32]],
    done: Callable[[int], None] = lambda _images: None,
    more: Iterable[Float32] = (),
) -> Measured:
    """Measure every unit.

    Args:
        base: the float graph that the judged one was made from.
        forms: the judged graph.
        units: that both have.
        look: shows the tensors of `watched` in the judged run.
        pairs: batches (B, 3, S, S) as the float graph gets them and as the judged graph gets them, of the same images.
        done: told the number of images after each batch.
        more: batches of further images, as the float graph gets them: scales alone are tried on these too, because how much
            clipping costs hangs on few large values, one token per image in some tensors.

    Raises InputError for batches that the graphs do not take, no images, and a float network that is not finite.
    """
    work = _Measurement(base, forms, units, look)
    logits: list[tuple[Float32, Float32]] = []
    images = 0
    for mine, judged in pairs:
        check_batch(mine, images)
        check_batch(judged, images)
        logits.append(work.add(mine, judged))
        images += len(mine)
        done(images)
    for mine in more:
        check_batch(mine, images)
        work.add_scales(mine)
        images += len(mine)
        done(images)
    if not logits:
        raise InputError("no images to attribute the drift on", next_command="pass images")
    sides = [np.concatenate(side) for side in zip(*logits, strict=True)]
    return Measured(work.errors, work.scales, {t: n for t, n in work.not_finite.items() if n}, sides[0], sides[1])


class _Measurement:
    """All graphs, ready to run, and the sums so far."""

    def __init__(self, base: onnx.ModelProto, forms: Forms, units: Sequence[Unit], look: Look) -> None:
        self.units, self.judged = units, look
        self.ends = [unit.output for unit in units]
        (self.source,) = index_graph(base).inputs
        self.output = base.graph.output[0].name
        self.errors = {unit.name: UnitError() for unit in units}
        self.scales = {a.tensor: ScaleError(a) for a in activations(forms.exact)}
        self.not_finite = dict.fromkeys(watched(forms.as_run, self.ends), 0)
        self.base = _open(tapped(base, self.ends))
        inner = [tensor for tensor in self.scales if tensor not in self.ends and tensor != self.source]
        self.alone = {"base": _open(cut(base, self.ends)), "as_run": _open(cut(forms.as_run, self.ends))}
        if forms.typed:
            self.alone["exact"] = _open(cut(forms.exact, self.ends))
        if self.scales:
            self.alone["clipped"] = _open(cut(forms.clipped, self.ends))
            self.alone["unquantized"] = _open(cut(forms.unquantized, self.ends, inner))

    def add(self, mine: Float32, judged: Float32) -> tuple[Float32, Float32]:
        """Run everything on one batch; the logits of both sides."""
        float_run, judged_run = self.base({self.source: mine}), self.judged(judged)
        for name in self.ends:
            if not np.isfinite(float_run[name]).all():
                raise InputError(
                    "the FP32 network itself holds NaN or infinity", where=name, next_command="check the checkpoint"
                )
        for name in self.not_finite:
            self.not_finite[name] += int(np.size(judged_run[name]) - np.count_nonzero(np.isfinite(judged_run[name])))
        fed = self._fed(mine, float_run)
        pieces = {form: graph(fed) for form, graph in self.alone.items() if form != "base"}
        pieces.setdefault("exact", pieces["as_run"])
        pieces.setdefault("clipped", pieces["exact"])
        pieces.setdefault("unquantized", pieces["clipped"])
        inherited = self.alone["base"](self._fed(judged, judged_run))
        for unit in self.units:
            end = unit.output
            self._count(
                self.errors[unit.name], float_run[end], judged_run[end], inherited[end], {f: p[end] for f, p in pieces.items()}
            )
        for tensor, error in self.scales.items():
            self._try_scales(error, {self.source: mine, **pieces["unquantized"], **float_run}[tensor])
        return np.asarray(float_run[self.output]), np.asarray(judged_run[self.output])

    def add_scales(self, mine: Float32) -> None:
        """Try the scales alone on one batch."""
        if self.scales:
            float_run = self.base({self.source: mine})
            inner = self.alone["unquantized"](self._fed(mine, float_run))
            for tensor, error in self.scales.items():
                self._try_scales(error, {self.source: mine, **inner, **float_run}[tensor])

    def _fed(self, images: Float32, run: Tensors) -> Tensors:
        return {self.source: images, **{f"{name}{FED}": run[name] for name in self.ends}}

    def _count(self, error: UnitError, x: NDArray[Any], judged: NDArray[Any], inherited: NDArray[Any], forms: Tensors) -> None:
        error.signal += _squares(x, np.float32(0))
        steps = {
            "accumulated": (judged, x),
            "inherited": (inherited, x),
            "introduced": (forms["as_run"], x),
            "fp16": (forms["as_run"], forms["exact"]),
            "rounding": (forms["exact"], forms["clipped"]),
            "clipping": (forms["clipped"], forms["unquantized"]),
            "weights": (forms["unquantized"], x),
        }
        for part, (one, other) in steps.items():
            if one is not other:
                error.noise[part] += _squares(one, other)

    def _try_scales(self, error: ScaleError, values: NDArray[Any]) -> None:
        source = error.activation
        flat = values.ravel()
        flat = flat[:: max(1, flat.size // _VALUES) | 1].astype(np.float32)  # odd steps do not stay on one channel
        codes = np.empty_like(flat)
        for at, factor in enumerate(FACTORS):
            step = np.float32(source.scale * factor)
            np.divide(flat, step, out=codes)
            np.rint(codes, out=codes)
            np.clip(codes, source.low, source.high, out=codes)
            np.multiply(codes, step, out=codes)
            error.noise[at] += _squares(codes, flat)
        low, high = np.float32(source.low * source.scale), np.float32(source.high * source.scale)
        error.clipped += _squares(np.clip(flat, low, high), flat)
        error.beyond += int(((flat < low) | (flat > high)).sum())
        error.count += flat.size
        error.largest = max(error.largest, float(np.abs(flat).max(initial=0.0)))


def watched(model: onnx.ModelProto, ends: Iterable[str]) -> tuple[str, ...]:
    """The tensors to look at, in graph order: `ends`, and inner ones behind which an infinity may vanish (_CAN_HIDE)."""
    index = index_graph(model)
    read = [node.input[at] for node in model.graph.node for at in _CAN_HIDE.get(node.op_type, ()) if at < len(node.input)]
    inner = {name for name in read if name in index.producers and name not in index.constant_like}
    return tuple(sorted({*ends, *inner}, key=index.producers.__getitem__))


def _open(model: onnx.ModelProto) -> GraphSession:
    return GraphSession(model, threads=0)


def _squares(one: NDArray[Any], other: NDArray[Any] | np.float32) -> float:
    """Sum of (one - other)^2 of float32 arrays."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (one - other).ravel()
        return float(difference @ difference)  # in blocks, so that float32 keeps five digits of millions of terms
