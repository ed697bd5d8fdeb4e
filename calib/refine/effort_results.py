"""Make the results of plain calibration and of every effort up to the requested one, compare them, and keep the best.

    plain      scales of the calibration method; for `mse` those of the best method, see `calib.refine.best_method`. The same
               for every effort, and compared on as many calibration images as there are, up to `held_out.MOST`: ranges are
               from all images, and on a few one image decides
    refined    per effort, from searched scales; where that does not help, also from searched ones that clip nothing, and from
               the plain ones

A later result replaces the one kept so far only where its SQNR on held-out images (`calib.held_out`) is higher by CLEAR_DB, and
not lower on the images that compare plain methods, most of which it was made from. A greater effort makes the results of a
lesser one first, so that it never loses to it on these images; and a few images cannot tell a smaller gain from chance, which
on others may be a loss. Where an image whose values are far beyond those of the others is not held out, clipping it looks good.

Where `calib.placement` leaves layers in float, everything is also refined with these layers in INT8: they stay in float only if
that is better by CLEAR_DB on the images held out. So a network with a placement never has a lower SQNR there than without.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from calib.calibration_table import SEARCHED, CalibrationTable, Comparison, TensorScale
from calib.collect import CollectConfig, make_table
from calib.files import sha256_bytes
from calib.held_out import CLEAR_DB, FEWEST, Figures, HeldOut, Judge
from calib.placement import PlacementSearch, judging_batches, place, without
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.qdq_writer import insert_qdq, serialize
from calib.refine.apply_refinements import Progress, Refined, Refiner
from calib.refine.best_method import DEFAULT_METHOD, best_method
from calib.refine.effort import EFFORTS, Effort
from calib.split_half import Halves

ALL_INT8, IN_FLOAT = "all in INT8", "with layers in float"
"""Names, in a comparison, of the result that lost: the refined one with everything in INT8, or the one with a placement."""
_PLACEMENT_SHARE = 0.25
"""Of the progress shown."""
Start = Literal["search", "unclipped", "plain"]
"""Scales, factors and shifts from which rounding and bias correction start."""
Bounds = Callable[[onnx.ModelProto], Mapping[str, float]]


@dataclass(frozen=True)
class Source:
    """The float graph, what plain calibration observed of it on all images, and those that compare its methods."""

    model: onnx.ModelProto
    sha256: str
    halves: Halves
    data_sha256: str
    judges: HeldOut


@dataclass(frozen=True)
class Result:
    """A float graph and the table to quantize it with; `model` is the source itself where nothing was refined."""

    name: str
    model: onnx.ModelProto
    table: CalibrationTable


class Results:
    """The results of one calibration, and the SQNR of each on the images that are held out."""

    def __init__(
        self, source: Source, scheme: QuantScheme, collect: CollectConfig, bounds: Bounds, held: HeldOut, threads: int
    ):
        self._source, self._scheme, self._collect, self._bounds, self._threads = source, scheme, collect, bounds, threads
        self._held = held
        self._judge: Judge | None = None
        self._overall_judge: Judge | None = None
        self._decibels: dict[str, float] = {}
        self._kept: Result | None = None

    def keep_best(
        self, effort: Effort, batches: Iterable[NDArray[Any]], progress: Progress, search: PlacementSearch | None = None
    ) -> Result:
        """Make all results up to those of an effort, and return the one to keep.

        With `search`, layers that INT8 costs too much stay in float in all but the first. Raises what `make_table` raises.
        """
        plain, comparison = self._plain()
        kept, scheme = plain, self._scheme
        if search is not None and self._comparable and self._held.ranking_batches:
            share = _PLACEMENT_SHARE if effort.names else 1.0
            kept = self._placed(kept, search, _part(progress, 0.0, share))
            progress = _part(progress, share, 1 - share)
        if effort.names and not self._comparable:
            comparison = Comparison(0, {}, kept.name)
        elif effort.names:
            others = self._held.others(batches)
            images = self._held.images - self._judged.images
            refiner = Refiner(self._source.model, scheme, others, images=images, threads=self._threads)
            share = 0.5 if kept.table.float_nodes else 1.0
            kept = self._refined(self._add(kept), effort, refiner.narrowed(self._scheme), _part(progress, 0.0, share))
            if kept.table.float_nodes:
                kept = self._or_all_int8(kept, plain, effort, refiner, _part(progress, share, 1 - share))
            comparison = Comparison(self._judged.images, self._decibels, kept.name)
        bounds = self._bounds(kept.model) if kept.table.refinements else {}
        tensors = {
            t: replace(scale, bound=bounds.get(t)) if scale.method == SEARCHED else scale
            for t, scale in kept.table.tensors.items()
        }
        return replace(kept, table=replace(kept.table, tensors=tensors, comparison=comparison))

    def _plain(self) -> tuple[Result, Comparison | None]:
        """The plain result to start from, and what it was compared with where that is not the requested method's."""
        requested, bounds = self._collect.method, self._bounds(self._source.model)
        enough = sum(map(len, self._source.judges.batches)) >= FEWEST
        if requested != DEFAULT_METHOD or not enough:
            return self._plain_result(requested, bounds), None
        results: dict[str, Result] = {}

        def measure(method: str) -> Figures:
            results[method] = self._plain_result(method, bounds)
            return self._overall.figures(self._quantized(results[method]))

        kept, figures = best_method(measure)
        decibels = {method: figure.overall_db for method, figure in figures.items()}
        return results[kept], Comparison(self._overall.images, decibels, kept) if kept != DEFAULT_METHOD else None

    def _placed(self, plain: Result, search: PlacementSearch, progress: Progress) -> Result:
        """The plain result with the layers in float that are worth it; later results leave the same layers in float."""
        placement = place(
            plain.model,
            plain.table,
            self._scheme,
            self._held.ranking_batches,
            Judge(self._source.model, judging_batches(self._held.batches), self._threads),
            search=search,
            progress=progress,
        )
        self._scheme = without(self._scheme, placement.float_nodes)
        read = plan_quantization(plain.model, self._scheme).activations
        table = replace(
            plain.table,
            tensors={tensor: scale for tensor, scale in plain.table.tensors.items() if tensor in read},
            float_nodes=placement.float_nodes,
            placement=placement,
        )
        return replace(plain, table=table)

    def _plain_result(self, method: str, bounds: Mapping[str, float]) -> Result:
        table = make_table(
            self._source.halves,
            onnx_sha256=self._source.sha256,
            data_sha256=self._source.data_sha256,
            bounds=bounds,
            config=replace(self._collect, method=method),
        )
        return Result(method, self._source.model, table)

    def _or_all_int8(self, placed: Result, plain: Result, effort: Effort, refiner: Refiner, progress: Progress) -> Result:
        """The result with layers in float, or the refined one of everything in INT8 where the former is not clearly better."""
        other = Results(self._source, refiner.scheme, self._collect, self._bounds, self._held, self._threads)
        other._judge, other._overall_judge = self._judge, self._overall_judge
        best = other._refined(other._add(plain), effort, refiner, progress)
        in_float, in_int8, placement = self._decibels[placed.name], other._decibels[best.name], placed.table.placement
        if placement is None or _clearly_better(in_float, in_int8):
            self._decibels[ALL_INT8] = in_int8
            return placed
        self._decibels = {**other._decibels, IN_FLOAT: in_float}
        return replace(best, table=replace(best.table, placement=replace(placement, float_groups=0)))

    def _refined(self, plain: Result, effort: Effort, refiner: Refiner, progress: Progress) -> Result:
        """Add the result of an effort, and of each lesser one, refined on images not held out; return the one kept.

        `plain` gives the scales of tensors that are not searched.
        """
        ladder = lesser_efforts(effort)
        starts: tuple[Start, ...] = ("search", "unclipped", "plain")
        for number, (name, step) in enumerate(ladder.items()):
            advance = _part(progress, number / len(ladder), 1 / len(ladder))
            starts = (self._refine(refiner, plain, name, step, starts, advance),)
            advance(1.0)
        return self._kept or plain

    def _refine(
        self, refiner: Refiner, plain: Result, name: str, effort: Effort, starts: tuple[Start, ...], progress: Progress
    ) -> Start:
        """Add the result of one effort; return the start that it is best from.

        Another start is tried only where the first does not end clearly above plain calibration: without
        rounding and biases, starts cannot be compared.
        """
        variants: list[Result] = []
        origin: list[Start] = []
        for at, start in enumerate(starts):
            part = _part(progress, at / len(starts), 1 / len(starts))
            if start == "plain" or not effort.search:
                found = refiner.unchanged({tensor: scale.scale for tensor, scale in plain.table.tensors.items()})
            else:
                found = refiner.search(effort, _part(part, 0.0, 0.4), clip=start == "search")
            compensated = refiner.compensate(found, effort, _part(part, 0.4, 0.6))
            results = [self._result(name, compensated, plain, effort), self._result(name, found, plain, searching(effort))]
            made = results if found.searched else results[:1]  # what is neither, is the plain result itself
            variants += made
            origin += [start] * len(made)
            gains = [result for result in made if self._measure(result) > self._decibels[plain.name] + CLEAR_DB]
            if not all(self._loses_overall(result, plain) for result in gains):
                break
        best = self._add(*variants)
        return origin[variants.index(best)]

    @property
    def _comparable(self) -> bool:
        """Whether enough images are held out for a comparison."""
        return sum(len(batch) for batch in self._held.batches) >= FEWEST

    def _result(self, name: str, found: Refined, plain: Result, effort: Effort) -> Result:
        """A refined graph with its table: scales that were not searched are those of plain calibration."""
        scales = found.scales if found.searched else {}
        effort = effort if found.searched else Effort(rounding=effort.rounding, bias=effort.bias)
        table = replace(
            plain.table,
            onnx_sha256=sha256_bytes(serialize(found.model)),
            tensors={
                t: TensorScale.from_search(scales[t]) if t in scales else plain.table.tensors[t]
                for t in plan_quantization(found.model, self._scheme).activations
            },
            source_sha256=self._source.sha256,
            refinements=effort.names,
        )
        return Result(name, found.model, table)

    def _add(self, *variants: Result) -> Result:
        """Record the SQNR of the best variant of a result, which is returned, and keep it if it is better."""
        measured = [self._measure(variant) for variant in variants]
        result = variants[measured.index(max(measured))]
        self._decibels[result.name] = max(measured)
        if self._kept is None:
            self._kept = result
            return result
        least = self._decibels[self._kept.name] + CLEAR_DB
        for decibels, variant in sorted(zip(measured, variants, strict=True), key=lambda pair: -pair[0]):
            if decibels > least and not self._loses_overall(variant, self._kept):
                self._kept, self._decibels[variant.name] = variant, decibels
                return variant
        return result

    def _loses_overall(self, result: Result, other: Result) -> bool:
        """Whether a result has more noise than another one on the images that compare plain methods."""
        if self._overall.images <= self._judged.images:
            return False  # they are those held out
        first, second = (self._overall.decibels(self._quantized(compared)) for compared in (result, other))
        return first < second

    def _measure(self, result: Result) -> float:
        return self._judged.decibels(self._quantized(result))

    def _quantized(self, result: Result) -> onnx.ModelProto:
        return insert_qdq(result.model, result.table, plan_quantization(result.model, self._scheme))

    @property
    def _judged(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self._source.model, self._held.batches, self._threads)
        return self._judge

    @property
    def _overall(self) -> Judge:
        if self._overall_judge is None:
            self._overall_judge = Judge(self._source.model, self._source.judges.batches, self._threads)
        return self._overall_judge


def _part(progress: Progress, start: float, share: float) -> Progress:
    """Progress of a part, from `start`, of the whole."""
    return lambda done: progress(start + share * done)


def _clearly_better(decibels: float, other: float) -> bool:
    return decibels > other + CLEAR_DB


def searching(effort: Effort) -> Effort:
    """An effort without what follows the search."""
    return replace(effort, rounding=False, bias=False)


def lesser_efforts(effort: Effort) -> dict[str, Effort]:
    """The efforts with some, but not all, of the refinements of a given one, and this one, by name."""
    known = {name: known for name, known in EFFORTS.items() if known.names and set(known.names) < set(effort.names)}
    name = next((name for name, known in EFFORTS.items() if known == effort), "+".join(effort.names))
    return {**known, name: effort}
