"""Refinements carried out, in this order:

    samples    what each linear layer reads, on a few images                        `sample`
    search     scale, factors and zero of every tensor by the error behind it       `search`
    migrate    factors and shifts into the graph                                    `migrate`
    moments    of what a layer sees once all before it is quantized                 `moments`
    round      weights refitted to that and put onto their grid                     `rounding`
    bias       mean errors taken back                                               `bias`

The last three go from the input to the output in growing stages, since a layer can only make up for errors that it sees. The
result is a float graph to be quantized, and the scales that the search has settled; the calibration method gives the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.edit import GraphEditor, add_channels
from calib.graph import index_graph, to_array
from calib.qdq import dequantize_weight, insert_qdq, quantize_weight
from calib.refine.bias import correction
from calib.refine.effort import Effort
from calib.refine.migrate import Migration
from calib.refine.moments import Moments, measure_moments
from calib.refine.readers import Reader, find_readers
from calib.refine.rounding import refit, round_matrix
from calib.refine.sample import Sample, take_samples
from calib.refine.search import FOLDED_GAIN, INSERTED_GAIN, Allowed, Choice, choose
from calib.scheme import QuantPlan, QuantScheme, plan_quantization
from calib.table import CalibrationTable, TensorScale

Batches = Callable[[], Iterable[NDArray[Any]]]


@dataclass(frozen=True)
class Refined:
    """A refined float graph.

    Attributes:
        model: the graph.
        scales: activation tensor -> scale that the search has settled.
        choices: what the search found for each tensor of the graph that went in.
        inserted: tensors behind which nodes were put.
        rounded: linear layers whose weights were rounded to second order.
    """

    model: onnx.ModelProto
    scales: Mapping[str, float]
    choices: Mapping[str, Choice]
    inserted: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()


def refine(
    model: onnx.ModelProto,
    scheme: QuantScheme,
    batches: Batches,
    used: Effort,
    *,
    threads: int = 1,
    progress: Callable[[float], None] = lambda _done: None,
) -> Refined:
    """Refine a float graph for its quantization.

    Args:
        model: float graph with one input; left as it is.
        scheme: what is to be quantized.
        batches: gives the calibration images anew at each call: arrays (B, ...) float32 as the graph takes them.
        used: the refinements.
        threads: threads of ONNX Runtime.
        progress: told the share that is done.

    Raises InputError for a graph or arrays that do not fit, see `calib.taps`.
    """
    if not used.names:
        return Refined(model, {}, {})
    readers = find_readers(model, plan_quantization(model, scheme))
    samples = take_samples(model, readers, batches(), threads)
    progress(0.2)
    migration = Migration(model, readers)
    constants = index_graph(model).constants
    choices: dict[str, Choice] = {}
    scales: dict[str, float] = {}
    inserted = []
    for done, (tensor, sample) in enumerate(samples.items(), start=1):
        choice = _choose(constants, readers[tensor], sample, migration, used)
        progress(0.2 + 0.5 * done / len(samples))
        if choice is None:
            continue
        end = tensor if choice.plain else migration.move(tensor, choice)
        choices[tensor], scales[end] = choice, choice.scale
        inserted += [tensor] if end != tensor else []
    moved = migration.finish()
    if not (used.rounding or used.bias):
        return Refined(moved, scales, choices, tuple(inserted))
    final, rounded = _settle(moved, scheme, scales, batches, used, threads, lambda done: progress(0.7 + 0.3 * done))
    return Refined(final, scales, choices, tuple(inserted), tuple(rounded))


def _choose(
    constants: Mapping[str, onnx.TensorProto],
    readers: tuple[Reader, ...],
    sample: Sample,
    migration: Migration,
    used: Effort,
) -> Choice | None:
    tensor, geometry = readers[0].tensor, readers[0].geometry
    weights = [to_array(constants[r.weight]) for r in readers]
    matrix = np.concatenate([r.matrix(w) for r, w in zip(readers, weights, strict=True)], axis=2)
    free = migration.producer(tensor, shifted=False) is not None
    free_shift = migration.producer(tensor, shifted=True) is not None and not geometry.padded
    allowed = Allowed(
        factors=(used.smooth and free) or used.insert,
        zero=used.shift and (free_shift or used.insert) and migration.can_shift(tensor),
        gain=FOLDED_GAIN if free else INSERTED_GAIN,
    )
    return choose(sample, np.asarray(matrix, np.float32), geometry.channels(len(sample.low)), allowed)


def _settle(
    exact: onnx.ModelProto,
    scheme: QuantScheme,
    scales: Mapping[str, float],
    batches: Batches,
    used: Effort,
    threads: int,
    progress: Callable[[float], None],
) -> tuple[onnx.ModelProto, list[str]]:
    """Weights rounded and biases corrected, from the input to the output, each layer on what those before it really give."""
    plan = plan_quantization(exact, scheme)
    readers = {t: r for t, r in find_readers(exact, plan).items() if t in scales}
    table = CalibrationTable("", "", 0, "", {t: TensorScale.settled(s) for t, s in scales.items()})
    current, done, rounded = exact, set[str](), list[str]()
    for stage in _stages(list(readers)):
        so_far = QuantPlan(tuple(p for p in plan.points if p.node in done), ())
        found = insert_qdq(current, table, _replanned(current, so_far)) if done else current
        part = {tensor: readers[tensor] for tensor in stage}
        moments = measure_moments(exact, found, part, scales, batches(), threads)
        editor = GraphEditor(current)
        for tensor in stage:
            for reader in readers[tensor]:
                rounded += _settle_layer(editor, reader, moments[tensor], used)
                done.add(reader.node)
        current = editor.finish()
        progress(len(done) / sum(map(len, readers.values())))
    return current, rounded


def _stages(tensors: list[str]) -> list[list[str]]:
    """1, 1, 1, 1, 2, 4, 8, ... tensors in graph order: what errs first is measured first."""
    sizes = [1, 1, 1, *(1 << n for n in range(len(tensors).bit_length()))]
    stages, start = [], 0
    for size in sizes:
        stages.append(tensors[start : start + size])
        start += size
    return [stage for stage in stages if stage]


def _replanned(model: onnx.ModelProto, plan: QuantPlan) -> QuantPlan:
    """A plan with the present names of the weights, which refinements replace."""
    index = index_graph(model)
    nodes = dict(zip(index.names, model.graph.node, strict=True))
    return QuantPlan(tuple(replace(p, tensor=nodes[p.node].input[p.input_index]) for p in plan.points), plan.skipped)


def _settle_layer(editor: GraphEditor, reader: Reader, moments: Moments, used: Effort) -> list[str]:
    """Round and correct one layer; its name if its weights were rounded."""
    weight = editor.constant(reader.node, 1).astype(np.float64)
    matrix, gram, cross = reader.matrix(weight), moments.gram, moments.cross
    rounded = []
    if used.rounding and gram is not None and cross is not None:
        grid = reader.weight_of(round_matrix(refit(matrix, gram, cross), gram, reader.weight), weight.shape)
        editor.set_constant(reader.node, 1, _kept(grid, weight, reader), "rounded")
        rounded = [reader.node]
    if used.bias:
        quantized = _quantized(editor.constant(reader.node, 1), reader).astype(np.float64)
        taken = correction(moments, matrix, reader.matrix(quantized))
        add_channels(editor, reader.node, taken.astype(np.float32), "corrected")
    return rounded


def _quantized(weight: NDArray[np.float32], reader: Reader) -> NDArray[np.float32]:
    """What a weight becomes once it is quantized and dequantized."""
    values, scales = quantize_weight(weight, reader.axis, reader.weight)
    return dequantize_weight(values, scales, reader.axis)


def _kept(grid: NDArray[np.float64], weight: NDArray[np.float64], reader: Reader) -> NDArray[np.float32]:
    """The rounded weight; channels that quantizing would change, those of the very smallest scales, stay as they were."""
    result = grid.astype(np.float32)
    others = tuple(a for a in range(result.ndim) if a != reader.axis)
    holds = np.all(_quantized(result, reader) == result, axis=others, keepdims=True)
    return np.where(holds, result, weight).astype(np.float32)
