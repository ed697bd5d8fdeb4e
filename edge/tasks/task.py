"""The interface of a task. A task is one frozen object, chosen in the build request and recorded in the manifest.

Outputs of a network are a tuple with one array per output, images along the first axis, of any shape otherwise. The type of the
right answers (`truth`) is known to the task alone: for classification int64 (n,). What a task returns is plain data:
`Comparison`, `Recorded`, `TaskReport`, `FrameAnswer`. What a device runs of a task (answers, comparison, verdict, gate rows,
answers to frames) needs numpy alone; a report may load more, inside `report`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edge.images.labelled_images import ImageSet
from edge.tasks.budget import Budget
from edge.tasks.frame_answer import FrameAnswer, PanelLayout
from edge.tasks.gate_row import Recorded, Row, Tolerance
from edge.tasks.interval import LEVEL, Verdict
from edge.tasks.report_parts import TaskReport
from engines.layer_records import TensorInfo

Int64 = npt.NDArray[np.int64]
Outputs = tuple[npt.NDArray[Any], ...]
"""One array (n, ...) per output of the network, float32 or integers."""


@dataclass(frozen=True)
class Sides:
    """Outputs of reference and engine for the same n images, and the right answers; None where these are unknown."""

    reference: Outputs
    engine: Outputs
    truth: Any = None


@dataclass(frozen=True)
class Comparison(ABC):
    """The figures of every comparison; a task adds its own. Field names are those of `drift.json`.

    `not_finite` counts images for which the engine gave NaN or infinity; `not_compared` holds what is missing and why, one
    sentence each.
    """

    images: int
    not_finite: int
    not_compared: tuple[str, ...]

    @property
    def level(self) -> float:
        """Confidence level of the intervals."""
        return LEVEL

    @property
    @abstractmethod
    def with_truth(self) -> bool:
        """Whether the images have right answers."""


@dataclass(frozen=True)
class Judged:
    """A comparison of a task and its verdict, with the reason in one sentence.

    Attributes:
        budget: what may be lost.
        random_weights: whether the network was never trained, so that it has no accuracy to lose.
        judged_by: basis of the verdict, one of the task's `bases`.
    """

    comparison: Any
    budget: Budget
    random_weights: bool
    judged_by: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class GateRequest:
    """A build's answers (`now`, `sides`) and what they are compared with.

    Attributes:
        before: what the baseline records, of `before_images` images.
        chosen: positions (n,) of the build's images among these.
        tolerances: by quantity.
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
    """The task of a network; `names` are those of its classes, empty for a task without classes.

    Class attributes:
        name: in build requests and manifests.
        labelled: whether it can use right answers.
        keeps_outputs: whether it needs all outputs at once, however large; otherwise large ones are reduced as they come.
        bases: what a verdict may rest on: with right answers, without, and for random weights.
        comparison: dataclass of the comparison's figures.
        stated: those that a reader recomputes from the stored answers; names ending in `_db` may differ by rounding.
        quantities: gate rows that have a tolerance.
        identity_words: field of `identity` -> description of a difference.
    """

    names: tuple[str, ...] = ()

    name: ClassVar[str]
    labelled: ClassVar[bool]
    keeps_outputs: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]]
    comparison: ClassVar[type[Comparison]]
    stated: ClassVar[tuple[str, ...]]
    quantities: ClassVar[tuple[str, ...]]
    identity_words: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def of(cls, names: tuple[str, ...], outputs: tuple[TensorInfo, ...]) -> "Task":  # noqa: ARG003  # for overrides
        """The task of a network with these names of classes and these outputs; `outputs` is empty where they are unknown."""
        return cls(names)

    @classmethod
    def class_names(cls, labels: tuple[str, ...], outputs: tuple[TensorInfo, ...]) -> tuple[str, ...]:  # noqa: ARG003  # likewise
        """The names of the classes of a network with these outputs, `labels` as the user gave them (empty for none).

        Raises UsageError for outputs or labels that do not fit the task. A task without classes has none.
        """
        return ()

    @abstractmethod
    def open_images(self, path: Path) -> ImageSet:
        """Open images with the right answers that this task can read. Raises InputError."""

    def gather(self, pairs: Iterable[tuple[Outputs, Outputs]], images: int, truth: Any) -> Sides:  # noqa: ARG002  # for overrides
        """Both sides of all `images` images, from the outputs of reference and engine batch by batch, at least one."""
        batches = list(pairs)
        reference, engine = (tuple(map(np.concatenate, zip(*side, strict=True))) for side in zip(*batches, strict=True))
        return Sides(reference, engine, truth)

    @abstractmethod
    def write_answers(self, path: Path, sides: Sides) -> None:
        """Write the file of both sides' answers, atomically."""

    @abstractmethod
    def parse_answers(self, data: bytes, path: Path) -> Sides:
        """Parse the bytes of that file; errors name `path`. Raises ArtifactError."""

    @abstractmethod
    def pack_reference(self, outputs: Outputs, truth: Any) -> dict[str, npt.NDArray[Any]]:
        """Name -> array of the reference's outputs and the right answers (None where unknown), for a bundle."""

    @abstractmethod
    def unpack_reference(self, arrays: Mapping[str, npt.NDArray[Any]], images: int) -> tuple[Outputs, Any]:
        """The outputs and right answers of `pack_reference`. Raises DataError unless they are `images` images of this task."""

    @abstractmethod
    def misfit(self, sides: Sides, images: int) -> str:
        """Why `sides` cannot be answers of this task to `images` images; "" when they can."""

    @abstractmethod
    def compare(self, sides: Sides, level: float = LEVEL) -> Comparison:
        """Compare both sides, with intervals of this level.

        Raises DataError for sides that do not match, and for a reference that is not finite.
        """

    @abstractmethod
    def judge(self, comparison: Any, budget: Budget, *, random_weights: bool) -> tuple[str, Verdict, str]:
        """Return the basis of the verdict, the verdict, and its reason in one sentence."""

    @abstractmethod
    def budget_text(self, budget: Budget) -> str:
        """The budget in words, such as "0.5 points of top-1"."""

    def contradiction(self, comparison: Any) -> str:  # noqa: ARG002  # for overrides
        """Why the figures that a verdict rests on cannot be of one comparison; "" when they can. May raise DataError."""
        return ""

    @abstractmethod
    def worst(self, sides: Sides) -> Int64:
        """Indices of the images whose answer changed and whose pictures a report should show, the worst first."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for the answers of two builds to be comparable."""
        return {}

    @abstractmethod
    def record(self, comparison: Any, sides: Sides) -> Recorded:
        """What a baseline keeps."""

    @abstractmethod
    def default_tolerances(self, recorded: Recorded, images: int) -> dict[str, Tolerance]:
        """A tolerance for each of `quantities`, for a baseline of `images` images."""

    @abstractmethod
    def gate_rows(self, request: GateRequest) -> Iterator[Row]:
        """One row per quantity."""

    def truth_changed(self, request: GateRequest) -> tuple[str, str, str] | None:  # noqa: ARG002  # for overrides
        """Figure, value and expected value that reveal right answers other than the baseline's; None where nothing does."""
        return None

    @abstractmethod
    def summary(self, drift: Judged, precision: str) -> dict[str, str]:
        """Rows for the terminal, after a build."""

    @abstractmethod
    def report(self, drift: Judged, sides: Sides, kept: Int64 | None, judged: str) -> TaskReport:
        """The task's part of the report.

        Args:
            drift: the verdict, computed from `sides`.
            kept: indices (k,) of the images whose pictures were kept, the worst first; None where none were.
            judged: what was judged, such as "INT8 engine".
        """

    @abstractmethod
    def answer(self, outputs: Outputs, most: int) -> FrameAnswer:
        """The answer to one image from outputs (1, ...), with at most `most` parts."""

    def panel_layout(self) -> PanelLayout:
        """What all panels of this task have in common."""
        return PanelLayout()

    def start_fields(self) -> dict[str, Any]:
        """Fields of the first JSON line."""
        return {}

    @abstractmethod
    def agree(self, reference: Outputs, engine: Outputs) -> bool:
        """Whether both sides give the same answer to one image."""

    @abstractmethod
    def disagreement(self, reference: Outputs, engine: Outputs) -> dict[str, Any]:
        """JSON fields that describe how the answers to one image differ."""
