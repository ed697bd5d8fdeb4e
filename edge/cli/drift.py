"""`ufovit drift`: judge a finished build again, and attribute its drift to layers."""

from pathlib import Path

from edge.cli.console import terminal_progress
from edge.pipeline.judge_options import JudgeOptions

_DEFAULT = JudgeOptions()


def drift(build: Path, /, *, options: JudgeOptions = _DEFAULT) -> int:
    """Compare a finished build with its FP32 reference, judge it, and render its report again.

    Exit codes: 0 passed, 1 failed, 2 bad input, 3 too few images for a verdict, 4 something this machine lacks.

    Args:
        build: A build folder
    """
    from edge.cli.summary import conclude
    from edge.pipeline.rejudge import rejudge_build

    progress = terminal_progress()
    return conclude(progress, rejudge_build(build, options, progress))
