"""`ufovit inspect`: any artifact, readable by a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    file: Annotated[Path, typer.Argument(help="A build folder, or an artifact, ONNX file, checkpoint or engine")],
) -> int:
    """Show what a file is and says."""
    from rich.console import Console

    from edge.report.inspect import describe_file

    Console(soft_wrap=True).print(describe_file(file))
    return 0
