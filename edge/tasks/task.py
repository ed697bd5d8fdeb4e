"""What every task says of itself. A task is one frozen object, chosen in the build request and written into the manifest.

Outputs of a network come as a tuple with one array per output, images along the first axis, of any shape otherwise. What right
answers look like (`truth`) is the task's own business: for classification int64 (n,). Whatever else asks a task takes what it
gets as it is: `Comparison`, `Recorded`, `TaskReport` and `FrameAnswer` are plain data. What a device runs of a task (answers,
comparison, verdict, gate rows, answers to frames) needs numpy alone; a report may load more, inside `report`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edge.images.labelled_images import ImageSet
from edge.tasks.frame_answer import FrameAnswer, PanelLayout
from edge.tasks.gate_row import Recorded, Row, Tolerance
from edge.tasks.interval import Verdict
from edge.tasks.report_parts import TaskReport

Int64 = npt.NDArray[np.int64]
Outputs = tuple[npt.NDArray[np.float32], ...]
"""One array (n, ...) per output of the network."""


@dataclass(frozen=True)
class Sides:
    """What reference and engine gave for the same n images, and the right answers; None where nobody knows them."""

    reference: Outputs
    engine: Outputs
    truth: Any = None


@dataclass(frozen=True)
class Comparison:
    """What every comparison holds; a task adds its figures. Field names are those of `drift.json`.

    Attributes:
        images: how many.
        not_finite: images for which the engine gave NaN or infinity.
        not_compared: what is missing and why, one sentence each.
    """

    images: int
    not_finite: int
    not_compared: tuple[str, ...]

    @property
    def with_truth(self) -> bool:
        """Whether the images came with right answers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Judged:
    """A comparison and what is to be thought of it.

    Attributes:
        comparison: the task's.
        budget_points: largest loss allowed.
        random_weights: whether the weights were drawn, so that there is nothing to lose but numbers.
        judged_by: what decided, one of the task's `bases`.
        verdict: with its `reason`, one sentence.
    """

    comparison: Any
    budget_points: float
    random_weights: bool
    judged_by: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class GateRequest:
    """What a build's answers are compared with.

    Attributes:
        before: what the baseline records, of `before_images` images.
        chosen: positions (n,) of the build's images among these.
        now, sides: of the build.
        tolerances: quantity -> what may be lost.
        random_weights: whether the weights were drawn.
    """

    before: Recorded
    before_images: int
    chosen: Int64
    now: Recorded
    sides: Sides
    tolerances: Mapping[str, Tolerance]
    random_weights: bool


@dataclass(frozen=True)
class Task(ABC):
    """A task for a network; `names` of its classes, empty for a task without.

    Class attributes:
        name: in build requests and manifests.
        bases: what a verdict may be decided by: with right answers, without, and for drawn weights.
        comparison: dataclass of the comparison's figures.
        stated: those that a reader recomputes from the answers beside them; sqnr-like ones within a rounding.
        quantities: of the gate's rows that have a tolerance.
        identity_words: field of `identity` -> what differs, in words.
    """

    names: tuple[str, ...] = ()

    name: ClassVar[str]
    bases: ClassVar[tuple[str, ...]]
    comparison: ClassVar[type[Comparison]]
    stated: ClassVar[tuple[str, ...]]
    quantities: ClassVar[tuple[str, ...]]
    identity_words: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def open_images(self, path: Path) -> ImageSet:
        """Images with right answers, as this task can read them. Raises InputError."""

    @abstractmethod
    def write_answers(self, path: Path, sides: Sides) -> None:
        """Write the file of both sides' answers, atomically."""

    @abstractmethod
    def parse_answers(self, data: bytes, path: Path) -> Sides:
        """Both sides' answers from the bytes of that file; `path` is what errors name. Raises InputError."""

    @abstractmethod
    def misfit(self, sides: Sides, images: int) -> str:
        """Why answers cannot be those of this task to so many images; "" when they can."""

    @abstractmethod
    def compare(self, sides: Sides) -> Comparison:
        """What differs. Raises InputError for sides that do not match, and for a reference that is not finite."""

    @abstractmethod
    def judge(self, comparison: Any, budget_points: float, *, random_weights: bool) -> tuple[str, Verdict, str]:
        """By what a comparison is judged, the verdict, and its reason in one sentence."""

    @abstractmethod
    def worst(self, sides: Sides) -> Int64:
        """Indices of the images whose answer changed so that a person should see them, the worst first."""

    def identity(self) -> dict[str, Any]:
        """What two builds must share for their answers to mean the same."""
        return {}

    @abstractmethod
    def record(self, comparison: Any, sides: Sides) -> Recorded:
        """What a baseline keeps."""

    @abstractmethod
    def default_tolerances(self, recorded: Recorded, images: int) -> dict[str, Tolerance]:
        """A tolerance for each of `quantities`, for a baseline of so many images."""

    @abstractmethod
    def gate_rows(self, request: GateRequest) -> Iterator[Row]:
        """One row per quantity."""

    def truth_changed(self, request: GateRequest) -> tuple[str, str, str] | None:  # noqa: ARG002  # for tasks that can tell
        """Figure, value and expected value that show other right answers than the baseline's; None where nothing does."""
        return None

    @abstractmethod
    def summary(self, drift: Judged, precision: str) -> dict[str, str]:
        """Rows for the terminal, after a build."""

    @abstractmethod
    def report(self, drift: Judged, sides: Sides, kept: Int64 | None, judged: str) -> TaskReport:
        """What a report says.

        Args:
            drift: the verdict; `sides` is what it was computed from.
            kept: indices (k,) of the images whose pictures were kept, the worst first; None where none were.
            judged: what was judged, in two words: "INT8 engine".
        """

    @abstractmethod
    def answer(self, outputs: Outputs, most: int) -> FrameAnswer:
        """The answer to one image from outputs (1, ...); of several parts at most `most` are named."""

    def panel_layout(self) -> PanelLayout:
        """What the page has to know of every answer."""
        return PanelLayout()

    def start_fields(self) -> dict[str, Any]:
        """Fields of the first JSON line."""
        return {}

    @abstractmethod
    def agree(self, reference: Outputs, engine: Outputs) -> bool:
        """Whether two sides give the same answer to one image."""

    @abstractmethod
    def disagreement(self, reference: Outputs, engine: Outputs) -> dict[str, Any]:
        """JSON fields that say how the answers to one image differ."""
