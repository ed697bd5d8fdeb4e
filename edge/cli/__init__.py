"""The command line, `ufovit COMMAND`: one file per command, `edge.cli.main` calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from edge.cli.main import INTERNAL_ERROR, INTERRUPTED, run

_PUBLIC = by_name(
    {
        "edge.cli.main": ("INTERNAL_ERROR", "INTERRUPTED", "run"),
    }
)

__all__ = ["INTERNAL_ERROR", "INTERRUPTED", "run"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
