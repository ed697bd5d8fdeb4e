"""`ufovit report`: draw the report of a build anew."""

from __future__ import annotations

from pathlib import Path


def report(build: Path, /) -> int:
    """Draw report.html anew from the other files of a build folder, after checking them. The folder may be a copy.

    A report that is there and fits is left as it is. One that is drawn anew takes the folder's signature with it.

    Exit codes: 0 the report is there, passed or not, 2 the folder is not what a build left, 4 this machine lacks something.

    Args:
        build: A build folder of `ufovit build`
    """
    from edge.cli.console import terminal_progress
    from edge.pipeline.rejudge import redraw
    from engines.build_folder.file_names import REPORT

    progress = terminal_progress()
    redraw(build, progress)
    progress.say(f"report   {build / REPORT}")
    return 0
