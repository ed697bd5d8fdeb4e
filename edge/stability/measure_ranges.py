"""Images through the graph, ranges of every XNorm out, in memory that does not grow with the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from calib.errors import InputError
from calib.ort_session import TappedGraph, checked
from calib.parallel import ordered_map, shared_cores
from edge.stability.finders.xnorm import XNormSite
from edge.stability.input_bounds import bound_kv, bound_q
from edge.stability.observed_ranges import Certified, Observed, observe_vectors
from edge.stability.trace_layers import Projection, Tracer

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SiteLayers:
    """The linear layers behind a site: one for "q", keys and values for "kv"; empty where they cannot be traced.

    Attributes:
        layers: as above.
        tokens: N, over how many products K^T V sums; 0 for "q" and where the graph does not fix it.
    """

    layers: tuple[Projection, ...]
    tokens: int

    @property
    def scalable(self) -> tuple[Projection, ...]:
        """The layers if they may be multiplied by powers of two: none of them serves anything else."""
        return self.layers if all(layer.owned for layer in self.layers) else ()


def trace_layers(tracer: Tracer, site: XNormSite) -> SiteLayers:
    """Trace a site back to its linear layers."""
    if site.operand == "q":
        token_axis = -2 if site.axis == -1 else -1
        layer = tracer.projection(site.argument, token_axis, site.nodes)
        return SiteLayers((layer,) if layer else (), 0)
    keys, values = site.factors
    found = tracer.projection(keys, -1, site.nodes), tracer.projection(values, -2, site.nodes)
    tokens = tracer.tokens(values, -2) or 0
    return SiteLayers((found[0], found[1]) if found[0] and found[1] else (), tokens)


def certified_bounds(site: XNormSite, traced: SiteLayers) -> Certified | None:
    """Bounds for every input; None where the site does not lead back to a LayerNorm through linear layers."""
    if not traced.layers:
        return None
    if site.operand == "q":
        return bound_q(traced.layers[0])
    return bound_kv(traced.layers[0], traced.layers[1], traced.tokens, site.axis) if traced.tokens else None


def taps(sites: tuple[XNormSite, ...]) -> tuple[str, ...]:
    """The tensors that `observe` needs."""
    return tuple(dict.fromkeys(name for site in sites for name in (site.argument, *site.factors)))


def observe(site: XNormSite, tensors: dict[str, Float32]) -> Observed:
    """Ranges of one site on one batch. Raises InputError when a tensor holds NaN or infinity, in FP32 already."""
    for name in (site.argument, *site.factors):
        if not np.isfinite(tensors[name]).all():
            raise InputError(
                "not a finite number in an XNorm, in FP32 already",
                where=f"{site.name}, tensor {name}",
                next_command="check the checkpoint and the images",
            )
    a = by_head(tensors[site.argument])
    heads = a.shape[1]
    if site.operand == "q":
        return observe_vectors(a, site.axis, np.zeros(heads), np.zeros((2, heads)))
    k, v = (np.abs(by_head(tensors[name])) for name in site.factors)
    partial = (k @ v + np.abs(a)) / 2
    factors = np.stack([side.max(axis=(0, 2, 3)) for side in (k, v)]).astype(np.float64)
    return observe_vectors(a, site.axis, partial.max(axis=(0, 2, 3)).astype(np.float64), factors)


def by_head(tensor: Float32) -> Float32:
    """(B, H, M, D) from itself, or from (B, M, D) of a network with one head. Raises InputError for any other rank."""
    if tensor.ndim not in (3, 4):
        raise InputError("a normalised tensor has neither 3 nor 4 axes", found=tensor.shape, allowed="(B, M, D), (B, H, M, D)")
    return tensor if tensor.ndim == 4 else tensor[:, None]


def measure(
    model: onnx.ModelProto,
    sites: tuple[XNormSite, ...],
    batches: Iterable[Float32],
    progress: Callable[[int], None] = lambda _images: None,
    watch: Callable[[dict[str, Float32]], None] = lambda _tensors: None,
) -> tuple[tuple[Observed, ...], int]:
    """Ranges of every site over all batches, and the number of images.

    Args:
        model: the graph, FP32.
        sites: of this graph.
        batches: images as the graph takes them, float32 (B, 3, S, S).
        progress: told the number of images done so far.
        watch: shown the tapped tensors of every batch, the graph's input among them; they are dropped afterwards.

    Raises InputError for arrays that the graph does not take and for NaN or infinity anywhere (named).
    """
    at_once, threads = shared_cores()
    graph = TappedGraph(model, taps(sites), threads=threads)
    merged: list[Observed] = []
    images = 0
    for batch, tensors in ordered_map(lambda batch: (batch, graph(batch)), checked(batches), at_once):
        watch({**tensors, graph.source: batch})
        seen = [observe(site, tensors) for site in sites]
        merged = [old.merge(new) for old, new in zip(merged, seen, strict=True)] if merged else seen
        images += len(batch)
        del tensors  # gone before the next ones are waited for
        progress(images)
    if not images:
        raise InputError("no images to certify on", allowed="at least one")
    return tuple(merged), images
