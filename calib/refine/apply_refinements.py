"""Refinements carried out, in this order:

    samples    what each linear layer reads, on a few images                        `sample`
    search     scale, factors and zero of every tensor by the error behind it       `search`
    migrate    factors and shifts into the graph                                    `migrate`
    moments    of what a layer sees once all before it is quantized                 `moments`
    round      weights refitted to that and put onto their grid                     `rounding`
    bias       mean errors taken back                                               `bias`

The last three go from the input to the output (`walk`), since a layer can only make up for errors that it sees. The result is a
float graph to be quantized, and the scales that the search has settled; the calibration method gives the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.calibration_table import CalibrationTable, TensorScale
from calib.graph import index_graph, to_array
from calib.graph_editor import GraphEditor, add_channels
from calib.graph_segments import Segment
from calib.qdq_placement import QuantPlan, QuantScheme, plan_quantization
from calib.qdq_writer import dequantize_weight, insert_qdq, quantize_weight
from calib.refine.activation_sample import Sample, take_samples
from calib.refine.bias_correction import correction
from calib.refine.effort import Effort
from calib.refine.gptq_rounding import refit, round_matrix
from calib.refine.input_moments import Moments
from calib.refine.linear_consumers import Reader, find_readers
from calib.refine.paired_forward import spread, walk
from calib.refine.scale_search import FOLDED_GAIN, INSERTED_GAIN, Allowed, Choice, choose
from calib.refine.smoothquant import Migration


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


def refine_graph(
    model: onnx.ModelProto,
    scheme: QuantScheme,
    batches: Iterable[NDArray[Any]],
    used: Effort,
    *,
    images: int,
    threads: int = 1,
    progress: Callable[[float], None] = lambda _done: None,
) -> Refined:
    """Refine a float graph for its quantization.

    Args:
        model: float graph with one input; left as it is.
        scheme: what is to be quantized.
        batches: the calibration images, arrays (B, ...) float32 as the graph takes them; about
            `calib.refine.paired_forward.IMAGES` of them are used, and held.
        used: the refinements.
        images: how many they are.
        threads: threads of ONNX Runtime.
        progress: told the share that is done.

    Raises InputError for a graph or arrays that do not fit, see `calib.ort_session`.
    """
    if not used.names:
        return Refined(model, {}, {})
    readers = find_readers(model, plan_quantization(model, scheme))
    kept = spread(batches, images)
    samples = take_samples(model, readers, kept, threads)
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
    final, rounded = _settle(moved, scheme, scales, kept, used, threads, lambda done: progress(0.7 + 0.3 * done))
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
        factors=((used.smooth and free) or used.insert) and not migration.clipped(tensor),
        zero=used.shift and (free_shift or used.insert) and migration.can_shift(tensor),
        gain=FOLDED_GAIN if free or free_shift else INSERTED_GAIN,
    )
    return choose(sample, np.asarray(matrix, np.float32), geometry.channels(len(sample.low)), allowed)


def _settle(
    exact: onnx.ModelProto,
    scheme: QuantScheme,
    scales: Mapping[str, float],
    batches: Sequence[NDArray[Any]],
    used: Effort,
    threads: int,
    progress: Callable[[float], None],
) -> tuple[onnx.ModelProto, list[str]]:
    """Weights rounded and biases corrected, from the input to the output, each layer on what those before it really give."""
    plan = plan_quantization(exact, scheme)
    readers = {t: r for t, r in find_readers(exact, plan).items() if t in scales}
    if not readers:
        return exact, []
    table = CalibrationTable("", "", 0, "", {t: TensorScale.settled(s) for t, s in scales.items()})
    editor = GraphEditor(exact)
    settled: dict[str, _Settled] = {}

    def quantize(segment: Segment) -> onnx.ModelProto | None:
        nodes = [name for name in segment.nodes if name in settled]
        return _quantized_part(segment.model, {n: settled[n] for n in nodes}, plan, table) if nodes else None

    for done, (tensor, pairs) in enumerate(walk(exact, tuple(readers), batches, quantize, threads), start=1):
        moments = Moments(readers[tensor][0].geometry, scales[tensor])
        for seed, (x, seen) in enumerate(pairs):
            moments.update(x, seen, seed)
        del x, seen
        for reader in readers[tensor]:
            settled[reader.node] = _settle_layer(editor.constant(reader.node, 1), reader, moments, used)
            settled[reader.node].carry_out(editor, reader.node)
        progress(done / len(readers))
    return editor.finish(), [name for name, found in settled.items() if found.weight is not None]


@dataclass(frozen=True)
class _Settled:
    """What becomes of one layer: its rounded weight, and what is added to its bias; None leaves it as it is."""

    weight: NDArray[np.float32] | None
    correction: NDArray[np.float32] | None

    def carry_out(self, editor: GraphEditor, node: str) -> None:
        if self.weight is not None:
            editor.set_constant(node, 1, self.weight, "rounded")
        if self.correction is not None:
            add_channels(editor, node, self.correction, "corrected")


def _quantized_part(
    model: onnx.ModelProto, settled: Mapping[str, _Settled], plan: QuantPlan, table: CalibrationTable
) -> onnx.ModelProto:
    """A part of the graph with the layers in it that are settled as they will be."""
    editor = GraphEditor(model)
    for node, found in settled.items():
        found.carry_out(editor, node)
    names = {node: editor.node(node).input for node in settled}
    points = tuple(replace(p, tensor=names[p.node][p.input_index]) for p in plan.points if p.node in settled)
    return insert_qdq(editor.finish(), table, QuantPlan(points, ()))


def _settle_layer(original: NDArray[np.float32], reader: Reader, moments: Moments, used: Effort) -> _Settled:
    """Round and correct one layer."""
    weight = original.astype(np.float64)
    matrix, gram, cross = reader.matrix(weight), moments.gram, moments.cross
    rounded = None
    if used.rounding and gram is not None and cross is not None:
        grid = reader.weight_of(
            round_matrix(refit(matrix, gram, cross, moments.count), gram, moments.count, reader.weight), weight.shape
        )
        rounded = _kept(grid, weight, reader)
    correction_ = None
    if used.bias:
        quantized = _quantized(original if rounded is None else rounded, reader).astype(np.float64)
        correction_ = correction(moments, matrix, reader.matrix(quantized)).astype(np.float32)
    return _Settled(rounded, correction_)


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
