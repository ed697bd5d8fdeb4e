"""What every flow of steps shares, on a workstation and on a device: how a step is told of, and what a flow leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.pipeline.workspace import Workspace
from edge.progress import Advance, Progress
from edge.tasks.interval import Verdict

RANDOM_WEIGHTS_NOTICE = "RANDOM WEIGHTS: nothing below says anything about accuracy; every artifact is stamped"


@dataclass(frozen=True)
class BuildOutcome:
    """What a build leaves: the folder, the verdict on accuracy, the steps that ran and those that were reused."""

    folder: Path
    verdict: Verdict
    ran: tuple[str, ...]
    reused: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A step of a flow.

    Attributes:
        name: of the step.
        reads: digests, parameters and versions that decide what it writes; plain JSON values.
        writes: file names in the build folder.
        run: does the work.
    """

    name: str
    reads: dict[str, Any]
    writes: tuple[str, ...]
    run: Callable[[Advance], None]


def run_step(workspace: Workspace, progress: Progress, step: Step) -> None:
    """Run a step under the eyes of `progress`, or reuse what it wrote earlier."""

    def watched() -> None:
        with progress.task(step.name) as advance:
            step.run(advance)

    if not workspace.step(step.name, step.reads, step.writes, watched):
        progress.say(f"  {step.name}: unchanged, reused")
