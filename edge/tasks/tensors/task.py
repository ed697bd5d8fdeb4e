"""Tensors: any number of outputs of any shape, judged as numbers. numpy alone, but for `report`.

Figures and their meaning: `compare`. The names of the outputs come from the manifest; without it, they are "0", "1" and so on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge.images.labelled_images import ImageSet, open_unlabelled
from edge.numeric_tolerances import SQNR_CAP_DB
from edge.tasks.budget import Budget
from edge.tasks.frame_answer import FrameAnswer, PanelLayout
from edge.tasks.gate_row import Recorded, Row, Tolerance
from edge.tasks.interval import LEVEL, Verdict
from edge.tasks.report_parts import TaskReport
from edge.tasks.task import Comparison, GateRequest, Int64, Judged, Outputs, Sides, Task
from edge.tasks.tensors import gate_rows
from edge.tasks.tensors.answers import pack_reference, parse_answers, unpack_reference, write_answers
from edge.tasks.tensors.compare import TensorComparison, compare, contradiction, image_sqnr_db
from edge.tasks.tensors.image_errors import Array, Float64, image_errors
from edge.tasks.tensors.measured_output import KEPT_BYTES, MeasuredSides, measure_batches, measure_sides
from edge.tasks.tensors.tensor_answer import OutputSummary, TensorAnswer
from edge.tasks.tensors.verdict import judge, least_sqnr_db
from engines.layer_records import TensorInfo

AGREE_DB = 14.0
"""A frame with a smaller SQNR at one output counts as a disagreement: 6 dB below the default budget, around which frames
scatter, an error of a fifth of the signal's amplitude, a turn of 0.2 rad (cosine 0.98)."""
SHOWN_OUTPUTS = 12


def frame_figures(reference: Array, engine: Array) -> dict[str, float] | None:
    """SQNR, cosine and largest difference of an output (1, ...); None where one side is not finite."""
    if not np.isfinite(reference).all() or not np.isfinite(engine).all():
        return None
    errors = image_errors("output", reference, engine)
    figures = {"sqnr_db": image_sqnr_db(errors), "cosine": errors.cosine, "max_abs": errors.largest}
    return {name: float(values[0]) for name, values in figures.items()}


@dataclass(frozen=True)
class Tensors(Task):
    """The task of any outputs, without labels. Each method is documented in `Task`."""

    name: ClassVar[str] = "tensors"
    labelled: ClassVar[bool] = False
    keeps_outputs: ClassVar[bool] = False
    bases: ClassVar[tuple[str, ...]] = ("numbers",)
    comparison: ClassVar[type[Comparison]] = TensorComparison
    stated: ClassVar[tuple[str, ...]] = ("not_finite", "outputs")
    quantities: ClassVar[tuple[str, ...]] = gate_rows.QUANTITIES
    identity_words: ClassVar[Mapping[str, str]] = {"outputs": "other outputs"}

    outputs: tuple[TensorInfo, ...] = ()

    @classmethod
    def of(cls, names: tuple[str, ...], outputs: tuple[TensorInfo, ...]) -> Task:  # noqa: ARG003  # it has no classes
        return cls((), outputs)

    def open_images(self, path: Path) -> ImageSet:
        return open_unlabelled(path)

    def gather(self, pairs: Iterable[tuple[Outputs, Outputs]], images: int, truth: Any) -> Sides:
        """Outputs beyond KEPT_BYTES are measured batch by batch and not kept."""
        rest = iter(pairs)
        first = next(rest)
        each, names = sum(output[:1].nbytes for side in first for output in side), self._output_names(first[0])
        rest = chain([first], rest)
        del first  # it would stay in memory while the others are measured
        return super().gather(rest, images, truth) if each * images <= KEPT_BYTES else measure_batches(rest, names)

    def write_answers(self, path: Path, sides: Sides) -> None:
        write_answers(path, sides)

    def parse_answers(self, data: bytes, path: Path) -> Sides:
        return parse_answers(data, path)

    def pack_reference(self, outputs: Outputs, truth: Any) -> dict[str, Array]:  # noqa: ARG002  # without right answers
        return pack_reference(outputs)

    def unpack_reference(self, arrays: Mapping[str, Array], images: int) -> tuple[Outputs, Any]:
        return unpack_reference(arrays, images), None

    def misfit(self, sides: Sides, images: int) -> str:
        measured = tuple(output.shape for output in sides.measured) if isinstance(sides, MeasuredSides) else ()
        for shapes in (measured or tuple(output.shape for output in side) for side in (sides.reference, sides.engine)):
            if any(shape[0] != images for shape in shapes):
                return f"outputs for {shapes[0][0]} images, {images} images"
            if self.outputs and len(shapes) != len(self.outputs):
                return f"{len(shapes)} outputs, {len(self.outputs)} in the manifest"
            for info, shape in zip(self.outputs, shapes, strict=False):
                sizes = zip(shape[1:], info.shape[1:], strict=False)
                if len(shape) != max(1, len(info.shape)) or any(n != size for n, size in sizes if size >= 0):
                    return f"output {info.name!r} {shape}, {list(info.shape)} in the manifest"
        return ""

    def compare(self, sides: Sides, level: float = LEVEL) -> TensorComparison:
        return compare(sides, self._names_of(sides), level)

    def judge(self, comparison: Any, budget: Budget, *, random_weights: bool) -> tuple[str, Verdict, str]:  # noqa: ARG002  # the figures are the same
        return "numbers", *judge(comparison, budget)

    def budget_text(self, budget: Budget) -> str:
        sqnr, cosine = least_sqnr_db(budget), budget.cosine
        texts = [] if sqnr is None else [f"SQNR of at least {sqnr:g} dB"]
        texts += [] if cosine is None else [f"mean cosine of at least {cosine:g}"]
        return " and ".join(texts) + " at every output"

    def contradiction(self, comparison: Any) -> str:
        return contradiction(comparison)

    def worst(self, sides: Sides) -> Int64:
        """Images by the SQNR of their worst output; those whose outputs are equal are left out."""
        worst = np.min(list(self._image_figures(sides).values()), axis=0)
        changed = np.flatnonzero(worst < SQNR_CAP_DB)
        return changed[np.argsort(worst[changed], kind="stable")]

    def identity(self) -> dict[str, Any]:
        return {"outputs": [[output.name, output.dtype, list(output.shape)] for output in self.outputs]}

    def record(self, comparison: Any, sides: Sides) -> Recorded:
        return gate_rows.record(comparison, sides)

    def default_tolerances(self, recorded: Recorded, images: int) -> dict[str, Tolerance]:  # noqa: ARG002  # the same for all
        return gate_rows.default_tolerances()

    def gate_rows(self, request: GateRequest) -> Iterator[Row]:
        return gate_rows.gate_rows(request, self._names_of(request.sides))

    def summary(self, drift: Judged, precision: str) -> dict[str, str]:  # noqa: ARG002  # named elsewhere
        comparison: TensorComparison = drift.comparison
        return {figures.name: figures.text(comparison.level) for figures in comparison.outputs[:SHOWN_OUTPUTS]}

    def report(self, drift: Judged, sides: Sides, kept: Int64 | None, judged: str) -> TaskReport:
        from edge.tasks.tensors.report import task_report

        return task_report(drift, self._image_figures(sides), kept, (judged, self.budget_text(drift.budget)))

    def answer(self, outputs: Outputs, most: int) -> FrameAnswer:
        pairs = zip(self._output_names(outputs), outputs, strict=True)
        return TensorAnswer(tuple(OutputSummary.of(name, output) for name, output in list(pairs)[:most]))

    def panel_layout(self) -> PanelLayout:
        longest = max((len(output.name) for output in self.outputs), default=0)
        return PanelLayout("length", longest, len(self.outputs) if len(self.outputs) <= SHOWN_OUTPUTS else 0)

    def start_fields(self) -> dict[str, Any]:
        return {"outputs": [output.name for output in self.outputs]}

    def agree(self, reference: Outputs, engine: Outputs) -> bool:
        pairs = zip(reference, engine, strict=True)
        return all((figures := frame_figures(*pair)) is not None and figures["sqnr_db"] >= AGREE_DB for pair in pairs)

    def disagreement(self, reference: Outputs, engine: Outputs) -> dict[str, Any]:
        """The figures of every output by its name; null where one side is not finite."""
        names = self._output_names(reference)
        return {"outputs": {name: frame_figures(*pair) for name, *pair in zip(names, reference, engine, strict=True)}}

    def _output_names(self, outputs: Sized) -> tuple[str, ...]:
        """The names in the manifest, or numbers where it is not known."""
        return tuple(info.name for info in self.outputs) or tuple(map(str, range(len(outputs))))

    def _names_of(self, sides: Sides) -> tuple[str, ...]:
        return self._output_names(sides.measured if isinstance(sides, MeasuredSides) else sides.reference)

    def _image_figures(self, sides: Sides) -> dict[str, Float64]:
        """SQNR (n,) of every image, by output."""
        names = self._names_of(sides)
        return {name: image_sqnr_db(output.errors) for name, output in zip(names, measure_sides(sides, names), strict=True)}
