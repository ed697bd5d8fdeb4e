"""`ufovit drift`: judge a finished build anew, and say which layers its drift comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def drift(  # one parameter per option of the command
    build: Annotated[Path, typer.Argument(help="A build folder", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images, in the forms of `ufovit build --data`. Default: those it was last judged on",
            show_default=False,
        ),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(help="Images without labels instead: agreement with FP32 decides, not accuracy", show_default=False),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="How many of them, spread evenly. Default: all, or as many as last time", show_default=False),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Folder with drift.json, logits.npz and steps.json of a build that was judged on the same images: its FP32 "
            "answers are taken, and no FP32 graph runs",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Accuracy budget in percentage points. Default: the one it was last judged by", show_default=False),
    ] = None,
    attribute: Annotated[
        bool,
        typer.Option("--attribute", help="Say layer by layer where the drift comes from, and what is wrong if anything is"),
    ] = False,
) -> int:
    """Compare a finished build with its FP32 reference, judge it, and draw its report anew.

    Exit codes: 0 passed, 1 failed, 2 bad input, 3 too few images to say, 4 something this machine lacks.
    """
    from rich.console import Console

    from edge.cli.build import EXIT_BY_VERDICT
    from edge.cli.console import TerminalProgress
    from edge.cli.summary import print_summary
    from edge.pipeline.rejudge import JudgeRequest, rejudge

    console = Console(soft_wrap=True)
    request = JudgeRequest(build, data, unlabelled, images, reference, max_drop, attribute)
    outcome = rejudge(request, TerminalProgress(console))
    print_summary(console, outcome.folder)
    return EXIT_BY_VERDICT[outcome.verdict]
