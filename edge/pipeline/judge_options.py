"""The options of `ufovit drift`. Each field is an option of the command, its line in the docstring the help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from calib.errors import UsageError
from edge.pipeline.request_checks import JUDGING_IMAGES, JudgingImages, check_budget, check_counts, image_count


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How a finished build is judged. Raises UsageError for options that contradict each other.

    Attributes:
        data: Labelled images, in the formats of `ufovit build --data`. Default: those of the previous verdict
        unlabelled: Images without labels: agreement with FP32 decides, not accuracy
        images: Number of images, 1 to 1,000,000, spread evenly; all; or sequential: growing groups of them, until the verdict
            is decided at 95 % over all groups. Default: all, or as for the previous verdict
        reference: Folder with drift.json, logits.npz and steps.json of a build that was judged on the same images: its FP32
            outputs are used, and no FP32 graph runs
        max_drop_points: Accuracy budget in percentage points, 0 to 100, of a network that classifies. Default: that of the
            previous verdict
        min_sqnr_db: Least SQNR of every output in dB, 0 to 200, of a network judged by numbers. Default: likewise
        min_cosine: Least mean cosine of every output, 0 to 1, likewise
        attribute: Attribute the drift to layers, and diagnose its cause
    """

    data: Path | None = None
    unlabelled: Path | None = None
    images: Annotated[JudgingImages | None, JUDGING_IMAGES] = None
    reference: Path | None = None
    max_drop_points: float | None = None
    min_sqnr_db: float | None = None
    min_cosine: float | None = None
    attribute: bool = False

    def __post_init__(self) -> None:
        if self.data is not None and self.unlabelled is not None:
            raise UsageError(
                "--data and --unlabelled exclude each other", where="--unlabelled", found=f"{self.data}, {self.unlabelled}"
            )
        check_counts(images=image_count(self.images))
        check_budget(self.max_drop_points, self.min_sqnr_db, self.min_cosine)
