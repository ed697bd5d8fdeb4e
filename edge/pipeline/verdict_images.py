"""Open the images of a build's previous verdict again."""

from pathlib import Path

from calib.errors import DataError, InputError
from edge.drift.drift_report import DriftReport
from edge.drift.looks import look_subset
from edge.images.labelled_images import ImageSet, open_unlabelled
from edge.pipeline.build_inputs import SHIPPED_TEST, judging_images
from edge.tasks.task import Task


def open_verdict_images(last: DriftReport, task: Task, command: str) -> ImageSet:
    """All images of the data that a verdict was given on, with labels if it used them; it took `last.images` of them.

    A sequential test may have taken fewer than it would have: those of its look.

    Raises DataError, with `command` as the next one, when they cannot be opened or have changed since.
    """
    try:
        if last.data == SHIPPED_TEST:
            images = judging_images(None, task)
        else:
            path = Path(last.data)
            images = task.open_images(path) if last.comparison.with_truth else open_unlabelled(path)
    except InputError as error:
        raise _unavailable_images_error(last, "they cannot be opened", command) from error
    if last.look is None:
        sha256 = images.take(last.images).sha256
    else:
        sha256 = look_subset(images.sha256, len(images), last.look.number)[1] if len(images) == last.look.available else ""
    if sha256 != last.data_sha256:
        raise _unavailable_images_error(last, "they have changed since", command)
    return images


def _unavailable_images_error(last: DriftReport, found: str, command: str) -> DataError:
    return DataError(
        "the images used for the previous verdict are no longer available",
        where=last.data,
        found=found,
        allowed="another folder of images",
        next_command=command,
    )
