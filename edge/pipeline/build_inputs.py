"""Open and check the checkpoint and the images of a build before anything is written."""

from dataclasses import dataclass, replace
from pathlib import Path

from calib.errors import DataError, UsageError
from edge.assets import CALIBRATION_IMAGES, SHIPPED_CHECKPOINT, SHIPPED_MODEL, TEST_IMAGES
from edge.images.labelled_images import ImageSet
from edge.model.metadata import CheckpointInfo, read_info
from edge.model.sizes import config
from edge.pipeline.build_request import RANDOM_WEIGHTS_IMAGES, BuildRequest
from edge.pipeline.request_checks import CALIB_IMAGES, check_calibration_images
from edge.tasks.registry import load_task
from edge.tasks.task import Task
from edge.tasks.task_names import CLASSIFICATION

SHIPPED_TEST = "the shipped test split"
"""How artifacts name the images that a build without --data is judged on."""


@dataclass(frozen=True)
class BuildInputs:
    """The checked inputs of a build.

    Attributes:
        info: metadata of the checkpoint, at the image size in use.
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
        if shipped_images_fit(task):
            calib_data = CALIBRATION_IMAGES
        elif request.precision == "int8":
            raise DataError(
                "calibration needs images like those that the camera will see",
                where="--calib-data",
                found="no --calib-data, and the shipped images have other labels",
                next_command="pass --calib-data DIR with images that are not those of --data",
            )
        else:
            calib_data = request.data or TEST_IMAGES  # nothing is calibrated: they only check the export
    few = RANDOM_WEIGHTS_IMAGES if info.random_weights else None
    calib_images = task.open_images(calib_data).take(request.calib_images or few or CALIB_IMAGES)
    if request.precision == "int8":
        remedy = "pass --calib-data with more images, or a larger --calib-images"
        check_calibration_images(len(calib_images), calib_data, remedy)
    return BuildInputs(info, eval_images.take(request.eval_images or few or len(eval_images)), calib_images)


def judging_images(data: Path | None, task: Task) -> ImageSet:
    """Labelled images that judge: those of `data`, else the shipped test split. Raises DataError when labels do not fit."""
    if data is not None and data != TEST_IMAGES:
        return task.open_images(data)
    if not shipped_images_fit(task):
        raise DataError(
            "the shipped test images do not have this checkpoint's labels",
            where="--data",
            found=", ".join(task.names[:5]),
            next_command="pass --data DIR with labelled images",
        )
    return replace(task.open_images(TEST_IMAGES), source=SHIPPED_TEST)


def shipped_images_fit(task: Task) -> bool:
    """Whether the shipped images are of this task."""
    return SHIPPED_CHECKPOINT.exists() and load_task(CLASSIFICATION, read_info(SHIPPED_CHECKPOINT).labels) == task


def shipped_calibration_images(info: CheckpointInfo | None) -> Path | None:
    """The shipped calibration images, for a graph with this metadata; None where they are of another task."""
    fit = info is not None and shipped_images_fit(load_task(CLASSIFICATION, info.labels))
    return CALIBRATION_IMAGES if fit else None


def _resolve_info(request: BuildRequest) -> CheckpointInfo:
    """Metadata of the requested checkpoint, or of the random weights."""
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
        raise UsageError(
            f"no checkpoint of {request.model} is shipped",
            where="--checkpoint",
            allowed=f"{SHIPPED_MODEL} without --checkpoint",
            next_command="pass --checkpoint FILE, or --random-weights to try the tools on random weights",
        )
    path = request.checkpoint or SHIPPED_CHECKPOINT
    if path.suffix in (".pth", ".pt"):
        from edge.model.checkpoint import load_checkpoint

        return load_checkpoint(path, model=request.model, image_size=request.image_size)[1]
    info = read_info(path)
    info.require_model(request.model)
    return info.for_image_size(request.image_size)
