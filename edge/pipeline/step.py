"""One step of a build, and the outcome of a build: shared by builds on a workstation and on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.drift.drift_report import DRIFT_ARTIFACT
from edge.pipeline.workspace import Workspace
from edge.progress import Advance, Progress
from edge.tasks.interval import Verdict
from engines.build_folder.folder import BuildFolder

RANDOM_WEIGHTS_NOTICE = "RANDOM WEIGHTS: nothing below says anything about accuracy; every artifact is stamped"


@dataclass(frozen=True)
class BuildOutcome:
    """A finished build: its folder, the verdict on accuracy, the steps that ran and those that were reused."""

    folder: Path
    verdict: Verdict
    ran: tuple[str, ...]
    reused: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A step of a build: `run` writes the files named in `writes` into the build folder, each atomically.

    `reads` holds the digests, parameters and versions that decide what it writes, as plain JSON values.
    """

    name: str
    reads: dict[str, Any]
    writes: tuple[str, ...]
    run: Callable[[Advance], object]


def outcome_of(workspace: Workspace) -> BuildOutcome:
    """The outcome of the steps that ran in a workspace, drift among them."""
    verdict = BuildFolder(workspace.folder).read(DRIFT_ARTIFACT).verdict
    return BuildOutcome(workspace.folder, verdict, tuple(workspace.ran), tuple(workspace.reused))


def run_step(workspace: Workspace, progress: Progress, step: Step) -> None:
    """Run a step and report it to `progress`, or reuse what it wrote earlier."""

    def run() -> None:
        with progress.task(step.name) as advance:
            step.run(advance)

    if not workspace.step(step.name, step.reads, step.writes, run):
        progress.say(f"  {step.name}: unchanged, reused")
