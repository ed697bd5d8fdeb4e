"""The options of `ufovit calibrate`. Each field of `CalibrateOptions` is an option of the command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from calib.errors import UsageError
from edge.option_bounds import SYNTHETIC_IMAGES, check_bounds
from edge.pipeline.network_options import DEFAULT_INPUT, InputOptions
from edge.pipeline.placement_option import ALL, AUTO
from edge.pipeline.request_checks import CALIB_IMAGES, check_budget, check_counts, check_quantization
from engines.build_spec import check_floor


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """How a graph is calibrated.

    Attributes:
        images: Images that calibrate: a folder, an IDX file, or a .npy file of float32 (N, ...), as the graph takes them.
            Default: the shipped ones, for a graph of their classes
        count: Number of them that calibrate, 1 to 1,000,000, spread evenly; the others are held out. With --table, the number
            that it records
        random: Calibrate on this many synthetic images, 1 to 4,096, to try the tools; the output is stamped
        effort: fast (scales only), balanced (weights refined too) or best (nodes added too)
        method: For scales that the effort does not search: minmax, percentile, percentile:99.9, entropy, mse or
            weighted_mse. mse, the default, gives way to one of the others where that is clearly better
        keep_float: Nodes that stay in float: a glob pattern on their names, repeatable
        placement: auto: leave the layers in float that INT8 costs too much, found on calibration images; all: none beside
            --keep-float; or a file with their names. Default: auto; all with a budget, which chooses them itself, or a table
        max_drop_points: Accuracy budget in points, 0 to 100: leave as few layers in float as meet it on the images that judge,
            by the first output if there are several
        int8_floor: Least share of the multiply-accumulates in INT8, 0 to 1; exit code 1 below it. Default: any
        holdout: Images that judge: a folder per class, a list, an IDX file, a .npy file. Default: those of --images left over
        holdout_labels: Classes of a .npy --holdout: a .npy file of integers
        table: Take this calibration table instead of calibrating, with the model.refined.onnx beside it; refused when stale
    """

    images: Path | None = None
    count: int = CALIB_IMAGES
    random: int | None = None
    effort: str = "balanced"
    method: str = "mse"
    keep_float: tuple[str, ...] = ()
    placement: str | None = None
    max_drop_points: float | None = None
    int8_floor: float | None = None
    holdout: Path | None = None
    holdout_labels: Path | None = None
    table: Path | None = None
    input: Annotated[InputOptions, Parameter(name="*")] = DEFAULT_INPUT


@dataclass(frozen=True)
class CalibrateRequest(CalibrateOptions):
    """The checked options, an FP32 ONNX file and the output folder. Raises UsageError for unknown or contradictory ones."""

    graph: Path
    out: Path

    def __post_init__(self) -> None:
        check_quantization(self.method, self.effort)
        check_counts(count=self.count)
        check_bounds("--random", self.random, SYNTHETIC_IMAGES)
        if self.random is not None and (self.images is not None or self.table is not None):
            raise UsageError("--random excludes --images and --table", where="--random", found=self.images or self.table)
        if self.holdout_labels is not None and (self.holdout is None or self.holdout.suffix != ".npy"):
            raise UsageError(
                "--holdout-labels belongs to a --holdout that is a .npy file", where="--holdout-labels", found=self.holdout
            )
        check_budget(self.max_drop_points)
        chooses = "--table" if self.table is not None else "--max-drop" if self.max_drop_points is not None else None
        if self.placement == AUTO and chooses is not None:
            what = f"--placement auto and {chooses} exclude each other: both choose the layers in float"
            raise UsageError(what, where="--placement", found=AUTO, allowed=f"{ALL}, a file, or without {chooses}")
        check_floor(self.int8_floor)

    @property
    def search_placement(self) -> bool:
        """Whether calibration chooses layers that stay in float."""
        return self.placement == AUTO or (self.placement is None and self.table is None and self.max_drop_points is None)
