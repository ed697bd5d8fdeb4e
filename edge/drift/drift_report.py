"""`drift.json`: what was compared on which images, the task's figures, and the verdict. numpy alone: a device writes it too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from calib.artifact import Artifact, from_fields, parse_artifact, write_artifact
from calib.errors import ArtifactError, InputError
from edge.drift.looks import Look
from edge.drift.pictures import KEPT, Uint8, write_pictures
from edge.numeric_tolerances import RECOMPUTED
from edge.tasks.budget import Budget
from edge.tasks.interval import LEVEL, Verdict
from edge.tasks.registry import load_task
from edge.tasks.task import Comparison, Judged, Sides, Task
from engines.build_folder.file_names import ANSWERS, DRIFT, PICTURES
from engines.build_folder.safe_files import REMAKE


@dataclass(frozen=True)
class Source:
    """One side of the comparison: an ONNX file or an engine by name and digest, and what ran it."""

    file: str
    sha256: str
    ran_on: str


@dataclass(frozen=True)
class Subject:
    """What is judged on which images: `data` names their source, `data_sha256` is their digest, right answers included."""

    reference: Source
    engine: Source
    data: str
    data_sha256: str
    preprocess_sha256: str


@dataclass(frozen=True)
class DriftReport(Judged, Subject):
    """The fields of `drift.json`.

    Attributes:
        task: name of the task whose figures `comparison` holds.
        look: of a sequential test, where it stopped; None where the images were judged at once.
    """

    schema_version: ClassVar[int] = 2  # 2: with `task`

    task: str
    look: Look | None = None

    @property
    def images(self) -> int:
        """Number of images compared."""
        count: int = self.comparison.images
        return count

    def to_json(self) -> dict[str, Any]:
        """The common fields and the figures of the task in one object; what a task does not use is left out."""
        common = asdict(self)
        if self.look is None:
            del common["look"]
        comparison, budget = common.pop("comparison"), common.pop("budget")
        usual = {f.name: f.default for f in fields(self.comparison)}
        figures = {name: value for name, value in comparison.items() if value != usual[name]}
        return {**figures, **common, **{name: v for name, v in _budget_fields(budget).items() if v is not None}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DriftReport:
        """From the fields of a file. Raises TypeError or ValueError for invalid fields, InputError for an unknown task."""
        task = load_task(str(values.get("task")))
        names = {f.name for f in fields(cls)} - {"comparison", "budget"}
        common = {name: v for name, v in values.items() if name in names}
        allowed = {name: values.get(name) for name in _budget_fields(asdict(Budget()))}
        budget = from_fields(Budget, {name.removeprefix(_BUDGET): v for name, v in allowed.items()}, DRIFT)
        figures = {name: v for name, v in values.items() if name not in names and name not in allowed}
        comparison = from_fields(task.comparison, figures, DRIFT)
        report = from_fields(cls, {**common, "comparison": comparison, "budget": asdict(budget)}, DRIFT)
        if report.judged_by not in task.bases:
            raise ValueError(f"judged_by: expected one of {task.bases}, found {report.judged_by!r}")
        return report


_BUDGET = "budget_"


def _budget_fields(budget: dict[str, Any]) -> dict[str, Any]:
    """The fields of a budget under their names in drift.json."""
    return {f"{_BUDGET}{name}": value for name, value in budget.items()}


def parse_drift(data: bytes, path: Path) -> DriftReport:
    """Parse the bytes of drift.json, judge its figures again, and give the reason of that judgement.

    Raises ArtifactError for figures that contradict each other, and for a verdict that does not follow from them.
    """
    drift = parse_artifact(data, path, DriftReport, remake=REMAKE)
    task = load_task(drift.task)
    try:
        contradiction = drift.budget.flaw or task.contradiction(drift.comparison)
        judged = judge(task, drift.comparison, drift.budget, drift.look, random_weights=drift.random_weights)
        contradiction = contradiction or _other_look(drift)
    except (ArithmeticError, ValueError, InputError) as error:
        raise _contradictory_error(path, f"figures that nothing can be judged by: {error}") from error
    if contradiction:
        raise _contradictory_error(path, contradiction)
    judged_by, verdict, reason = judged
    if (judged_by, verdict) != (drift.judged_by, drift.verdict):
        found, allowed = f"{drift.verdict} by {drift.judged_by}", f"{verdict} by {judged_by}: {reason}"
        raise _contradictory_error(path, found, allowed)
    return replace(drift, reason=reason)


def _contradictory_error(path: Path, found: str, allowed: str = "a verdict and figures of one comparison") -> ArtifactError:
    what = f"{DRIFT} contradicts itself: its verdict does not follow from its figures"
    return ArtifactError(what, where=path, found=found, allowed=allowed, next_command=f"{REMAKE} --force")


def _other_look(drift: DriftReport) -> str:
    """Why the figures cannot be of the stated look; "" where they can."""
    images, level = (drift.images, LEVEL) if drift.look is None else (drift.look.images, drift.look.level)
    if drift.images == images and math.isclose(drift.comparison.level, level, rel_tol=0.0, abs_tol=RECOMPUTED):
        return ""
    return f"{drift.images} images, intervals of level {drift.comparison.level}; of its look {images} and {level}"


def judge(
    task: Task, comparison: Comparison, budget: Budget, look: Look | None, *, random_weights: bool
) -> tuple[str, Verdict, str]:
    """Return the basis of the verdict, the verdict, and its reason, with the look of a sequential test."""
    judged_by, verdict, reason = task.judge(comparison, budget, random_weights=random_weights)
    return judged_by, verdict, reason if look is None else f"{reason}; {look}"


DRIFT_ARTIFACT = Artifact(DRIFT, parse_drift)


def judge_sides(
    task: Task,
    subject: Subject,
    sides: Sides,
    budget: Budget,
    *,
    random_weights: bool,
    notes: tuple[str, ...] = (),
    look: Look | None = None,
) -> DriftReport:
    """Compare the outputs of both sides for the same images, and judge; `notes` say what was left out of the images.

    `look` is that of a sequential test.

    Raises DataError for outputs that do not match.
    """
    compared = task.compare(sides, LEVEL if look is None else look.level)
    comparison = replace(compared, not_compared=(*compared.not_compared, *notes))
    judged_by, verdict, reason = judge(task, comparison, budget, look, random_weights=random_weights)
    return DriftReport(
        **vars(subject),
        comparison=comparison,
        budget=budget,
        random_weights=random_weights,
        judged_by=judged_by,
        verdict=verdict,
        reason=reason,
        task=task.name,
        look=look,
    )


def write_drift(folder: Path, task: Task, report: DriftReport, sides: Sides, pixels: Callable[[int], Uint8]) -> None:
    """Write drift.json, the answers that it was computed from, and pictures of the images whose answer changed most.

    `pixels` returns image uint8 (H, W, C) by index, at most KEPT times; for random weights no pictures are kept.
    """
    task.write_answers(folder / ANSWERS, sides)
    write_pictures(folder / PICTURES, task.worst(sides)[: 0 if report.random_weights else KEPT], pixels)
    write_artifact(folder / DRIFT, report)
