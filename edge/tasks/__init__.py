"""Tasks: what the outputs of a network mean, one task per folder. Drift, gate, report, camera and bundle ask the task."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.tasks.registry import load_task
    from edge.tasks.task import Task

__all__ = ["Task", "load_task"]
__getattr__ = lazy_exports(__name__, __file__)
