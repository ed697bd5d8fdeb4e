"""Open and check the network and the images of a build before anything is written."""

from dataclasses import dataclass, replace
from pathlib import Path

from calib.errors import DataError
from edge.assets import CALIBRATION_IMAGES, SHIPPED_CHECKPOINT, TEST_IMAGES
from edge.images.graph_input import GraphImages
from edge.images.labelled_images import ImageSet, open_unlabelled
from edge.model.metadata import CheckpointInfo, read_info
from edge.pipeline.build_request import RANDOM_WEIGHTS_IMAGES, BuildRequest
from edge.pipeline.open_network import Network, open_network
from edge.pipeline.placement_option import AUTO, default_float_layers, default_placement, read_placement
from edge.pipeline.request_checks import CALIB_IMAGES, check_answers_fit, check_calibration_images, image_count
from edge.progress import Progress
from edge.tasks.budget import budget_for
from edge.tasks.registry import load_task
from edge.tasks.task import Task
from edge.tasks.task_names import CLASSIFICATION

SHIPPED_TEST = "the shipped test split"
"""How artifacts name the images that a build without --data is judged on."""


@dataclass(frozen=True)
class BuildInputs:
    """The checked inputs of a build.

    Attributes:
        eval_images: images that judge the engine, labelled where its task uses labels.
        calib_images: images that calibrate it and on which export or import is checked.
        keep_float: patterns of the nodes that stay in float, those of a file of --placement among them.
        search_placement: whether calibration chooses further ones.
    """

    network: Network
    eval_images: ImageSet
    calib_images: ImageSet
    keep_float: tuple[str, ...]
    search_placement: bool


def resolve_inputs(request: BuildRequest) -> BuildInputs:
    """Open and check network and images. Raises InputError; touches nothing."""
    network = open_network(request)
    task = network.task
    budget_for(task.name, request.max_drop_points, request.min_sqnr_db, request.min_cosine)  # refuses one of another task
    eval_images, calib_data = judging_images(request.data, task), request.calib_data
    if calib_data is None:
        if shipped_images_fit(task):
            calib_data = CALIBRATION_IMAGES
        elif request.precision == "int8":
            raise DataError(
                "calibration needs images like those that the camera will see",
                where="--calib-data",
                found="no --calib-data, and the shipped images are not for this network",
                next_command="pass --calib-data DIR with images that are not those of --data",
            )
        else:
            calib_data = request.data or TEST_IMAGES  # nothing is calibrated: they only check the export
    few = RANDOM_WEIGHTS_IMAGES if network.random_weights else None
    calib_images = _calibration_images(calib_data, task).take(request.calib_images or few or CALIB_IMAGES)
    if request.precision == "int8":
        remedy = "pass --calib-data with more images, or a larger --calib-images"
        check_calibration_images(len(calib_images), calib_data, remedy)
    wanted = (few if request.eval_images is None else image_count(request.eval_images)) or len(eval_images)
    eval_images = eval_images.take(wanted)
    if network.imported is not None and task.keeps_outputs:
        check_answers_fit(network.imported.outputs, len(eval_images), "--eval-images")
    placement = request.placement or default_placement(request.model)
    keep_float = request.keep_float
    if keep_float is None:  # a search finds them itself, where they are worth their share
        keep_float = default_float_layers(request.target) if network.info is not None and placement != AUTO else ()
    keep_float = (*keep_float, *read_placement(placement))
    return BuildInputs(network, eval_images, calib_images, keep_float, search_placement=placement == AUTO)


def _calibration_images(path: Path, task: Task) -> ImageSet:
    """Images that calibrate: labels are read where there are any, and not needed."""
    try:
        return task.open_images(path)
    except DataError:
        if path.is_dir():
            return open_unlabelled(path)
        raise


def judging_images(data: Path | None, task: Task) -> ImageSet:
    """Images that judge: those of `data`, else the shipped test split. Raises DataError when these are not for the task."""
    if data is not None and data != TEST_IMAGES:
        return task.open_images(data)
    if not shipped_images_fit(task):
        raise DataError(
            "the shipped test images do not have this network's labels" if task.names else "no images to judge on",
            where="--data",
            found=", ".join(task.names[:5]) or f"task {task.name}, and the shipped images are of another",
            next_command=f"pass --data DIR with {'labelled ' if task.labelled else ''}images",
        )
    return replace(task.open_images(TEST_IMAGES), source=SHIPPED_TEST)


def say_notes(images: ImageSet | GraphImages, progress: Progress) -> None:
    """Tell what was left out of the images."""
    for note in images.notes:
        progress.say(f"images       {images.source}: {note}")


def shipped_images_fit(task: Task) -> bool:
    """Whether the shipped images are of this task."""
    return SHIPPED_CHECKPOINT.exists() and load_task(CLASSIFICATION, read_info(SHIPPED_CHECKPOINT).labels) == task


def shipped_calibration_images(info: CheckpointInfo | None) -> Path | None:
    """The shipped calibration images, for a graph with this metadata; None where they are of another task."""
    fit = info is not None and shipped_images_fit(load_task(CLASSIFICATION, info.labels))
    return CALIBRATION_IMAGES if fit else None
