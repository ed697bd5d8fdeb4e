"""Make the results of plain calibration and of every effort up to the requested one, compare them, and keep the best.

    plain      scales of the calibration method; for `mse` also those of others. `mse` takes an error of clipping for one of
               rounding. But it has one sign, and does not average out where a network pools: clipping less may be better
    refined    per effort. What the rounding and bias correction start from is chosen first, without the mean errors that they
               take back: the plain scales, the searched ones, or searched ones that clip nothing

A later result is kept only where its SQNR on held-out images (`calib.held_out`) is higher than that of every earlier one, so
that no effort loses to a lesser one on these images.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.calibration_table import SEARCHED, CalibrationTable, Comparison, TensorScale
from calib.calibrators import METHODS
from calib.collect import CollectConfig, make_table
from calib.files import sha256_bytes
from calib.held_out import FEWEST, HeldOut, Judge, Noise
from calib.qdq_placement import QuantScheme, plan_quantization
from calib.qdq_writer import insert_qdq, serialize
from calib.refine.apply_refinements import Progress, Refined, Refiner
from calib.refine.effort import EFFORTS, Effort
from calib.split_half import Halves

DEFAULT_METHOD, SAFE_METHOD = "mse", "minmax"
Bounds = Callable[[onnx.ModelProto], Mapping[str, float]]


@dataclass(frozen=True)
class Source:
    """The float graph, and what plain calibration observed of it on all images."""

    model: onnx.ModelProto
    sha256: str
    halves: Halves
    data_sha256: str


@dataclass(frozen=True)
class Result:
    """A float graph and the table to quantize it with; `model` is the source itself where nothing was refined."""

    name: str
    model: onnx.ModelProto
    table: CalibrationTable


class Results:
    """The results of one calibration, made one after the other by `plain` and `refined`; `best` is the one to keep."""

    def __init__(
        self, source: Source, scheme: QuantScheme, collect: CollectConfig, bounds: Bounds, held: HeldOut, threads: int
    ):
        self._source, self._scheme, self._collect, self._bounds, self._threads = source, scheme, collect, bounds, threads
        self._held = held
        self._judge: Judge | None = None
        self._noise: dict[str, Noise] = {}
        self.best: Result

    def plain(self, methods: Iterable[str]) -> None:
        """Add the result of each method."""
        bounds = self._bounds(self._source.model)
        for method in methods:
            config = replace(self._collect, method=method)
            table = make_table(
                self._source.halves,
                onnx_sha256=self._source.sha256,
                data_sha256=self._source.data_sha256,
                bounds=bounds,
                config=config,
            )
            self._add(Result(method, self._source.model, table), clearly=True)

    def refined(self, effort: Effort, batches: Iterable[NDArray[Any]], progress: Progress) -> None:
        """Add the result of an effort, and of each lesser one, refined on the images that are not held out."""
        if not self.comparable:
            return
        ladder = lesser_efforts(effort)
        images = self._held.images - self._judged.images
        refiner = Refiner(self._source.model, self._scheme, self._held.others(batches), images=images, threads=self._threads)
        plain = self.best
        for number, (name, step) in enumerate(ladder.items()):

            def advance(done: float, before: int = number) -> None:
                progress((before + done) / len(ladder))

            found = self._start(refiner, plain, step, lambda done, advance=advance: advance(0.4 * done))
            compensated = refiner.compensate(found, step, lambda done, advance=advance: advance(0.4 + 0.6 * done))
            result, before = self._result(name, compensated, plain, step), self._result(name, found, plain, searching(step))
            self._add(result if self._measure(result).decibels > self._measure(before).decibels else before)
            advance(1.0)

    def finished(self) -> Result:
        """The best result, with the bounds of searched tensors, which do not change their scales."""
        table, bounds = self.best.table, self._bounds(self.best.model) if self.best.table.refinements else {}
        tensors = {t: replace(s, bound=bounds.get(t)) if s.method == SEARCHED else s for t, s in table.tensors.items()}
        return replace(self.best, table=replace(table, tensors=tensors))

    @property
    def comparable(self) -> bool:
        """Whether enough images are held out for a comparison."""
        return sum(len(batch) for batch in self._held.batches) >= FEWEST

    def comparison(self) -> Comparison | None:
        """What was compared; None for a single result."""
        if not self.comparable:
            return Comparison(0, {}, self.best.name)
        if len(self._noise) == 1:
            return None
        return Comparison(self._judged.images, {name: n.decibels for name, n in self._noise.items()}, self.best.name)

    def _start(self, refiner: Refiner, plain: Result, effort: Effort, progress: Progress) -> Refined:
        """The scales, factors and shifts from which rounding and bias correction start."""
        unchanged = refiner.unchanged({name: scale.scale for name, scale in plain.table.tensors.items()})
        if not effort.search:
            return unchanged
        starts = [refiner.search(effort, progress), refiner.search(effort, clip=False), unchanged]
        best, least = starts[0], self._measure(self._result("", starts[0], plain, effort), effort.bias)
        for start in starts[1:]:
            noise = self._measure(self._result("", start, plain, effort), effort.bias)
            if noise.clearly_below(least):
                best, least = start, noise
        return best

    def _result(self, name: str, found: Refined, plain: Result, effort: Effort) -> Result:
        """A refined graph with its table: scales that were not searched are those of plain calibration."""
        scales = found.scales if found.searched else {}
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

    def _add(self, result: Result, *, clearly: bool = False) -> None:
        """Keep a result where it is better than the best one so far; `clearly` if the difference must be no chance."""
        noise = self._measure(result) if self.comparable else Noise(0.0, np.zeros(0))
        least = self._noise.get(self.best.name) if self._noise else None
        if least is None or (noise.clearly_below(least) if clearly else noise.decibels > least.decibels):
            self.best = result
        self._noise[result.name] = noise

    def _measure(self, result: Result, centred: bool = False) -> Noise:
        quantized = insert_qdq(result.model, result.table, plan_quantization(result.model, self._scheme))
        return self._judged.measure(quantized, centred=centred)

    @property
    def _judged(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self._source.model, self._held.batches, self._threads)
        return self._judge


def searching(effort: Effort) -> Effort:
    """An effort without what follows the search."""
    return replace(effort, rounding=False, bias=False)


def plain_methods(method: str, effort: Effort) -> tuple[str, ...]:
    """The methods whose results are compared: the requested one, and for the default also `minmax`; for an effort, all."""
    if method != DEFAULT_METHOD:
        return (method,)
    return (method, *(m for m in METHODS if m != method)) if effort.names else (method, SAFE_METHOD)


def lesser_efforts(effort: Effort) -> dict[str, Effort]:
    """The efforts with some, but not all, of the refinements of a given one, and this one, by name."""
    known = {name: known for name, known in EFFORTS.items() if known.names and set(known.names) < set(effort.names)}
    name = next((name for name, known in EFFORTS.items() if known == effort), "+".join(effort.names))
    return {**known, name: effort}
