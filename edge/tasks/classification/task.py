"""Classification: one class per image, the largest of the logits (n, classes). numpy alone, but for `report`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from calib.errors import DataError
from calib.files import canonical_json, sha256_bytes
from edge.images.labelled_images import ImageSet, open_images
from edge.numeric_tolerances import RECOMPUTED, SQNR_CAP_DB
from edge.tasks.budget import Budget
from edge.tasks.classification import gate_tolerances
from edge.tasks.classification.class_names import class_names
from edge.tasks.classification.compare import JudgedBy, LogitComparison, compare, contradiction, judge
from edge.tasks.classification.flips import worst_flips
from edge.tasks.classification.gate_rows import AnswerRows, baseline_answers
from edge.tasks.classification.logits import Logits, answers, pack_answers, parse_logits, write_logits
from edge.tasks.classification.top_k import ALL_CLASSES, TopK, softmax
from edge.tasks.frame_answer import FrameAnswer, PanelLayout
from edge.tasks.gate_row import Recorded, Row, Tolerance
from edge.tasks.interval import LEVEL, Verdict, level_text
from edge.tasks.report_parts import TaskReport
from edge.tasks.task import Comparison, GateRequest, Int64, Judged, Outputs, Sides, Task
from engines.layer_records import TensorInfo


@dataclass(frozen=True)
class Classification(Task):
    """The task of one output, logits (n, classes), and labels int64 (n,). Each method is documented in `Task`."""

    name: ClassVar[str] = "classification"
    labelled: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = JudgedBy.__args__  # type: ignore[attr-defined]  # a Literal's values
    comparison: ClassVar[type[Comparison]] = LogitComparison
    stated: ClassVar[tuple[str, ...]] = (
        "constant_reference", "not_finite", "top1_reference", "top1_engine", "agreement", "sqnr_db", "flips",
        "confusion_reference", "confusion_engine",
    )  # fmt: skip
    quantities: ClassVar[tuple[str, ...]] = gate_tolerances.QUANTITIES
    identity_words: ClassVar[Mapping[str, str]] = {"labels_sha256": "other labels", "classes": "another number of classes"}

    @classmethod
    def class_names(cls, labels: tuple[str, ...], outputs: tuple[TensorInfo, ...]) -> tuple[str, ...]:
        return class_names(labels, outputs)

    def open_images(self, path: Path) -> ImageSet:
        return open_images(path, self.names)

    def write_answers(self, path: Path, sides: Sides) -> None:
        write_logits(path, Logits.of(sides))

    def parse_answers(self, data: bytes, path: Path) -> Sides:
        return parse_logits(data, path).sides

    def pack_reference(self, outputs: Outputs, truth: Any) -> dict[str, npt.NDArray[Any]]:
        return {"logits": outputs[0]} | ({} if truth is None else {"labels": truth})

    def unpack_reference(self, arrays: Mapping[str, npt.NDArray[Any]], images: int) -> tuple[Outputs, Any]:
        logits, labels = arrays.get("logits"), arrays.get("labels")
        if logits is None or logits.shape != (images, len(self.names)) or logits.dtype != np.float32:
            found = "none" if logits is None else f"{logits.dtype} {logits.shape}"
            raise DataError("the logits do not fit", found=found, allowed=f"float32 ({images}, {len(self.names)})")
        if not np.isfinite(logits).all():
            raise DataError("the FP32 reference answers contain NaN or infinity")
        if labels is not None and (labels.shape != (images,) or labels.dtype != np.int64):
            raise DataError("the labels do not fit", found=f"{labels.dtype} {labels.shape}", allowed=f"int64 ({images},)")
        if labels is not None and not 0 <= labels.min() <= labels.max() < len(self.names):
            found, allowed = f"classes {labels.min()} to {labels.max()}", f"0 to {len(self.names) - 1}"
            raise DataError("a label is out of range", found=found, allowed=allowed)
        return (logits,), labels

    def misfit(self, sides: Sides, images: int) -> str:
        shape = sides.reference[0].shape
        fits = shape == (images, len(self.names))
        return "" if fits else f"logits {shape}, {images} images, {len(self.names)} labels"

    def compare(self, sides: Sides, level: float = LEVEL) -> LogitComparison:
        logits = Logits.of(sides)
        return compare(logits.reference, logits.engine, logits.labels, level)

    def judge(self, comparison: Any, budget: Budget, *, random_weights: bool) -> tuple[str, Verdict, str]:
        return judge(comparison, budget.points, random_weights=random_weights)

    def budget_text(self, budget: Budget) -> str:
        return f"{budget.points:g} points of top-1"

    def contradiction(self, comparison: Any) -> str:
        return contradiction(comparison)

    def worst(self, sides: Sides) -> Int64:
        logits = Logits.of(sides)
        return worst_flips(logits.reference, logits.engine, logits.labels)

    def identity(self) -> dict[str, Any]:
        return {"labels_sha256": sha256_bytes(canonical_json(list(self.names))), "classes": len(self.names)}

    def record(self, comparison: Any, sides: Sides) -> Recorded:
        figures = {"top1": comparison.top1_engine, "agreement": comparison.agreement, "sqnr_db": comparison.sqnr_db}
        outputs = {"reference": sides.reference[0], "engine": sides.engine[0]}
        return Recorded(figures, {side: pack_answers(answers(logits), len(self.names)) for side, logits in outputs.items()})

    def default_tolerances(self, recorded: Recorded, images: int) -> dict[str, Tolerance]:
        return gate_tolerances.default_tolerances(recorded.figures["agreement"] or 0.0, images)

    def gate_rows(self, request: GateRequest) -> Iterator[Row]:
        rows = AnswerRows(request, Logits.of(request.sides))
        return iter((rows.reference(), rows.accuracy(), rows.agreement(), rows.sqnr()))

    def truth_changed(self, request: GateRequest) -> tuple[str, str, str] | None:
        """Compare the accuracy that the baseline states with that of its answers by the build's labels.

        This finds labels that were changed although the digest of the images is the same.
        """
        labels, before = request.sides.truth, request.before.figures["top1"]
        if labels is None or before is None or len(labels) != request.before_images:
            return None
        top1 = float((baseline_answers(request, len(self.names), "engine") == labels).mean())
        if abs(top1 - before) <= RECOMPUTED:
            return None
        return "top1", f"{top1:.4f} with this build's labels", f"{before:.4f}"

    def summary(self, drift: Judged, precision: str) -> dict[str, str]:
        comparison: LogitComparison = drift.comparison
        rows, constant = {}, comparison.constant_reference
        if comparison.with_truth and not drift.random_weights:
            rows["top-1"] = f"{comparison.top1_reference:.2%} FP32 reference, {comparison.top1_engine:.2%} {precision}"
            points, interval = comparison.budgeted
            ends = f"[{interval.low_points:+.2f}, {interval.high_points:+.2f}]"
            rows["drop"] = f"{points:+.2f} points {ends} at {level_text(interval.level)}, budget {drift.budget.points:g}"
        shares = f"{comparison.agreement:.2%} of {comparison.images} images"
        sqnr = "logits identical" if comparison.sqnr_db >= SQNR_CAP_DB else f"SQNR of the logits {comparison.sqnr_db:.1f} dB"
        rows["agreement"] = f"undefined: the reference's logits are {constant}" if constant else f"{shares}, {sqnr}"
        return rows

    def report(self, drift: Judged, sides: Sides, kept: Int64 | None, judged: str) -> TaskReport:
        from edge.tasks.classification.report import task_report

        return task_report(drift, Logits.of(sides), kept, judged, self.names)

    def answer(self, outputs: Outputs, most: int) -> FrameAnswer:
        return TopK.of(outputs[0][0], self.names, most)

    def panel_layout(self) -> PanelLayout:
        few = len(self.names) if len(self.names) <= ALL_CLASSES else 0
        return PanelLayout("confidence", max(map(len, self.names), default=0), few)

    def start_fields(self) -> dict[str, Any]:
        return {"labels": list(self.names)}

    def agree(self, reference: Outputs, engine: Outputs) -> bool:
        return int(reference[0][0].argmax()) == int(engine[0][0].argmax())

    def disagreement(self, reference: Outputs, engine: Outputs) -> dict[str, Any]:
        """For each side its answer, the softmax probability of that and all logits; and the names of the classes."""
        fields: dict[str, Any] = {"labels": self.names}
        for side, outputs in (("engine", engine), ("reference", reference)):
            logits = outputs[0][0]
            answer = int(np.argmax(logits))
            fields |= {f"{side}_answer": self.names[answer], f"{side}_probability": float(softmax(logits)[answer])}
            fields[f"{side}_logits"] = tuple(float(v) for v in logits)
        return fields
