"""Ranges of every XNorm over the images, in memory that does not grow with their number."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import onnx

from calib.errors import DataError, GraphError
from calib.ort_session import TappedGraph, checked_batches, in_small_runs
from calib.parallel import ordered_map, shared_cores
from edge.stability.finders.xnorm import XNormSite
from edge.stability.float_formats import Float32
from edge.stability.observed_ranges import ObservedRanges, observe_vectors


def taps(sites: tuple[XNormSite, ...]) -> tuple[str, ...]:
    """The tensors that `observe` needs."""
    return tuple(dict.fromkeys(name for site in sites for name in (site.argument, *site.factors)))


def observe(site: XNormSite, tensors: dict[str, Float32]) -> ObservedRanges:
    """Ranges of one site on one batch. Raises InputError when a tensor holds NaN or infinity, in FP32 already."""
    for name in (site.argument, *site.factors):
        if not np.isfinite(tensors[name]).all():
            raise GraphError(
                "not a finite number in an XNorm, in FP32 already",
                where=f"{site.name}, tensor {name}",
                next_command="check the checkpoint and the images",
            )
    a, axis = by_head(tensors[site.argument], site.axis)
    heads = a.shape[1]
    if site.operand == "q":
        return observe_vectors(a, axis, np.zeros(heads), np.zeros((2, heads)))
    k, v = (np.abs(by_head(tensors[name])[0]) for name in site.factors)
    partial = (k @ v + np.abs(a)) / 2
    factors = np.stack([side.max(axis=(0, 2, 3)) for side in (k, v)]).astype(np.float64)
    return observe_vectors(a, axis, partial.max(axis=(0, 2, 3)).astype(np.float64), factors)


def by_head(tensor: Float32, axis: int = -1) -> tuple[Float32, int]:
    """A tensor as (B, H, M, D), and the axis of its vectors in it, for vectors along the negative `axis`.

    (B, H, M, D) is taken as it is, (B, M, D) as of one head. Any other, such as an embedding (B, D) or a map (B, D, H, W) that
    is normalised over its channels, becomes (B, 1, M, D), vectors last. Raises GraphError for an axis that is the batch.
    """
    if tensor.ndim < -axis + 1:
        raise GraphError("a normalised tensor has no batch", found=tensor.shape, allowed=f"an axis before axis {axis}")
    if tensor.ndim in (3, 4) and axis in (-1, -2):
        return (tensor if tensor.ndim == 4 else tensor[:, None]), axis
    last = np.moveaxis(tensor, axis, -1)
    return last.reshape(len(last), 1, -1, last.shape[-1]), -1


class Measured(NamedTuple):
    """Ranges of every site over all images, how many images, and what the first run read and gave.

    `first`: the graph's input, the tensors of `taps` and the graph's outputs.
    """

    ranges: tuple[ObservedRanges, ...]
    images: int
    first: dict[str, Float32]


def measure(
    model: onnx.ModelProto,
    sites: tuple[XNormSite, ...],
    batches: Iterable[Float32],
    progress: Callable[[int], None] = lambda _images: None,
) -> Measured:
    """Measure an FP32 graph over all batches (B, 3, S, S); large ones run in parts, see `calib.ort_session.in_small_runs`.

    Raises InputError for arrays that the graph does not take and for NaN or infinity anywhere (named).
    """
    at_once, threads = shared_cores()
    graph = tapped_graph(model, sites, threads)
    merged: list[ObservedRanges] = []
    first: dict[str, Float32] = {}
    images = 0
    parts = in_small_runs(model, taps(sites), checked_batches(batches))
    for batch, tensors in ordered_map(lambda batch: (batch, graph(batch)), parts, at_once):
        first = first or {**tensors, graph.source: batch}
        ranges = [observe(site, tensors) for site in sites]
        merged = [old.merge(new) for old, new in zip(merged, ranges, strict=True)] if merged else ranges
        images += len(batch)
        del tensors  # freed before the next batch is waited for
        progress(images)
    if not images:
        raise DataError("no images to certify on", allowed="at least one")
    return Measured(tuple(merged), images, first)


def tapped_graph(model: onnx.ModelProto, sites: tuple[XNormSite, ...], threads: int) -> TappedGraph:
    """The graph that gives what `observe` needs, and its outputs."""
    return TappedGraph(model, [*dict.fromkeys((*taps(sites), *(value.name for value in model.graph.output)))], threads=threads)
