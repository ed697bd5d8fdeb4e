"""report: everything in the folder -> report.html."""

from functools import partial
from pathlib import Path
from typing import Any

from calib.files import write_bytes
from edge.pipeline.workspace import Step, Workspace
from edge.progress import Advance
from engines.build_folder.file_names import (
    ANSWERS,
    ATTRIBUTION,
    CERTIFICATE,
    DRIFT,
    EXPORT,
    IMPORT,
    MANIFEST,
    MEASURED_SPEED,
    PICTURES,
    REPORT,
    SPEED,
    XNORM,
)
from engines.build_folder.folder import BuildFolder
from engines.hardware import versions

_REPORTED = (
    *(EXPORT, IMPORT, MANIFEST, SPEED, MEASURED_SPEED, DRIFT, ANSWERS, PICTURES),
    *(CERTIFICATE, XNORM, ATTRIBUTION),
)
"""Files that a report shows, besides the graphs, whose digests the manifest records."""


def report_step(workspace: Workspace, build: BuildFolder | None = None) -> Step:
    """The last step: reads all artifacts that a report can show; `build` is the folder, where it was opened already."""
    folder = workspace.folder
    reads: dict[str, Any] = {file: workspace.sha256(file) for file in _REPORTED if (folder / file).is_file()}
    reads["versions"] = versions("jinja2", "matplotlib", "pillow")
    return Step("report", reads, (REPORT,), partial(write_report, folder, build))


def write_report(folder: Path, build: BuildFolder | None, out: Path, advance: Advance) -> None:
    """Everything in the folder -> report.html in the folder `out`."""
    from edge.report import render

    write_bytes(out / REPORT, render(build or BuildFolder(folder, building=True), advance).encode())
