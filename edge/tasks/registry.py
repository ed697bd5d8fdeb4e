"""Registry of tasks by the name that a build request and a manifest hold."""

from functools import lru_cache
from importlib import import_module

from calib.artifact import Artifact
from calib.errors import InputError
from edge.tasks.task import Sides, Task
from edge.tasks.task_names import CLASSIFICATION, TENSORS
from engines.build_folder.file_names import ANSWERS
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest
from engines.layer_records import TensorInfo

TASKS = {CLASSIFICATION: "edge.tasks.classification.task:Classification", TENSORS: "edge.tasks.tensors.task:Tensors"}
"""Name -> module and class."""


def check_task(name: str) -> None:
    """Raise InputError for the name of an unknown task."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}", allowed=", ".join(sorted(TASKS)))


def load_task(name: str, names: tuple[str, ...] = (), outputs: tuple[TensorInfo, ...] = ()) -> Task:
    """The task called `name`, for a network whose classes are called `names`, and with these outputs where they are known.

    Raises InputError for an unknown task.
    """
    check_task(name)
    return _make_task(TASKS[name], names, outputs)


def class_names(name: str, labels: tuple[str, ...], outputs: tuple[TensorInfo, ...]) -> tuple[str, ...]:
    """The names of classes for the task called `name`, as `Task.class_names`. Raises InputError for an unknown task."""
    check_task(name)
    return _task_class(TASKS[name]).class_names(labels, outputs)


@lru_cache
def _make_task(where: str, names: tuple[str, ...], outputs: tuple[TensorInfo, ...]) -> Task:
    return _task_class(where).of(names, outputs)


def _task_class(where: str) -> type[Task]:
    module, _, cls = where.partition(":")
    task: type[Task] = getattr(import_module(module), cls)
    return task


def task_of(manifest: EngineManifest) -> Task:
    """The task of a build. Raises InputError for an unknown task."""
    return load_task(manifest.task, manifest.labels, manifest.outputs)


def read_answers(build: BuildFolder, task: Task) -> Sides:
    """Both sides' answers of a build, as its task parses them. Raises ArtifactError."""
    return build.read(Artifact(ANSWERS, task.parse_answers))
