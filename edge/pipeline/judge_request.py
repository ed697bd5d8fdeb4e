"""What a finished build is to be judged on. Each field of `JudgeOptions` is an option of `ufovit drift`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from calib.errors import UsageError
from edge.pipeline.request_checks import check_budget, check_counts


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How a finished build is judged.

    Attributes:
        data: Labelled images, in the forms of `ufovit build --data`. Default: those it was last judged on
        unlabelled: Images without labels instead: agreement with FP32 decides, not accuracy
        images: How many of them, spread evenly. Default: all, or as many as last time
        reference: Folder with drift.json, logits.npz and steps.json of a build that was judged on the same images: its FP32
            answers are taken, and no FP32 graph runs
        max_drop_points: Accuracy budget in percentage points. Default: the one it was last judged by
        attribute: Say layer by layer where the drift comes from, and what is wrong if anything is
    """

    data: Path | None = None
    unlabelled: Path | None = None
    images: int | None = None
    reference: Path | None = None
    max_drop_points: float | None = None
    attribute: bool = False


@dataclass(frozen=True)
class JudgeRequest(JudgeOptions):
    """The options, checked, and the build folder. Raises UsageError for options that do not fit together."""

    folder: Path

    def __post_init__(self) -> None:
        if self.data is not None and self.unlabelled is not None:
            raise UsageError("--data and --unlabelled exclude each other", found=f"{self.data}, {self.unlabelled}")
        check_counts(images=self.images)
        if self.max_drop_points is not None:
            check_budget(self.max_drop_points)
