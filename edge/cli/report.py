"""`ufovit report`: render the report of a build again."""

from pathlib import Path

from edge.cli.console import terminal_progress
from engines.build_folder.file_names import REPORT


def report(build: Path, /) -> int:
    """Render report.html again from the other files of a build folder, after checking them. The folder may be a copy.

    An up-to-date report is left unchanged. A new one invalidates the folder's signature, which is removed.

    Exit codes: 0 the report exists, whatever the verdict, 2 a file of the folder was changed, 4 something this machine lacks.

    Args:
        build: A build folder of `ufovit build`
    """
    from edge.pipeline.rejudge import redraw

    progress = terminal_progress()
    redraw(build, progress)
    progress.say(f"report   {build / REPORT}")
    return 0
