"""The error of every layer span: what has accumulated at its end, what it inherits, what it introduces, and of which kind.

With F(.) a span of the float network, J(.) the same span as judged, x its inputs in the float network, y in the judged run:

    accumulated    J(y) - F(x)        inherited    F(y) - F(x)        introduced    J(x) - F(x)

and the introduced error is the sum of the four parts of `edge.attribution.graph_variants`. Every span gets its own inputs: the
graphs are cut at all ends and the pieces run side by side, so that one run of a whole graph per variant is enough.

For each quantized activation x the noise of its Q/DQ, |s clip(round(x / s)) - x|^2, is compared with that of scales
s 2^(k/2): a wrong scale shows there, whatever else its layer does.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.errors import GraphError
from calib.graph import index_graph
from calib.metrics import power_ratio_db
from calib.ort_session import GraphSession, check_batch, tapped
from edge.attribution.build_graphs import tap_judged_run
from edge.attribution.graph_variants import FED, Activation, GraphVariants, cut
from edge.attribution.paired_images import PairedImages
from edge.images.preprocess import Float32

PARTS = {
    "accumulated": ("judged", "float"),
    "inherited": ("inherited", "float"),
    "introduced": ("as_run", "float"),
    "fp16": ("as_run", "exact"),
    "rounding": ("exact", "clipped"),
    "clipping": ("clipped", "unquantized"),
    "weights": ("unquantized", "float"),
}
"""Part of the error -> the two runs between which it is the difference."""
FACTORS = 2.0 ** (np.arange(-4, 5) / 2)
"""Candidate scales, in units of the scale in the graph."""
_OWN = len(FACTORS) // 2
_VALUES = 1 << 19
"""Values of one activation and batch that the scales are compared on: all of them up to a few dozen small images. Fewer would
miss the rare large ones, which decide how much clipping costs."""
_CAN_HIDE = {"Div": (1,), "Reciprocal": (0,), "Clip": (0,), "Max": (0, 1), "Min": (0, 1), "QuantizeLinear": (0,)}
"""Operators whose output may hide an infinite input: x / infinity is 0, a clipped infinity is finite."""

Tensors = dict[str, NDArray[Any]]


@dataclass
class SpanError:
    """Sums over all images and elements at the end of one span: of x^2, and of the squared error of each of PARTS."""

    signal: float = 0.0
    noise: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def db(self, *parts: str) -> float:
        """SQNR of the summed noise of some of PARTS."""
        return power_ratio_db(self.signal, sum(self.noise[part] for part in parts))


@dataclass
class ScaleError:
    """How well the scale of one activation fits it.

    Attributes:
        activation: as the judged graph has it.
        noise: sum of squared errors with each of FACTORS.
        clipped: the part of it, at the scale in the graph, that clipping causes.
        beyond, count: values beyond the range, and all.
        largest: largest magnitude.
    """

    activation: Activation
    noise: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(FACTORS)))
    clipped: float = 0.0
    beyond: int = 0
    count: int = 0
    largest: float = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Add one batch of the activation's float values."""
        source = self.activation
        flat = values.ravel()[:: max(1, values.size // _VALUES) | 1].astype(np.float32)  # odd steps do not stay on one channel
        codes = np.empty_like(flat)
        for at, factor in enumerate(FACTORS):
            step = np.float32(source.scale * factor)
            np.divide(flat, step, out=codes)
            np.rint(codes, out=codes)
            np.clip(codes, source.low, source.high, out=codes)
            np.multiply(codes, step, out=codes)
            self.noise[at] += _sum_of_squares(codes, flat)
        low, high = np.float32(source.low * source.scale), np.float32(source.high * source.scale)
        self.clipped += _sum_of_squares(np.clip(flat, low, high), flat)
        self.beyond += int(((flat < low) | (flat > high)).sum())
        self.count += flat.size
        self.largest = max(self.largest, float(np.abs(flat).max(initial=0.0)))

    @property
    def excess_db(self) -> float:
        """Noise at the scale in the graph over that of the best candidate."""
        return power_ratio_db(float(self.noise[_OWN]), float(self.noise.min())) if self.noise.min() > 0 else 0.0

    @property
    def best_factor(self) -> float:
        """What the scale would have to be multiplied with; 1 where no candidate is better."""
        return 1.0 if self.noise[_OWN] == self.noise.min() else float(FACTORS[int(self.noise.argmin())])

    @property
    def clipping_share(self) -> float:
        """Share of the noise that clipping causes."""
        return self.clipped / float(self.noise[_OWN]) if self.noise[_OWN] else 0.0


class LocalErrors:
    """The graphs, and the sums over what was added so far.

    Args:
        ends: of all spans.
        images: (B, 3, S, S) of the judged side, one batch to check on that reading inner tensors changes nothing.

    Attributes:
        spans: end of the span -> its errors.
        scales: by tensor, in graph order.
        not_finite: tensor of the judged run -> how many of its values are NaN or infinite, in graph order.
        judged_logits: (B, classes) of every batch.
        taps: the result of that check.
    """

    def __init__(self, variants: GraphVariants, ends: Sequence[str], images: Float32) -> None:
        (self._source,), self._output = index_graph(variants.base).inputs, variants.base.graph.output[0].name
        self.spans = {end: SpanError() for end in ends}
        self.scales = {activation.tensor: ScaleError(activation) for activation in variants.activations.values()}
        self.not_finite = dict.fromkeys(_watched(variants.as_run, ends), 0)
        self._read_judged, self.taps = tap_judged_run(variants.as_run, tuple(self.not_finite), images)
        self.judged_logits: list[Float32] = []
        open_graph = partial(GraphSession, threads=0)
        self._base = open_graph(tapped(variants.base, ends))
        self._inherited = open_graph(cut(variants.base, ends))
        self._pieces = {"as_run": open_graph(cut(variants.as_run, ends))}
        if variants.typed:
            self._pieces["exact"] = open_graph(cut(variants.exact, ends))
        if self.scales:
            inner = [tensor for tensor in self.scales if tensor not in ends and tensor != self._source]
            self._pieces["clipped"] = open_graph(cut(variants.clipped, ends))
            self._pieces["unquantized"] = open_graph(cut(variants.unquantized, ends, inner))

    def measure(self, pairs: PairedImages, count: int, done: Callable[[int], None]) -> None:
        """Measure every span on `count` of the images, and the scales on all of them.

        The cost of clipping depends on few large values, one token per image in some tensors. `done` is called with the number
        of images after each batch. Raises InputError for batches that the graphs do not take, and for a float network that is
        not finite.
        """
        images = 0
        for part, add in zip(pairs.split(count), (self._add, self._add_scales), strict=False):
            for float_images, judged_images in part.batches():
                check_batch(float_images, images)
                check_batch(judged_images, images)
                add(float_images, judged_images)
                images += len(float_images)
                done(images)

    def _add(self, float_images: Float32, judged_images: Float32) -> None:
        float_run, judged_run = self._base({self._source: float_images}), self._read_judged(judged_images)
        self.judged_logits.append(np.asarray(judged_run[self._output]))
        for name in self.spans:
            if not np.isfinite(float_run[name]).all():
                raise GraphError(
                    "the FP32 network itself holds NaN or infinity", where=name, next_command="check the checkpoint"
                )
        for name in self.not_finite:
            self.not_finite[name] += int(np.size(judged_run[name]) - np.count_nonzero(np.isfinite(judged_run[name])))
        inputs = self._inputs(float_images, float_run)
        runs = {"float": float_run, "judged": judged_run, **{name: piece(inputs) for name, piece in self._pieces.items()}}
        runs["inherited"] = self._inherited(self._inputs(judged_images, judged_run))
        for variant, same in (("exact", "as_run"), ("clipped", "exact"), ("unquantized", "clipped")):
            runs.setdefault(variant, runs[same])
        for end, error in self.spans.items():
            error.signal += _sum_of_squares(float_run[end], np.float32(0))
            for part, (one, other) in PARTS.items():
                if runs[one] is not runs[other]:
                    error.noise[part] += _sum_of_squares(runs[one][end], runs[other][end])
        self._compare_scales({self._source: float_images, **runs["unquantized"], **float_run})

    def _add_scales(self, float_images: Float32, _judged_images: Float32) -> None:
        if self.scales:
            float_run = self._base({self._source: float_images})
            unquantized = self._pieces["unquantized"](self._inputs(float_images, float_run))
            self._compare_scales({self._source: float_images, **unquantized, **float_run})

    def _compare_scales(self, values: Tensors) -> None:
        for tensor, error in self.scales.items():
            error.add(values[tensor])

    def _inputs(self, images: Float32, run: Tensors) -> Tensors:
        return {self._source: images, **{f"{name}{FED}": run[name] for name in self.spans}}


def _watched(model: onnx.ModelProto, ends: Iterable[str]) -> tuple[str, ...]:
    """The tensors to read, in graph order: `ends`, and inner ones whose infinities may vanish later on (_CAN_HIDE)."""
    index = index_graph(model)
    hiding = [node.input[at] for node in model.graph.node for at in _CAN_HIDE.get(node.op_type, ()) if at < len(node.input)]
    inner = {name for name in hiding if name in index.producers and name not in index.constant_like}
    return tuple(sorted({*ends, *inner}, key=index.producers.__getitem__))


def _sum_of_squares(one: NDArray[Any], other: NDArray[Any] | np.float32) -> float:
    """Sum of (one - other)^2 of float32 arrays."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (one - other).ravel()
        return float(difference @ difference)  # in blocks, so that float32 keeps five digits of millions of terms
