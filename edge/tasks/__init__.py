"""What the outputs of a network mean, one task per folder. Drift, gate, report, camera and bundle ask the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.tasks.frame_answer import FrameAnswer
    from edge.tasks.registry import TASKS, load_task, task_of
    from edge.tasks.task import Comparison, Sides, Task

_PUBLIC = {
    "TASKS": "edge.tasks.registry",
    "Comparison": "edge.tasks.task",
    "FrameAnswer": "edge.tasks.frame_answer",
    "Sides": "edge.tasks.task",
    "Task": "edge.tasks.task",
    "load_task": "edge.tasks.registry",
    "task_of": "edge.tasks.registry",
}

__all__ = ["TASKS", "Comparison", "FrameAnswer", "Sides", "Task", "load_task", "task_of"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
