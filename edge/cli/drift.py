"""`ufovit drift`: judge a finished build again, and attribute its drift to layers."""

from __future__ import annotations

from pathlib import Path

from edge.pipeline.judge_request import JudgeOptions, JudgeRequest

_DEFAULT = JudgeOptions()


def drift(build: Path, /, *, options: JudgeOptions = _DEFAULT) -> int:
    """Compare a finished build with its FP32 reference, judge it, and render its report again.

    Exit codes: 0 passed, 1 failed, 2 bad input, 3 too few images for a verdict, 4 something this machine lacks.

    Args:
        build: A build folder
    """
    from edge.cli.build import EXIT_BY_VERDICT
    from edge.cli.console import terminal_progress
    from edge.cli.summary import print_summary
    from edge.pipeline.rejudge import rejudge_build

    progress = terminal_progress()
    outcome = rejudge_build(JudgeRequest(build, **vars(options)), progress)
    print_summary(progress.console, outcome.folder)
    return EXIT_BY_VERDICT[outcome.verdict]
