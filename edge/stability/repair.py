"""The repair of each XNorm: which one is chosen, that it changes nothing in FP32, and what its islands cost."""

from dataclasses import replace

import numpy as np
import onnx

from calib.errors import VerdictError
from calib.graph import index_graph
from calib.ort_session import TappedGraph
from calib.parallel import shared_cores
from edge.stability.certificate import Checks, IslandCost
from edge.stability.float_formats import FP16, Float32
from edge.stability.measure_ranges import observe, tapped_graph
from edge.stability.power_of_two_folding import Fold, plan_fit, plan_fold
from edge.stability.trace_layers import SiteLayers
from edge.stability.verdict import STABILITIES, SiteCase, judge


def choose_repair(case: SiteCase, traced: SiteLayers) -> tuple[SiteCase, Fold]:
    """The first repair with the best verdict in FP16; tried in this order: none, folding, FP32 island."""
    nothing, folds = no_fold(case), tuple(plan_fold(case, traced.scalable))
    repairs = [(nothing, False), *((fold, False) for fold in folds)]
    repairs += [(fold, True) for fold in (nothing, *plan_fit(case, traced.scalable), *folds)]
    cases = [(replace(_apply(case, fold), island=island), fold) for fold, island in repairs]
    return min(cases, key=lambda repair: STABILITIES.index(judge(repair[0], FP16).verdict))


def no_fold(case: SiteCase) -> Fold:
    """The fold that changes nothing."""
    return Fold(case.site, np.zeros((max(1, len(case.site.factors)), len(case.observed.zero)), np.int64))


def _apply(case: SiteCase, fold: Fold) -> SiteCase:
    eps = tuple(dict(fold.eps).get(eps, eps) for eps in case.site.eps)
    certified = None if case.certified is None else case.certified.scaled(fold.exponents)
    return replace(case, site=replace(case.site, eps=eps), observed=case.observed.scaled(fold.exponents), certified=certified)


def check_repair(
    model: onnx.ModelProto, repaired: onnx.ModelProto, folds: list[Fold], checked: dict[str, Float32]
) -> tuple[dict[str, Float32], Checks]:
    """Run the repaired graph on the checked images: its tensors of `taps`, and what was verified.

    `checked` is what the first run of `model` read and gave, see `edge.stability.measure_ranges.Measured`. Raises VerdictError
    for outputs that are not the same to the last bit, and ranges that are not those before times powers of two.
    """
    (source,) = index_graph(model).inputs
    images = checked[source]
    tensors = tapped_graph(repaired, tuple(fold.site for fold in folds), shared_cores()[1])(images)
    for output in model.graph.output:
        compare_bitwise(output.name, checked[output.name], tensors[output.name])
    for fold in folds:
        observed, expected = observe(fold.site, tensors), observe(fold.site, checked).scaled(fold.exponents)
        fields = ("sum_min", "sum_max", "argument_max")
        if not all(np.array_equal(getattr(observed, name), getattr(expected, name)) for name in fields):
            raise VerdictError(
                "an XNorm does not move as its folding says",
                where=fold.site.name,
                found=f"sum a^2 up to {observed.sum_max.max():.6g}",
                allowed=f"{expected.sum_max.max():.6g}",
                next_command="report it with the graph; build with precision fp32 meanwhile",
            )
    return tensors, Checks(len(images), logits_bit_identical=True, ranges_as_scaled=True)


def compare_outputs_bitwise(model: onnx.ModelProto, repaired: onnx.ModelProto, images: Float32) -> None:
    """Run both graphs on images. Raises VerdictError for FP32 outputs that are not the same to the last bit."""
    outputs = tuple(value.name for value in model.graph.output)
    before, after = (TappedGraph(graph, outputs, threads=0)(images) for graph in (model, repaired))
    for name in outputs:
        compare_bitwise(name, before[name], after[name])


def compare_bitwise(name: str, before: Float32, after: Float32) -> None:
    """Raises VerdictError for an output that is not the same to the last bit."""
    if before.tobytes() != after.tobytes():
        raise VerdictError(
            "scaling by powers of two changed the FP32 outputs",
            where=name,
            found=f"largest difference {np.abs(before - after).max():.3g} on {len(before)} images",
            allowed="the same to the last bit",
            next_command="report it with the graph; build with precision fp32 meanwhile",
        )


def island_cost(cases: list[SiteCase], tensors: dict[str, Float32]) -> IslandCost:
    """Edges of the islands: what goes in (the argument, or the factors of K^T V) and the normalised tensor that comes out."""
    kept = [case.site for case in cases if case.island]
    edges = [name for site in kept for name in (site.factors or (site.argument,))]
    values = sum(tensors[name][0].size for name in edges) + sum(tensors[site.argument][0].size for site in kept)
    return IslandCost(len(kept), len(edges) + len(kept), values)
