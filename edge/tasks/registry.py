"""Registry of tasks by the name that a build request and a manifest hold."""

from functools import lru_cache
from importlib import import_module

from calib.artifact import Artifact
from calib.errors import InputError
from edge.tasks.task import Sides, Task
from engines.build_folder.file_names import ANSWERS
from engines.build_folder.folder import BuildFolder
from engines.build_folder.manifest import EngineManifest

CLASSIFICATION = "classification"
TASKS = {CLASSIFICATION: "edge.tasks.classification.task:Classification"}
"""Name -> module and class."""


def check_task(name: str) -> None:
    """Raise InputError for the name of an unknown task."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}", allowed=", ".join(sorted(TASKS)))


def load_task(name: str, names: tuple[str, ...] = ()) -> Task:
    """The task called `name`, for a network whose classes are called `names`. Raises InputError for an unknown task."""
    check_task(name)
    return _make_task(TASKS[name], names)


@lru_cache
def _make_task(where: str, names: tuple[str, ...]) -> Task:
    module, _, cls = where.partition(":")
    task: Task = getattr(import_module(module), cls)(names)
    return task


def task_of(manifest: EngineManifest) -> Task:
    """The task of a build. Raises InputError for an unknown task."""
    return load_task(manifest.task, manifest.labels)


def read_answers(build: BuildFolder, task: Task) -> Sides:
    """Both sides' answers of a build, as its task parses them. Raises ArtifactError."""
    return build.read(Artifact(ANSWERS, task.parse_answers))
