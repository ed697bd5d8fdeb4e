"""What a build is asked for, and the inputs that answer it: checked completely before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from calib.calibration_table import MIN_IMAGES
from calib.calibrators import range_method
from calib.errors import InputError
from calib.refine.effort import resolve_effort
from edge.assets import CALIBRATION_IMAGES, SHIPPED_CHECKPOINT, SHIPPED_MODEL, TEST_IMAGES
from edge.images.labelled_images import ImageSet
from edge.model.metadata import CheckpointInfo, read_info
from edge.model.sizes import SIZES, config
from edge.pipeline.builder_options import DEFAULT_BUILDER, BuilderRequest
from edge.tasks.registry import CLASSIFICATION, check_task, load_task
from edge.tasks.task import Task
from engines.build_spec import PRECISIONS, BatchRange, Precision, check_floor
from engines.select_target import judged_here
from engines.targets import Target

DEFAULT_BATCH = BatchRange(1, 1, 8)
FLOAT_LAYERS = ("stem.0/*", "stem.3/*")
"""Layers that stay in float in an INT8 build unless told otherwise: the first two convolutions of the stem, which see the image
itself. They are 1.7 % of ufovit_t's multiply-accumulates, and in INT8 they cost more of the logits' SQNR than all other layers
together; figures in edge/README.md."""
CALIB_IMAGES = 512
MAX_DROP_POINTS = 0.5
SHIPPED_TEST = "the shipped test split"
"""What artifacts say of the images that a build without --data is judged on."""
RANDOM_WEIGHTS_IMAGES = 64
"""Images used by default with drawn weights, which have ranges and numbers to check but no accuracy to measure."""


@dataclass(frozen=True)
class BuildRequest:
    """Everything that decides what a build makes.

    Attributes:
        model: a name of `edge.model.sizes.SIZES`.
        precision: "fp32", "fp16" or "int8".
        target: what the engine is for.
        task: what the network's outputs mean, a key of `edge.tasks.registry.TASKS`.
        out: the build folder.
        checkpoint: a checkpoint file; None for the shipped one.
        random_weights: draw the weights with `seed` instead of reading a checkpoint.
        data: labelled images that judge the engine; None for the shipped test split.
        calib_data: images that calibrate it; None for the shipped calibration split.
        image_size: input size in pixels; None keeps the checkpoint's.
        batch: smallest, usual and largest batch of the engine.
        method: calibration method, see `calib.calibrators`.
        effort: refinements of the quantization, see `calib.refine.effort`.
        keep_float: glob patterns of the nodes that stay in float in an INT8 build, e.g. "blocks.0.attn.*".
        calib_images, eval_images: how many images to use; None for the default (512 and all; 64 with drawn weights).
        max_drop_points: accuracy budget in percentage points.
        int8_floor: smallest share of the multiply-accumulates that must run in INT8; None for the target's.
        builder: what TensorRT is told beyond the graph.
        force: run every step, whatever an earlier build left.
    """

    model: str
    precision: Precision
    target: Target
    out: Path
    checkpoint: Path | None = None
    random_weights: bool = False
    data: Path | None = None
    calib_data: Path | None = None
    image_size: int | None = None
    batch: BatchRange = DEFAULT_BATCH
    method: str = "mse"
    effort: str = "fast"
    keep_float: tuple[str, ...] = FLOAT_LAYERS
    calib_images: int | None = None
    eval_images: int | None = None
    max_drop_points: float = MAX_DROP_POINTS
    int8_floor: float | None = None
    seed: int = 0
    task: str = CLASSIFICATION
    builder: BuilderRequest = DEFAULT_BUILDER
    force: bool = False

    def __post_init__(self) -> None:
        if self.model not in SIZES:
            raise InputError(f"unknown model {self.model!r}", allowed=", ".join(SIZES))
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}", allowed=", ".join(PRECISIONS))
        if self.random_weights and self.checkpoint is not None:
            raise InputError("--random-weights and --checkpoint exclude each other", found=self.checkpoint)
        if self.precision == "fp16" and self.target.float_type != "fp16":
            raise InputError(
                f"target {self.target.name} does not compute in FP16",
                found="fp16",
                allowed="fp32, int8",
                next_command=f"ufovit build {self.model} fp32 --target {self.target.name}",
            )
        check_task(self.task)
        check_budget(self.max_drop_points)
        range_method(self.method)
        resolve_effort(self.effort)
        check_floor(self.int8_floor)
        self.builder.check(self.target, self.out)

    @property
    def certified_precisions(self) -> tuple[str, ...]:
        """Precisions in which every XNorm of the build must be stable: its own, and that of what surrounds INT8."""
        return tuple(p for p in ("fp16", "int8") if p in (self.precision, self.target.float_type) and self.precision != "fp32")

    @property
    def engine_file(self) -> str:
        """Name of the engine in the build folder."""
        return f"engine{self.target.engine_suffix}"

    @property
    def engine_runs_here(self) -> bool:
        """Whether the engine itself can be judged on this machine; otherwise the graph it was built from is, on the CPU."""
        return judged_here(self.target)


@dataclass(frozen=True)
class BuildInputs:
    """The checked inputs of a build.

    Attributes:
        info: what the checkpoint says of itself, at the image size in use.
        eval_images: labelled images that judge the engine.
        calib_images: images that calibrate it and on which the export is checked.
    """

    info: CheckpointInfo
    eval_images: ImageSet
    calib_images: ImageSet


def resolve_inputs(request: BuildRequest) -> BuildInputs:
    """Open and check checkpoint and images. Raises InputError; touches nothing."""
    info = _resolve_info(request)
    task = load_task(request.task, info.labels)
    eval_images, calib_data = judging_images(request.data, task), request.calib_data
    if calib_data is None:
        if _shipped_images_fit(task):
            calib_data = CALIBRATION_IMAGES
        elif request.precision == "int8":
            raise InputError(
                "calibration needs images like those that the camera will see",
                found="no --calib-data, and the shipped images have other labels",
                next_command="pass --calib-data DIR with images that are not those of --data",
            )
        else:
            calib_data = request.data or TEST_IMAGES  # nothing is calibrated: they only check the export
    few = RANDOM_WEIGHTS_IMAGES if info.random_weights else None
    calib_images = task.open_images(calib_data).take(image_count(request.calib_images, few or CALIB_IMAGES))
    if request.precision == "int8" and len(calib_images) < MIN_IMAGES:
        raise InputError(
            "too few calibration images",
            where=calib_data,
            found=len(calib_images),
            allowed=f"at least {MIN_IMAGES}, better {CALIB_IMAGES}",
            next_command="pass --calib-data with more images, or a larger --calib-images",
        )
    return BuildInputs(info, eval_images.take(image_count(request.eval_images, few or len(eval_images))), calib_images)


def judging_images(data: Path | None, task: Task) -> ImageSet:
    """Labelled images that judge: those of `data`, else the shipped test split. Raises InputError when labels do not fit."""
    if data is not None and data != TEST_IMAGES:
        return task.open_images(data)
    if not _shipped_images_fit(task):
        raise InputError(
            "the shipped test images do not have this checkpoint's labels",
            found=", ".join(task.names[:5]),
            next_command="pass --data DIR with labelled images",
        )
    return replace(task.open_images(TEST_IMAGES), source=SHIPPED_TEST)


def _shipped_images_fit(task: Task) -> bool:
    return SHIPPED_CHECKPOINT.exists() and load_task(CLASSIFICATION, read_info(SHIPPED_CHECKPOINT).labels) == task


def image_count(asked: int | None, default: int) -> int:
    """How many images are used. Raises InputError for a number below 1."""
    if asked is not None and asked < 1:
        raise InputError("number of images must be positive", found=asked)
    return default if asked is None else asked


def check_budget(max_drop_points: float) -> None:
    """Raise InputError for what is no accuracy budget in percentage points."""
    if not 0 <= max_drop_points < math.inf:  # NaN, too
        raise InputError("accuracy budget is no number of points", found=max_drop_points, allowed="0 or more")


def _resolve_info(request: BuildRequest) -> CheckpointInfo:
    """Metadata of the checkpoint asked for, or of the weights to be drawn."""
    if request.random_weights:
        shipped = read_info(SHIPPED_CHECKPOINT)
        size = shipped.config.image_size if request.image_size is None else request.image_size
        return CheckpointInfo(
            config=config(request.model, image_size=size, classes=len(shipped.labels)),
            labels=shipped.labels,
            preprocess=shipped.preprocess.for_image_size(size),
            random_weights=True,
            training={"seed": request.seed},
        )
    if request.checkpoint is None and request.model != SHIPPED_MODEL:
        raise InputError(
            f"no checkpoint of {request.model} is shipped",
            allowed=f"{SHIPPED_MODEL} without --checkpoint",
            next_command="pass --checkpoint FILE, or --random-weights to try the tools on drawn weights",
        )
    path = request.checkpoint or SHIPPED_CHECKPOINT
    if path.suffix in (".pth", ".pt"):
        from edge.model.checkpoint import load_checkpoint

        return load_checkpoint(path, model=request.model, image_size=request.image_size)[1]
    info = read_info(path)
    info.require_model(request.model)
    return info.for_image_size(request.image_size)
