"""Apply the refinements of an effort to a float graph, in this order:

    sample     inputs of each linear layer, on a few images                         `activation_sample`
    search     scale, factors and zero of every tensor by the output error          `scale_search`
    migrate    factors and shifts into the graph                                    `smoothquant`
    moments    of a layer's inputs once everything before it is quantized           `input_moments`
    round      weights refitted to these inputs and rounded to their grid           `gptq_rounding`
    bias       mean errors compensated                                              `bias_correction`

The last three go from the input to the output (`paired_forward`), since a layer can only compensate errors in its inputs. The
result is a float graph to be quantized, and the scales of the search; the calibration method gives the others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.calibration_table import CalibrationTable, TensorScale
from calib.graph import index_graph, to_array
from calib.graph_editor import GraphEditor, add_channels
from calib.graph_segments import Segment
from calib.ort_session import in_small_runs
from calib.qdq_placement import QuantPlan, QuantScheme, plan_quantization
from calib.qdq_writer import fake_quantize_weight, insert_qdq
from calib.refine.activation_sample import ActivationSample, take_samples
from calib.refine.bias_correction import correction
from calib.refine.effort import Effort
from calib.refine.gptq_rounding import refit, round_matrix
from calib.refine.input_moments import Moments, measure_moments
from calib.refine.linear_consumers import Reader, find_readers
from calib.refine.paired_forward import select_batches, walk
from calib.refine.scale_search import FOLDED_GAIN, INSERTED_GAIN, ScaleChoice, search_scale
from calib.refine.smoothquant import Migration

RUN_BYTES = 1 << 27
"""Largest size of the tensors of one run that are read: what is kept of them is much less."""
Progress = Callable[[float], None]


def _silent(_done: float) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True)
class Refined:
    """A refined float graph, the scales that the search chose for its tensors, and the choice for each original tensor."""

    model: onnx.ModelProto
    scales: Mapping[str, float]
    choices: Mapping[str, ScaleChoice]

    @property
    def searched(self) -> bool:
        """Whether the scales come from the search."""
        return bool(self.choices)


class Refiner:
    """Refines a float graph with one input for its quantization, with one sample of its activations; `model` is not changed.

    Args:
        batches: the calibration images, arrays (B, ...) float32 as the graph takes them; about
            `calib.refine.paired_forward.IMAGES` of them are used, and kept in memory.
        images: number of calibration images.
    """

    def __init__(
        self, model: onnx.ModelProto, scheme: QuantScheme, batches: Iterable[NDArray[Any]], *, images: int, threads: int = 1
    ) -> None:
        self._model, self.scheme, self._threads = model, scheme, threads
        self._readers = find_readers(model, plan_quantization(model, scheme))
        self._selected = list(in_small_runs(model, tuple(self._readers), select_batches(batches, images), RUN_BYTES))
        self._samples = take_samples(model, self._readers, self._selected, threads)

    def narrowed(self, scheme: QuantScheme) -> "Refiner":
        """One for a scheme that leaves more in float, on the same sample."""
        other = copy(self)
        other.scheme, other._readers = scheme, find_readers(self._model, plan_quantization(self._model, scheme))
        other._samples = {tensor: self._samples[tensor] for tensor in other._readers}
        return other

    def unchanged(self, scales: Mapping[str, float]) -> Refined:
        """The graph as it is, on given scales."""
        return Refined(self._model, {t: scales[t] for t in self._readers}, {})

    def search(self, effort: Effort, progress: Progress = _silent, *, clip: bool = True) -> Refined:
        """Choose the scales, factors and shifts of all tensors, and move the latter two into the graph."""
        migration = Migration(self._model, self._readers)
        constants = index_graph(self._model).constants
        choices: dict[str, ScaleChoice] = {}
        scales: dict[str, float] = {}
        for done, (tensor, sample) in enumerate(self._samples.items(), start=1):
            choice = _search(constants, self._readers[tensor], sample, migration, effort, clip=clip)
            progress(done / len(self._samples))
            if choice is not None:
                moved = tensor if choice.plain else migration.move(tensor, choice)
                choices[tensor], scales[moved] = choice, choice.scale
        return Refined(migration.finish(), scales, choices)

    def compensate(self, found: Refined, effort: Effort, progress: Progress = _silent) -> Refined:
        """Round weights and correct biases, where the effort does."""
        if not (effort.rounding or effort.bias):
            return found
        model = _compensate(found.model, self.scheme, found.scales, self._selected, effort, self._threads, progress)
        return replace(found, model=model)


def refine_graph(
    model: onnx.ModelProto,
    scheme: QuantScheme,
    batches: Iterable[NDArray[Any]],
    effort: Effort,
    *,
    images: int,
    threads: int = 1,
    progress: Progress = _silent,
) -> Refined:
    """Apply all refinements of an effort without any comparison; arguments see `Refiner`, `progress` gets the fraction done."""
    if not effort.names:
        return Refined(model, {}, {})
    refiner = Refiner(model, scheme, batches, images=images, threads=threads)
    progress(0.2)
    found = refiner.search(effort, lambda done: progress(0.2 + 0.5 * done))
    return refiner.compensate(found, effort, lambda done: progress(0.7 + 0.3 * done))


def _search(
    constants: Mapping[str, onnx.TensorProto],
    readers: tuple[Reader, ...],
    sample: ActivationSample,
    migration: Migration,
    effort: Effort,
    *,
    clip: bool,
) -> ScaleChoice | None:
    tensor, geometry = readers[0].tensor, readers[0].geometry
    matrix = np.concatenate([r.matrix(to_array(constants[r.weight])) for r in readers], axis=2)
    free = migration.producer(tensor, shifted=False) is not None
    free_shift = migration.producer(tensor, shifted=True) is not None and not geometry.padded
    return search_scale(
        sample,
        np.asarray(matrix, np.float32),
        geometry.channels(len(sample.low)),
        factors=((effort.smooth and free) or effort.insert) and not migration.clipped(tensor),
        zero=effort.shift and (free_shift or effort.insert) and migration.can_shift(tensor),
        gain=FOLDED_GAIN if free or free_shift else INSERTED_GAIN,
        clip=clip,
    )


@dataclass(frozen=True)
class _LayerUpdate:
    """Rounded weight of a layer, and a correction of its bias; None leaves it unchanged."""

    weight: NDArray[np.float32] | None
    bias_change: NDArray[np.float32] | None

    def apply(self, editor: GraphEditor, node: str) -> None:
        if self.weight is not None:
            editor.set_constant(node, 1, self.weight, "rounded")
        if self.bias_change is not None:
            add_channels(editor, node, self.bias_change, "corrected")


def _compensate(
    model: onnx.ModelProto,
    scheme: QuantScheme,
    scales: Mapping[str, float],
    batches: Sequence[NDArray[Any]],
    effort: Effort,
    threads: int,
    progress: Progress,
) -> onnx.ModelProto:
    """Round weights and correct biases from the input to the output, each layer on the quantized outputs of those before."""
    plan = plan_quantization(model, scheme)
    readers = {t: r for t, r in find_readers(model, plan).items() if t in scales}
    if not readers:
        return model
    table = CalibrationTable("", "", 0, "", {t: TensorScale.from_search(s) for t, s in scales.items()})
    editor = GraphEditor(model)
    updates: dict[str, _LayerUpdate] = {}

    def quantize(segment: Segment) -> onnx.ModelProto | None:
        updated = [name for name in segment.nodes if name in updates]
        if not updated:
            return None
        part = GraphEditor(segment.model)
        for name in updated:
            updates[name].apply(part, name)
        points = tuple(replace(p, tensor=part.node(p.node).input[p.input_index]) for p in plan.points if p.node in updated)
        return insert_qdq(part.finish(), table, QuantPlan(points))

    for done, (tensor, pairs) in enumerate(walk(model, tuple(readers), batches, quantize, threads), start=1):
        moments = measure_moments(readers[tensor][0].geometry, scales[tensor], pairs)
        for reader in readers[tensor]:
            updates[reader.node] = _layer_update(editor.constant(reader.node, 1), reader, moments, effort)
            updates[reader.node].apply(editor, reader.node)
        progress(done / len(readers))
    return editor.finish()


def _layer_update(original: NDArray[np.float32], reader: Reader, moments: Moments, effort: Effort) -> _LayerUpdate:
    """Round and correct one layer; output channels with the smallest scales, which quantizing would change, are not rounded."""
    weight = original.astype(np.float64)
    matrix, gram, cross = reader.matrix(weight), moments.gram, moments.cross
    rounded = bias_change = None
    if effort.rounding and gram is not None and cross is not None:
        on_grid = round_matrix(refit(matrix, gram, cross, moments.count), gram, moments.count, reader.weight)
        grid = reader.weight_of(on_grid, weight.shape).astype(np.float32)
        others = tuple(a for a in range(grid.ndim) if a != reader.axis)
        unchanged = np.all(fake_quantize_weight(grid, reader.axis, reader.weight) == grid, axis=others, keepdims=True)
        rounded = np.where(unchanged, grid, weight).astype(np.float32)
    if effort.bias:
        quantized = fake_quantize_weight(original if rounded is None else rounded, reader.axis, reader.weight)
        bias_change = correction(moments, matrix, reader.matrix(quantized.astype(np.float64))).astype(np.float32)
    return _LayerUpdate(rounded, bias_change)
