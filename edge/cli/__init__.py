"""The command line, `ufovit COMMAND`: one file per command, `edge.cli.main` calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from edge.cli.main import INTERNAL_ERROR, INTERRUPTED, run

_PUBLIC = {"INTERNAL_ERROR": "edge.cli.main", "INTERRUPTED": "edge.cli.main", "run": "edge.cli.main"}

__all__ = ["INTERNAL_ERROR", "INTERRUPTED", "run"]
__getattr__ = lazy_exports(__name__, _PUBLIC)
