"""Names of the tasks: in artifacts, and as values of the option --task. Standard library only: help texts read it."""

from calib.errors import UsageError

CLASSIFICATION = "classification"
TENSORS = "tensors"
TASK_OPTIONS = {"classify": CLASSIFICATION, "tensors": TENSORS}
"""Value of --task -> name in build requests, manifests and drift.json."""


def task_named(option: str) -> str:
    """The name of a task by the value of --task. Raises UsageError for an unknown one."""
    if option not in TASK_OPTIONS:
        raise UsageError("unknown task", where="--task", found=option, allowed=", ".join(TASK_OPTIONS))
    return TASK_OPTIONS[option]


def option_of(name: str) -> str:
    """The value of --task that chooses a task; the name itself for a task without one."""
    return next((option for option, task in TASK_OPTIONS.items() if task == name), name)
